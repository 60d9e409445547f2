"""The state that all instances share."""

from collections.abc import Mapping
from typing import Literal, Protocol

from bakerygw.core.limits import Bucket, Level, TenantLimit, tenant_key
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.core.values import value


class StoreUnavailable(Exception):
    """The shared state could not be asked, or did not answer in time."""


@value
class AdmissionAsk:
    """All that one request wants from the shared state, in one round trip."""

    buckets: tuple[Bucket, ...] = ()
    """One token is taken from each, or, if any rule that is no shadow refuses, from none."""
    tenants: tuple[str, ...] = ()
    """Tenants whose flags are wanted."""
    digests: tuple[str, ...] = ()
    """Tokens of which it is wanted whether they are revoked, by `Claims.digest`."""
    verified: bool = False
    """Whether it is certain who asks. What anybody can name must not push out of a memory what real callers need."""
    limit_of: str | None = None
    """One of `tenants`: if it is under a limit for a time, a token is taken from that bucket too. For callers who are
    verified alone, or anybody could spend a tenant's budget."""
    demo: bool = False
    """A demo session asks."""
    peek: bool = False
    """Look at the buckets, take nothing."""


def with_limit(ask: AdmissionAsk, flags: TenantFlags | None) -> AdmissionAsk:
    """The ask with the bucket that its `limit_of` comes to, going by that tenant's flags."""
    limit = flags.limit if flags is not None else None
    buckets = ask.buckets
    if limit is not None and ask.limit_of is not None:
        buckets = (*buckets, Bucket(key=tenant_key(ask.limit_of, demo=ask.demo), rule=limit.rule))
    return AdmissionAsk(buckets=buckets, tenants=ask.tenants, digests=ask.digests, verified=ask.verified, peek=ask.peek)


@value
class AdmissionState:
    """The answer to an `AdmissionAsk`."""

    levels: tuple[Level, ...]
    """One for each bucket asked, in order; behind them the one of `limit_of`, if there is such a limit."""
    flags: Mapping[str, TenantFlags | None]
    """One for each tenant asked; `None` where nothing is known (store down, value unreadable)."""
    revoked: Mapping[str, bool | None]
    """One for each digest asked; `None` where nothing is known (store down)."""


class AdmissionStore(Protocol):
    """The state that decides whether a request may pass."""

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """Take tokens and read flags and revocations. Raises `StoreUnavailable`."""


class RevocationStore(Protocol):
    """Tokens that hold no more."""

    async def revoke(self, digest: str, until_unix_s: float) -> None:
        """Refuse the token with this digest from here on; it need not be remembered after `until_unix_s`.

        In force on this instance at once, on the others when the call ends; a later call replaces the moment.
        Raises `StoreUnavailable` if the others may not have learned of it.
        """


class TenantStore(Protocol):
    """Tenant flags as operators see and set them. Each call raises `StoreUnavailable`.

    A change is in force on this instance when the call ends.
    """

    async def flags(self, tenant_id: str) -> TenantFlags:
        """The flags now."""

    async def set_read_only(self, tenant_id: str, read_only: ReadOnly) -> None:
        """Put the tenant on hold, replacing an earlier hold."""

    async def clear_read_only(self, tenant_id: str) -> None:
        """End the hold."""

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        """Make every token issued before `at` (Unix seconds) stale."""


class TenantLimits(Protocol):
    """Limits of tenants for a time, as operators see and set them. Each call raises `StoreUnavailable`.

    A change is in force on this instance when the call ends, on the others within a second.
    """

    async def limit(self, tenant_id: str) -> TenantLimit | None:
        """The limit now."""

    async def set_limit(self, tenant_id: str, limit: TenantLimit) -> None:
        """Limit the tenant until the rule's end, replacing an earlier limit."""

    async def clear_limit(self, tenant_id: str) -> None:
        """End the limit."""


class Hierarchy(Protocol):
    """Tenants that are part of others."""

    async def ancestors(self, tenant_id: str) -> tuple[str, ...]:
        """The tenant that it is part of, the one that that is part of, and so on: at most eight, none twice.

        Raises `StoreUnavailable`.
        """


class StoreLink(Protocol):
    """The state of the way to the shared store, for health."""

    @property
    def status(self) -> Literal["connected", "disconnected", "embedded"]:
        """As `GET /health` tells it."""


class Records(Protocol):
    """Small values that all instances share, each under a key of its own. Each call raises `StoreUnavailable`.

    Keys say what they are for, e.g. `session:<digest>`, and hold no spaces; values are not empty; times to live are
    seconds, `None` for ever.
    """

    async def get(self, key: str) -> bytes | None:
        """What is there now; `None` if nothing is."""

    async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Put it there, whatever was there before."""

    async def claim(self, key: str, value: bytes, *, ttl_s: float | None) -> bool:
        """Put it there if nothing is; whether it was put. Of several at once exactly one succeeds."""

    async def replace(self, key: str, expected: bytes, value: bytes | None, *, ttl_s: float | None) -> bool:
        """Put it there, or delete what is there (`None`), if that is still `expected`; whether it was."""

    async def delete(self, key: str) -> None:
        """Have nothing there."""

    async def add(self, key: str, member: str) -> None:
        """Put a member into the set at `key`, which lives until it is empty."""

    async def remove(self, key: str, member: str) -> None:
        """Take it out again."""

    async def members(self, key: str) -> frozenset[str]:
        """All that are in the set."""
