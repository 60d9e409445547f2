"""`twisted.web` resources on the gateway's own connections.

The gateway's own pages are plain `Reply`s and need none of this; it is for what exists as a resource already, such as
autobahn's `WebSocketResource`.
"""

from copy import copy
from io import BytesIO

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource, Resource, getChildForRequest
from twisted.web.server import Site

from bakerygw.core.http import Reply
from bakerygw.core.problem import Problem, Refused
from bakerygw.edge.body import collect
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.twisted_web.rendering import OwnRequest, ResourceChannel


class ResourceHandler:
    """Answers exchanges with resources. Request bodies are read whole, and may have `max_body_bytes` at most."""

    def __init__(self, *, clock: IReactorTime, max_body_bytes: int) -> None:
        self._clock, self._max_body_bytes = clock, max_body_bytes
        self._site = _Site(clock)

    async def reply_to(self, exchange: Exchange, resource: IResource, *, upgrade: bytes | None = None) -> Reply:
        """What the tree under `resource` answers to this request.

        `upgrade`, in lower case, names the protocol for which the resource may take the connection, as autobahn's
        does; a request that does not offer it is refused. Without `upgrade`, offers are ignored (RFC 9110 §7.8), and
        `request.channel.transport` is `None`.

        Raises `Refused` for a body that is too large or incomplete, and whatever a resource raises, or hands to
        `Request.processingFailed`, before its reply has begun. Cancelling tells the resource that the client left.
        """
        if upgrade is not None and not _offers(exchange, upgrade):
            raise _upgrade_required(upgrade)
        content = await collect(exchange.body, self._max_body_bytes)
        upgradable = upgrade is not None
        return await ResourceChannel(exchange, resource, self._site, self._clock, upgradable).reply(content)


def _offers(exchange: Exchange, protocol: bytes) -> bool:
    if not exchange.offers_upgrade or exchange.head.method != "GET":
        return False
    values = exchange.head.fields.get(b"upgrade", ())
    return any(token.strip().lower() == protocol for value in values for token in value.split(b","))


def _upgrade_required(protocol: bytes) -> Refused:
    detail = f"Ask by a GET over HTTP/1.1 that offers to upgrade to {protocol.decode()}."
    return Refused(
        Problem(code="upgrade-required", detail=detail, headers=((b"Upgrade", protocol), (b"Connection", b"Upgrade")))
    )


class _Site(Site):
    """What requests ask of their site. Each of them brings its own root."""

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(Resource(), reactor=clock, parsePOSTFormSubmission=False)

    def getResourceFor(self, request: OwnRequest) -> IResource:
        """The resource for the request's path."""
        request.site = self
        request.sitepath = copy(request.prepath)  # type: ignore[attr-defined]  # Site sets it too
        resource: IResource = getChildForRequest(request.channel.resource, request)
        return resource

    def getContentFile(self, length: int | None) -> BytesIO:
        """In memory, as it is already."""
        return BytesIO()
