"""What was read of Redis, taken for true for as long as Redis is sure to tell of every change.

Pure state, moved by `stores/invalidation.py` (what Redis tells, and whether it can be trusted to) and by
`stores/redis.py` (what was read). All times are seconds of one monotonic clock.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Final

from bakerygw.core.tenancy import TenantFlags
from bakerygw.ports import Changed
from bakerygw.stores.mirror_table import TRUST_S, Epoch, Found, Kept, Read, Table, last_known
from bakerygw.stores.parents import Parents

TENANT_PREFIX: Final = "tenant:"
REVOKED_PREFIX: Final = "bakerygw:revoked:"
LIMITS_PREFIX: Final = "bakerygw:limits:"
"""Of tenants' limits for a time, which are held as one of their flags."""
PREFIXES: Final = (TENANT_PREFIX, REVOKED_PREFIX, LIMITS_PREFIX)
"""Where Redis is asked to tell of changes."""
FLAG_NAMES: Final = ("subscription_changed_at", "read_only", "demo")
"""The last parts of the keys that make up a tenant's flags."""
PARENT: Final = "parent"
"""The last part of the key that holds a tenant's parent."""

MAX_TENANTS: Final = 10_000
MAX_TOKENS: Final = 20_000
MAX_ASIDE: Final = 1_000
"""Tenants, and tokens, read for callers who were not verified: of no use but as last known, and soon pushed out."""
MAX_KEPT: Final = 50_000
"""Revocations of one's own, and others that were found: they take 10 MB each, all else with the flags 10 to 30 MB."""

Flags = dict[str, TenantFlags | None]
Revoked = dict[str, bool | None]
Known = tuple[Flags, Revoked]

_TENANT_BYTES: Final = TENANT_PREFIX.encode()
_REVOKED_BYTES: Final = REVOKED_PREFIX.encode()
_LIMITS_BYTES: Final = LIMITS_PREFIX.encode()
_FLAG_BYTES: Final = frozenset(name.encode() for name in FLAG_NAMES)
_PARENT_BYTES: Final = PARENT.encode()


