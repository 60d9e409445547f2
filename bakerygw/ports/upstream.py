"""The services behind the gateway."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bakerygw.core.http import BodySource, Pairs, RequestSource
from bakerygw.core.values import value


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
    upgrade: bytes | None = None
    """The protocol in which a GET without a body offers to go on (RFC 9110 section 7.8)."""


class Heir(Protocol):
    """Who has the bytes of a connection that goes on in another protocol."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the service."""

    def connectionLost(self, reason: Any) -> None:
        """The connection is lost; called once, with Twisted's failure."""


class Onward(Protocol):
    """A connection to a service that goes on in another protocol. It is not read until it is taken, or aborted."""

    @property
    def transport(self) -> Any:
        """Twisted's transport, TCP or TLS, whose reading is paused."""

    def take(self, heir: Heir) -> None:
        """From here on `heir` has what comes, and at once what has come."""

    def judge(self, failure: UpstreamFailed | None = None) -> None:
        """Say how the service does in that protocol, which counts for where others go. Only the first call does."""

    def hear(self, judged: Callable[[UpstreamFailed | None], None]) -> None:
        """`judged` is called with the judgement, if there ever is one."""


@value
class UpstreamResponse:
    """A final response (1xx only as 101 to an offer to upgrade); its body must be started, taken whole or stopped."""

    status: int
    headers: Pairs
    """As received, framing and hop-by-hop headers included."""
    body: BodySource
    authority: str
    """host[:port] of the service that answered."""
    onward: Onward | None = None
    """Of a 101: the connection, to be taken or aborted. Its body is empty."""


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
