"""Training over WebSocket: the client's handshake becomes one with the service, and the two are bridged."""

from dataclasses import replace
from typing import Final

from twisted.internet.interfaces import IReactorTime

from bakerygw.core.forwarding import forward_headers, reply_headers
from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.origins import check_socket_origin
from bakerygw.core.outcome import SocketNotes, Trace
from bakerygw.core.problem import Refused
from bakerygw.core.routing import Route
from bakerygw.core.tenancy import owed_headers
from bakerygw.core.websocket import (
    VERSION,
    Handshake,
    NotOffered,
    answered_protocol,
    chosen_protocol,
    handshake_of,
    without_bearer,
    without_secrets,
)
from bakerygw.edge.admission import Grant
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import VIA, Proxy, refusal_of, reply_of
from bakerygw.edge.twisted_web.tunnel import Tunnel
from bakerygw.ports import SocketTelemetry, UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.realtime.held import Guard, Place
from bakerygw.realtime.training.bridge import Bridge
from bakerygw.realtime.training.dialling import Dialling
from bakerygw.realtime.training.sides import LegFactories, ServiceLeg

_WEBSOCKET_FIELDS: Final = b"sec-websocket-"


class Training:
    """The handler of the route to the training service's WebSocket."""

    def __init__(self, proxy: Proxy, guard: Guard, telemetry: SocketTelemetry, clock: IReactorTime) -> None:
        self._proxy, self._guard, self._telemetry, self._clock = proxy, guard, telemetry, clock
        self._legs = LegFactories(clock)

    async def reply_to(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The 101 once the service has given one, else its refusal; 426 and 400 for what is no handshake.

        Raises `Refused`, also where the place ends before the service has answered.
        """
        handshake = handshake_of(exchange.head, offers_upgrade=exchange.offers_upgrade)
        check_socket_origin(exchange.head, policies.cors.origins, cookie=False)
        service_name = self._proxy.service_of(route, grant, policies, trace)
        place = self._guard.enter("socket", grant)
        try:
            leg = self._legs.service()
            request = _request(exchange.head, handshake, leg.prepare(), route=route, grant=grant, trace=trace)
            response = await Dialling(place).answer(self._ask(service_name, request, policies, trace))
            if response.onward is None:
                place.leave()
                return _refusal(response, grant, policies, trace)
            return self._bridge(exchange, handshake, leg, response, policies=policies, place=place, trace=trace)
        except BaseException:
            place.leave()
            raise

    async def _ask(self, service: str, request: UpstreamRequest, policies: Policies, trace: Trace) -> UpstreamResponse:
        asked = self._clock.seconds()
        spared = False
        try:
            return await policies.upstreams.request(service, request)
        except UpstreamFailed as failed:
            spared = failed.code == "service-unavailable"
            raise refusal_of(failed, trace) from None
        finally:
            if not spared:
                trace.upstream_s = self._clock.seconds() - asked

    def _bridge(
        self,
        exchange: Exchange,
        handshake: Handshake,
        service: ServiceLeg,
        response: UpstreamResponse,
        *,
        policies: Policies,
        place: Place,
        trace: Trace,
    ) -> Reply:
        onward = response.onward
        assert onward is not None  # noqa: S101  what `reply_to` has looked at
        try:
            offered = without_bearer(handshake.protocols)
            chosen = chosen_protocol(response.headers, service.websocket_key, offered)
        except ValueError as error:
            # What depends on the offer must not count: any client could bring it about.
            onward.judge(None if isinstance(error, NotOffered) else _upgrade_failed(str(error)))
            onward.transport.abortConnection()
            raise _invalid(str(error), trace) from None
        client = self._legs.client()
        client.subprotocol = answered_protocol(chosen, handshake.protocols)
        tunnel = Tunnel(exchange, self._clock, answered=_nobody, ended=_nobody)
        tunnel.protocol = client
        client.shake_hands(tunnel, handshake.key)
        reply = tunnel.take_reply()
        assert reply is not None  # noqa: S101  autobahn answers at once
        trace.socket = SocketNotes()
        bridge = Bridge(client, service, place=place, notes=trace.socket, telemetry=self._telemetry, clock=self._clock)
        bridge.begin(tunnel, onward)
        place.hold(bridge)
        return reply.with_headers(_of_service(response.headers, policies))


def _nobody(_: object = None) -> None:
    """Hears it otherwise."""


def _request(
    head: RequestHead, handshake: Handshake, key: bytes, *, route: Route, grant: Grant, trace: Trace
) -> UpstreamRequest:
    """The handshake as the service gets it: under a key of our own, without what is meant for the gateway."""
    kept = tuple(pair for pair in head.headers if not _is_ours(pair[0].lower()))
    owed = owed_headers(grant.claims, grant.view, _bearer(grant), trace)
    headers = forward_headers(replace(head, headers=kept), owed, via=VIA)
    offered = without_bearer(handshake.protocols)
    if offered:
        headers += ((b"Sec-WebSocket-Protocol", ", ".join(offered).encode("ascii")),)
    headers += ((b"Sec-WebSocket-Version", VERSION), (b"Sec-WebSocket-Key", key))
    return UpstreamRequest(
        method="GET",
        target=without_secrets(head),
        headers=headers,
        body=None,
        first_byte_timeout_s=route.first_byte_timeout_s,
        upgrade=b"websocket",
    )


def _is_ours(name: bytes) -> bool:
    return name == b"authorization" or name.startswith(_WEBSOCKET_FIELDS)


def _bearer(grant: Grant) -> bytes | None:
    """The access token, whichever way it came; `None` where the credential was none, such as a ticket or a key."""
    if grant.claims is not None and grant.claims.forwarded is not None:
        return grant.claims.forwarded
    caller = grant.caller
    return caller.secret if caller is not None and caller.scheme == "bearer" else None


def _refusal(response: UpstreamResponse, grant: Grant, policies: Policies, trace: Trace) -> Reply:
    """The service's own refusal, as it is; anything else but 101 makes no sense as an answer to a handshake."""
    if response.status < 400:
        response.body.stop()
        raise _invalid(f"{response.status} to a handshake", trace)
    return reply_of("GET", response, grant, policies)


def _invalid(cause: str, trace: Trace) -> Refused:
    return refusal_of(_upgrade_failed(cause), trace)


def _upgrade_failed(cause: str) -> UpstreamFailed:
    return UpstreamFailed("upstream-invalid", "http_upgrade_failed", cause)


def _of_service(headers: Pairs, policies: Policies) -> Pairs:
    """What else the service says in its 101, such as a cookie."""
    passing = reply_headers(headers, authorities=policies.upstreams.all_authorities())
    return tuple(pair for pair in passing if not pair[0].lower().startswith(_WEBSOCKET_FIELDS))