class Mirror:
    """Tenants' flags and tokens' revocations as in Redis, absence included; bounded.

    It is trusted from `whole` until `broken`, and never longer than `TRUST_S` after the last `confirm`; no value in it
    longer than `MAX_AGE_S`. What it holds remains, trusted or not, as the last that is known.

    A Redis may be emptied, or another may take its place, but neither puts a token in force again: one that was found
    revoked stays so until its revocation was to expire, or Redis tells of a change of just that key; one that was
    revoked here, in any case.
    """

    def __init__(
        self, *, max_tenants: int = MAX_TENANTS, max_tokens: int = MAX_TOKENS, max_kept: int = MAX_KEPT
    ) -> None:
        self._flags: Table[TenantFlags | None] = Table(max_tenants)
        self._revoked: Table[bool | None] = Table(max_tokens)
        self._flags_aside: Table[TenantFlags | None] = Table(MAX_ASIDE)
        self._revoked_aside: Table[bool | None] = Table(MAX_ASIDE)
        self._all = (self._flags, self._revoked, self._flags_aside, self._revoked_aside)
        self._own, self._found = Kept(max_kept), Kept(max_kept)
        """Tokens revoked here, and those found revoked. No table holds one of these for good."""
        self._epoch = Epoch(-inf)
        self.parents = Parents(max_tenants, self._epoch)
        """Of which tenant each is a part."""
        self.hits = 0
        """Requests whose flags and revocations were all here."""
        self.misses = 0
        """Requests that had to ask Redis for them."""
        self._told: Callable[[Changed | None], None] | None = None
        self._heard: Callable[[tuple[str, ...]], None] | None = None

    def on_change(self, told: Callable[[Changed | None], None]) -> None:
        """Call `told` at each change, before anything has been read again; `None`: anything may have changed."""
        self._told = told

    def on_revocation(self, heard: Callable[[tuple[str, ...]], None]) -> None:
        """Call `heard` with the digests of tokens that Redis tells of: they are revoked there, or no longer."""
        self._heard = heard

    def trusted(self, now: float) -> bool:
        """Whether what is held may be taken for true."""
        return now < self._epoch.confirmed_at + TRUST_S

    # what Redis tells

    def whole(self, at: float) -> Epoch:
        """From the moment `at` Redis tells of every change. Returns what `confirm` wants to see."""
        self._begin(at)
        return self._epoch

    def confirm(self, epoch: Epoch, at: float) -> None:
        """Every change until `at` has been told. Without effect if there was a gap since `epoch` began."""
        if epoch is self._epoch:
            epoch.confirmed_at = max(epoch.confirmed_at, at)

    def broken(self) -> None:
        """Redis may change without telling."""
        self._begin(-inf)
        self._tell(None)

    def invalidate(self, keys: object) -> None:
        """These keys have changed: a list of bytes, as Redis sends it; anything else stands for all keys."""
        if not isinstance(keys, list) or not all(isinstance(key, bytes) for key in keys):
            for table in self._all:
                table.clear()
            self.parents.clear()
            self._tell(None)
            return
        tenants: list[str] = []
        digests: list[str] = []
        parents: list[str] = []
        for key in keys:
            if key.startswith(_REVOKED_BYTES):
                digest = key[len(_REVOKED_BYTES) :].decode("latin-1")
                self._revoked.drop(digest)
                self._revoked_aside.drop(digest)
                self._found.drop(digest)
                digests.append(digest)
            elif key.startswith(_LIMITS_BYTES):
                limited = key[len(_LIMITS_BYTES) :].decode("latin-1")
                self._flags.drop(limited)
                self._flags_aside.drop(limited)
                tenants.append(limited)
            elif key.startswith(_TENANT_BYTES):
                of_tenant, _, name = key[len(_TENANT_BYTES) :].rpartition(b":")
                tenant_id = of_tenant.decode("latin-1")
                if name in _FLAG_BYTES:
                    self._flags.drop(tenant_id)
                    self._flags_aside.drop(tenant_id)
                    tenants.append(tenant_id)
                elif name == _PARENT_BYTES:
                    self.parents.changed(tenant_id)
                    parents.append(tenant_id)
        if digests and self._heard is not None:
            self._heard(tuple(digests))
        if tenants or digests or parents:
            self._tell(Changed(tenants=tuple(tenants), digests=tuple(digests), parents=tuple(parents)))

    # what was read

    def begin(self, tenants: tuple[str, ...], digests: tuple[str, ...], now: float, *, verified: bool = True) -> Read:
        """Call it before the read is sent, and `end` afterwards. Nothing but these ids will be kept of it.

        Unless callers are `verified` it is kept aside: as last known, and without taking anybody else's room.
        """
        read = Read(tenants, digests, now, verified=verified)
        flags, revoked = self._tables(read)
        flags.begin(tenants, read)
        revoked.begin(digests, read)
        return read

    def keep(
        self, read: Read, flags: Mapping[str, Found[TenantFlags | None]], revoked: Mapping[str, Found[bool | None]]
    ) -> None:
        """Keep what the read has found of what it was begun for. A tenant's `None` (not readable) is a value too."""
        its_flags, its_revoked = self._tables(read)
        its_flags.keep(read, flags, self._epoch)
        for digest, its in revoked.items():
            if its.value and its_revoked.awaits(digest, read):
                until = read.at + its.ttl_s
                self._found.put(digest, until)
                self._put_over(digest, until)
        its_revoked.keep(read, {name: self._not_lost(name, its, read.at) for name, its in revoked.items()}, self._epoch)

    def end(self, read: Read) -> None:
        """The read is over, with or without an answer."""
        flags, revoked = self._tables(read)
        flags.end(read.tenants, read)
        revoked.end(read.digests, read)

    def revoke(self, digest: str, until: float) -> None:
        """Take the token for revoked from here on until `until`, whatever Redis says or loses."""
        self._own.put(digest, until)
        self._put_over(digest, until)
        self._tell(Changed(digests=(digest,)))

    # what is known

    def held(self, tenants: tuple[str, ...], digests: tuple[str, ...], now: float) -> Known | None:
        """All that is asked, if all of it is here and true; else `None`. One tenant and one token take 0.8 µs."""
        if not tenants and not digests:
            return {}, {}
        epoch = self._epoch
        if now < epoch.confirmed_at + TRUST_S:
            flags = self._flags.true(tenants, epoch, now)
            revoked = self._revoked.true(digests, epoch, now)
            if flags is not None and revoked is not None:
                self.hits += 1
                return flags, revoked
        self.misses += 1
        return None

    def last_known(self, tenants: Iterable[str], digests: Iterable[str], now: float) -> Known:
        """What was true at most `LAST_KNOWN_S` ago and has not expired; `None` for all else."""
        flags: Flags = {
            tenant_id: last_known(self._flags.newest(tenant_id, self._flags_aside), now) for tenant_id in tenants
        }
        revoked: Revoked = {
            digest: self.revoked_here(digest, now) or last_known(self._revoked.newest(digest, self._revoked_aside), now)
            for digest in digests
        }
        return flags, revoked

    def revoked_here(self, digest: str, now: float) -> bool:
        """Whether this token was revoked here, or found revoked, and that still holds."""
        return max(self._own.until(digest, now), self._found.until(digest, now)) > now

    def _put_over(self, digest: str, until: float) -> None:
        """What was read of the token before is not true any more."""
        self._revoked.put_over(digest, True, until)
        self._revoked_aside.put_over(digest, True, until)

    def _not_lost(self, digest: str, found: Found[bool | None], at: float) -> Found[bool | None]:
        """What was found of the token; that it is revoked where that is known, and lost."""
        if found.value:
            return found
        until = max(self._own.until(digest, at), self._found.until(digest, at))
        return Found(value=True, ttl_s=until - at) if until > at else found

    def _tell(self, changed: Changed | None) -> None:
        if self._told is not None:
            self._told(changed)

    def _begin(self, confirmed_at: float) -> None:
        """A new epoch: what was read before stays as last known, what is being read now is not kept."""
        self._epoch = Epoch(confirmed_at)
        self.parents.renew(self._epoch)
        for table in self._all:
            table.keep_nothing_read_now()

    def _tables(self, read: Read) -> tuple[Table[TenantFlags | None], Table[bool | None]]:
        return (self._flags, self._revoked) if read.verified else (self._flags_aside, self._revoked_aside)
