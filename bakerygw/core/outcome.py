"""What became of one request: the one value that the log and the metrics are made from."""

from dataclasses import dataclass

from bakerygw.core.values import value


@dataclass(slots=True, kw_only=True)
class SocketNotes:
    """What is told of a WebSocket besides what is told of every request."""

    close_code: int = 1006
    """RFC 6455 section 7.4; 1005: a close frame without a code, 1006: the connection ended without a close frame."""
    closed_by: str = "client"
    """client, service or gateway: who closed first, or fell silent."""
    why: str | None = None
    """Why the gateway has ended it."""
    messages_in: int = 0
    """From the client."""
    messages_out: int = 0
    """To the client."""
    unread_s: float = 0.0
    """For how long nothing was read from the client, since it had sent too many frames."""
    ended: bool = False
    """How it ended is known."""


@dataclass(slots=True, kw_only=True)
class Trace:
    """The notes taken along one request, filled in as its steps become known."""

    request_id: str
    started: float
    """Seconds on the monotonic clock."""
    traceparent: bytes = b""
    method: str = "OTHER"
    path: str = ""
    """The raw path, printable, for the log alone."""
    route: str = "(none)"
    """The route's template, for log and metrics."""
    client: str = ""
    user_id: str | None = None
    tenant_id: str | None = None
    service: str | None = None
    reason: str | None = None
    """Problem code, or what cut the exchange short."""
    cause: str | None = None
    """More exact than the reason, for operators only."""
    upstream_s: float | None = None
    """Seconds from the request being handed to the service until its response head, or until it was clear that there
    would be none; `None` where nothing was sent, as while its breaker is open."""
    begun_s: float | None = None
    """Seconds until an answer that has no end of its own had begun: how long it lasts is its client's affair."""
    limited: str | None = None
    """The names of the policies whose limits were exceeded, shadow policies included."""
    exceeded: tuple[tuple[str, bool], ...] = ()
    """The same one by one, each with whether it is a shadow."""
    private: bool = False
    """Its URL may hold a credential."""
    socket: SocketNotes | None = None
    """Of a request that has become a WebSocket."""

    def exceed(self, policy: str, shadow: bool) -> None:
        """Note that the limit of this policy was exceeded."""
        self.exceeded = (*self.exceeded, (policy, shadow))
        self.limited = ", ".join(name for name, _ in self.exceeded)


@value
class Outcome:
    """How it ended."""

    trace: Trace
    status: int
    """The status sent; 499 when the client left before one was sent."""
    bytes_in: int
    """Request body bytes taken from the client."""
    bytes_out: int
    """Response body bytes given to the client."""
    duration_s: float
