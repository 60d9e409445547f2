"""What the gateway needs from its outside, as protocols: the policies know these and nothing behind them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from bakerygw.core.claims import Claims
from bakerygw.core.http import BodySource, Pairs, RequestHead, RequestSource
from bakerygw.core.limits import Bucket, Level
from bakerygw.core.outcome import Outcome, Trace
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


@value
class AdmissionState:
    """The answer to an `AdmissionAsk`."""

    levels: tuple[Level, ...]
    """One for each bucket asked, in order."""
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


class StoreLink(Protocol):
    """The state of the way to the shared store, for health."""

    @property
    def status(self) -> Literal["connected", "disconnected", "embedded"]:
        """As `GET /health` tells it."""


class TokenRefused(Exception):
    """A token is not acceptable. `code` is a problem code, `reason` a short constant for log and metrics."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Tokens(Protocol):
    """Bearer tokens into claims."""

    def known(self, token: bytes) -> Claims | None:
        """Claims of a token that this instance has verified before and that has not expired. No signature check."""

    def peek(self, token: bytes) -> Claims | None:
        """What a token says of itself, unverified: fit for choosing what to prefetch, never for a decision."""

    def verify(self, token: bytes) -> Claims:
        """Claims of a good token, remembered for `known`. Raises `TokenRefused`."""


class UpstreamFailed(Exception):
    """No usable response came from a service."""

    def __init__(self, code: str, error: str, cause: str, *, retry_after_s: int | None = None) -> None:
        """`code`: upstream-unreachable, upstream-timeout, upstream-invalid or service-unavailable;
        `error`: the RFC 9209 error type for `Proxy-Status`, e.g. connection_refused; `cause`: for the log;
        `retry_after_s`: when it is worth asking again, where that is known."""
        super().__init__(cause)
        self.code, self.error, self.cause, self.retry_after_s = code, error, cause, retry_after_s


@value
class UpstreamRequest:
    """One request as it goes to a service."""

    method: str
    target: bytes
    headers: Pairs
    """End-to-end headers, without Host and framing, which the connection writes."""
    body: RequestSource | None
    """`None`: no body at all."""
    first_byte_timeout_s: float | None = None
    """`None`: the configured one."""


@value
class UpstreamResponse:
    """A final response (never 1xx); its body must be started, taken whole or stopped."""

    status: int
    headers: Pairs
    """As received, framing and hop-by-hop headers included."""
    body: BodySource
    authority: str
    """host[:port] of the service that answered."""


class Upstreams(Protocol):
    """The services, by name."""

    def has(self, service: str) -> bool:
        """Whether a URL is configured."""

    def all_authorities(self) -> Collection[str]:
        """host[:port] of every service at all its URLs."""

    async def request(self, service: str, request: UpstreamRequest) -> UpstreamResponse:
        """Send to one of the service's URLs. Raises `UpstreamFailed`; cancelling ends the exchange at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """What the prober last saw of one service."""

    status: Literal["healthy", "unhealthy", "unknown"]
    latency_ms: float | None
    since: float | None
    """Unix seconds at which the status became what it is."""
    checked_at: float | None
    detail: str
    """Why it is not healthy, in a few words; empty when it is."""


class HealthSource(Protocol):
    """Answers about services from the cache, at once."""

    def services(self) -> Mapping[str, ServiceHealth]:
        """By service name in lower case with `_` (auth, ai_insights, …); only those with a URL."""


class Telemetry(Protocol):
    """Where a request's beginning and end are told. Never raises, never waits."""

    def began(self, trace: Trace) -> None:
        """The line before."""

    def ended(self, outcome: Outcome) -> None:
        """The line after, and the metrics."""

    def auth_attempt(self, status: str) -> None:
        """`status`: ok, or a token problem's code."""

    def token_cache(self, hit: bool) -> None:
        """One look-up in the cache of verified tokens."""


class StoreTelemetry(Protocol):
    """What the store's adapter reports."""

    def round_trip(self, seconds: float) -> None:
        """One call answered."""

    def failure(self, kind: str) -> None:
        """`kind`: timeout, disconnected, error or open (spared by the breaker)."""

    def degraded(self, yes: bool) -> None:
        """Whether admission runs on local state now."""


__all__ = [
    "AdmissionAsk",
    "AdmissionState",
    "AdmissionStore",
    "HealthSource",
    "RequestHead",
    "RevocationStore",
    "ServiceHealth",
    "StoreLink",
    "StoreTelemetry",
    "StoreUnavailable",
    "Telemetry",
    "TenantStore",
    "TokenRefused",
    "Tokens",
    "UpstreamFailed",
    "UpstreamRequest",
    "UpstreamResponse",
    "Upstreams",
]
