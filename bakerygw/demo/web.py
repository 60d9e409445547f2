"""JSON over HTTP for the demo services: a call and its answer as values, and the loopback site that carries them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import parse_qsl, unquote

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

MAX_BODY_BYTES: Final = 65_536
"""Bytes of a request body that a demo service takes; more is 413."""


class ServiceError(Exception):
    """The answer is an error: a status and a sentence for the caller."""

    def __init__(self, status: int, detail: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as a service sees it."""

    method: str
    """HEAD arrives as GET."""
    target: str
    """The request target as received."""
    path: tuple[str, ...]
    """Decoded segments, without empty ones at either end."""
    query: Mapping[str, str]
    """The last value of each parameter."""
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header field, `None` if it is absent or empty."""
        wanted = name.lower()
        return next((value for field, value in self.headers if field.lower() == wanted), None) or None

    def number(self, name: str, default: int, maximum: int) -> int:
        """A whole, non-negative query parameter, at most `maximum`. Raises `ServiceError` 400."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ServiceError(400, f"{name} must be a whole number")
        return min(int(text), maximum)

    def json(self) -> dict[str, object]:
        """The body as a JSON object (RFC 8259). Raises `ServiceError` 400."""
        try:
            document = json.loads(self.body, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            raise ServiceError(400, "the body must be a JSON object") from None
        if not isinstance(document, dict):
            raise ServiceError(400, "the body must be a JSON object")
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service answers; a body of `None` sends none at all."""

    status: int = 200
    body: object = None
    headers: tuple[tuple[str, str], ...] = ()


def scope_of(header: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Whose data a request is about: the tenant, and the session of the demo or ``; `None` without a tenant.

    `header` gives a field's value by its lower-case name.
    """
    tenant_id = header("x-tenant-id")
    if not tenant_id:
        return None
    return tenant_id, (header("x-demo-session-id") or "") if header("x-is-demo") == "true" else ""


Service = Callable[[Call], Answer]
"""The whole of a demo service. Raises `ServiceError` for errors that the caller can mend."""

Upgrades = Mapping[str, IResource]
"""Paths where WebSockets are opened, and what takes their requests over from HTTP."""


def not_allowed(*methods: str) -> ServiceError:
    """405 with the methods that a resource has (RFC 9110 15.5.6)."""
    return ServiceError(405, "this resource does not take that method", headers=(("Allow", ", ".join(methods)),))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


class LoopbackRequest(Request):
    """A request of which no more is kept than a service would read."""

    def handleContentChunk(self, data: bytes) -> None:
        """Keep one byte past the limit, which shows that the body was too long."""
        room = MAX_BODY_BYTES + 1 - (self.content.tell() if self.content is not None else 0)
        if room > 0:
            super().handleContentChunk(data[:room])


class ServiceResource(Resource):
    """Carries a `Service` on every path."""

    isLeaf = True
    _log: ClassVar[Logger] = Logger()

    def __init__(self, name: str, service: Service, upgrades: "Upgrades") -> None:
        super().__init__()
        self._name, self._service, self._upgrades = name, service, upgrades

    def render(self, request: Request) -> Any:
        """Answer at once; a fault of our own is a bare JSON 500 and a log entry."""
        try:
            upgrade = self._upgrades.get(request.path.decode("latin-1"))
            if upgrade is not None:
                if (request.getHeader("upgrade") or "").lower() != "websocket":
                    raise ServiceError(426, "open a WebSocket here", headers=(("Upgrade", "websocket"),))
                return upgrade.render(request)
            answer = self._answer(request)
        except ServiceError as fault:
            answer = Answer(status=fault.status, body={"detail": fault.detail}, headers=fault.headers)
        except Exception:
            self._log.failure("demo.failed", failure=Failure(), service=self._name)
            answer = Answer(status=500, body={"detail": "internal error"})
        _send(request, answer)
        return NOT_DONE_YET

    def _answer(self, request: Request) -> Answer:
        call = _call(request)
        if len(call.body) > MAX_BODY_BYTES:
            raise ServiceError(413, f"a body may have {MAX_BODY_BYTES} bytes")
        if call.path == ("health",) and call.method == "GET":
            return Answer(body={"status": "healthy", "service": self._name})
        return self._service(call)


def _call(request: Request) -> Call:
    target = request.uri.decode("latin-1")
    path, _, query = target.partition("?")
    method = request.method.decode("latin-1")
    return Call(
        method="GET" if method == "HEAD" else method,
        target=target,
        path=tuple(unquote(segment) for segment in path.strip("/").split("/")),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        headers=tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        ),
        body=request.content.read() if request.content is not None else b"",
    )


def _send(request: Request, answer: Answer) -> None:
    request.setResponseCode(answer.status)
    request.setHeader(b"Server", b"bakery-demo")
    for name, value in answer.headers:
        request.setHeader(name.encode("ascii"), value.encode("ascii"))
    if answer.body is None:
        request.defaultContentType = None
        if answer.status != 204:
            request.setHeader(b"Content-Length", b"0")
    else:
        # Lone surrogates are legal in JSON's escapes and have no UTF-8.
        body = json.dumps(answer.body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
    request.finish()


class Connection(Protocol):
    """What can be cut."""

    def abort(self) -> None:
        """Cut at once; it is discarded when its end is known."""


class Connections:
    """The open connections of one site, whatever is spoken on them."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        self._emptied: Deferred[None] | None = None

    def add(self, connection: Connection) -> None:
        """One is open."""
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        """It has ended, or others look after it."""
        self._open.discard(connection)
        if not self._open and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    async def drop_all(self) -> None:
        """Cut every connection, idle or busy, and return when the last has ended."""
        if not self._open:
            return
        emptied: Deferred[None] = Deferred()
        self._emptied = emptied
        for connection in tuple(self._open):
            connection.abort()
        await emptied


class LoopbackChannel(HTTPChannel):
    """One connection, known to its site for as long as it is open."""

    site: "LoopbackSite"

    def connectionMade(self) -> None:
        """Enrol."""
        super().connectionMade()
        self.site.connections.add(self)

    def abort(self) -> None:
        """Cut the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave."""
        super().connectionLost(reason)
        self.site.connections.discard(self)


class LoopbackSite(Site):
    """HTTP/1.1 alone, whatever packages are installed, for one service; no access log and no tracebacks."""

    protocol = LoopbackChannel  # type: ignore[assignment]
    noisy = False

    def __init__(
        self,
        name: str,
        service: Service,
        reactor: object,
        *,
        upgrades: Upgrades = MappingProxyType({}),
        connections: Connections | None = None,
    ) -> None:
        """`reactor` is an `IReactorTime`; for the idle timeout. `connections` are also those of `upgrades`."""
        super().__init__(
            ServiceResource(name, service, upgrades), LoopbackRequest, reactor=reactor, parsePOSTFormSubmission=False
        )
        self.connections = Connections() if connections is None else connections

    def log(self, request: HTTPRequest) -> None:
        """Say nothing: the gateway tells of each request already."""

    async def drop_all(self) -> None:
        """Cut every connection, idle or busy, and return when the last has ended."""
        await self.connections.drop_all()
