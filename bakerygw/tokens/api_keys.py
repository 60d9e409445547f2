"""API keys as `Credentials`: the record is read once, and again every half minute while its key is in use."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Final

from bakerygw.core.api_keys import claims_of, digest_of, id_of
from bakerygw.core.claims import Claims, ClaimsError
from bakerygw.core.recent import Recent
from bakerygw.ports import KeyStore, KeyUnreadable, StoreUnavailable, TokenRefused

FRESH_S: Final = 30.0
"""How long a record is taken for true without being read again. That a key was revoked is told of at once."""
LAST_KNOWN_S: Final = 60.0
"""How long it stands in for one that cannot be read."""
RETRY_S: Final = 2.5
"""Between two tries to read one that could not be read: so seldom that one which never can, as it is of another type or
huge, does not make the shared state look broken to everybody."""
BAD_S: Final = 10.0
"""How long a bad key is refused without asking again: no key that was bad becomes good."""
MAX_KEYS: Final = 10_000
"""About 20 MB; beyond it the least recently used goes first."""

CODES: Final = {"revoked": "token-revoked", "expired": "token-expired", "replaced": "token-revoked"}
"""Problem codes by reason; every other one is token-invalid."""


class _Known:
    """A good key's claims, and how long they may be used."""

    __slots__ = ("claims", "fresh_until", "read_at")

    def __init__(self, claims: Claims, read_at: float) -> None:
        self.claims, self.read_at, self.fresh_until = claims, read_at, read_at + FRESH_S


class ApiKeys:
    """`Credentials` over a `KeyStore`. What it remembers is found by SHA-256, so it holds no usable key.

    `pepper` is what the records are sealed with besides. `now` is Unix seconds, and `clock` seconds that are never set
    back.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        pepper: bytes,
        now: Callable[[], float],
        clock: Callable[[], float],
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._pepper = pepper
        self.signer = sha256(b"bakerygw API keys\n" + pepper).digest()
        """The `Claims.signer` of every key that is sealed with this pepper."""
        self._store, self._now, self._clock = store, now, clock
        self._good: Recent[str, _Known] = Recent(max_keys)
        self._bad: Recent[str, tuple[float, str]] = Recent(max_keys)
        self._failed: Recent[str, float] = Recent(max_keys)
        """By id, when to try again."""

    def known(self, secret: bytes) -> Claims | None:
        """Claims of a key whose record was read not long ago."""
        digest = digest_of(secret)
        entry = self._good.get(digest)
        if entry is None or self._clock() >= entry.fresh_until or self._now() >= entry.claims.exp:
            return None
        self._good.use(digest)
        return entry.claims

    def peek(self, secret: bytes) -> Claims | None:
        """What was read of it last, were it long ago, if it was good then: a key itself tells nothing."""
        entry = self._good.get(digest_of(secret))
        return entry.claims if entry is not None else None

    async def verify(self, secret: bytes) -> Claims:
        """Claims of a good key. Raises `TokenRefused` or `StoreUnavailable`."""
        known = self.known(secret)
        if known is not None:
            return known
        key_id = id_of(secret)
        if key_id is None:
            raise TokenRefused("token-invalid", "key-form")
        digest = digest_of(secret)
        self._check_not_bad(digest)
        began = self._clock()
        if began < (self._failed.get(key_id) or 0.0):
            return self._last_known(digest)
        try:
            claims = await self._read(key_id, secret, digest)
        except StoreUnavailable:
            self._failed.put(key_id, self._clock() + RETRY_S)
            return self._last_known(digest)
        except ClaimsError as error:
            self._good.drop(digest)
            self._bad.put(digest, (began + BAD_S, error.reason))
            raise _refused(error.reason) from error
        self._good.put(digest, _Known(claims, began))
        return claims

    async def _read(self, key_id: str, secret: bytes, digest: str) -> Claims:
        try:
            record = await self._store.find(key_id)
        except KeyUnreadable as error:
            raise ClaimsError("record") from error
        if record is None:
            raise ClaimsError("unknown")
        return replace(claims_of(record, secret, digest, self._pepper, self._now()), signer=self.signer)

    def _check_not_bad(self, digest: str) -> None:
        bad = self._bad.get(digest)
        if bad is not None and self._clock() < bad[0]:
            raise _refused(bad[1])

    def _last_known(self, digest: str) -> Claims:
        """What holds while the record cannot be read. Raises `StoreUnavailable` if nothing does."""
        entry, now = self._good.get(digest), self._clock()
        if entry is None or now >= entry.read_at + LAST_KNOWN_S or self._now() >= entry.claims.exp:
            raise StoreUnavailable("API key")
        entry.fresh_until = min(now + RETRY_S, entry.read_at + LAST_KNOWN_S)
        return entry.claims


def _refused(reason: str) -> TokenRefused:
    return TokenRefused(CODES.get(reason, "token-invalid"), "key-" + reason)
