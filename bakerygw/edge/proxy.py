"""The handler of proxied routes: one exchange with a service."""

from collections.abc import Coroutine
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from bakerygw.core.forwarding import forward_headers, reply_headers
from bakerygw.core.http import Pairs, Reply, RequestHead, RequestSource
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.routing import Route
from bakerygw.core.sessions import private_headers
from bakerygw.core.tenancy import owed_headers
from bakerygw.edge.admission import Grant
from bakerygw.edge.body import RequestBody, too_large
from bakerygw.edge.body_sources import HeldBody
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.policies import Policies
from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse

VIA: Final = b"1.1 bakerygw"
RETRY_AFTER_SERVICE_S: Final = 5

_DETAILS: Final = {
    "upstream-unreachable": "The service could not be reached; try again shortly.",
    "upstream-timeout": "The service took too long; look whether it did what was asked before you repeat it.",
    "upstream-invalid": "The service's answer could not be understood; report the request_id if that stays so.",
    "service-unavailable": "The service takes no more requests at the moment; try again shortly.",
}


class Proxy:
    """Sends requests to services and turns their answers, or failures, into replies."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def reply_to(
        self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace
    ) -> Coroutine[Any, Any, Reply]:
        """The service's answer, streamed. Raises `Refused` where there is none, at once or when it is awaited."""
        head, body = exchange.head, exchange.body
        service = self.service_of(route, grant, policies, trace)
        body.cap = route.max_body if route.max_body is not None else policies.max_body_bytes
        _check_sound(body)
        if max(head.length or 0, body.received) > body.cap:  # some of it may be here before its cap was known
            raise Refused(too_large(body.cap))
        return self._answer(
            service,
            _request(head, None if head.length == 0 else body, route, grant, trace),
            body,
            grant=grant,
            policies=policies,
            trace=trace,
        )

    def send(
        self, head: RequestHead, body: bytes, *, route: Route, grant: Grant, policies: Policies, trace: Trace
    ) -> Coroutine[Any, Any, Reply]:
        """The service's answer to a request whose body is in memory, and may be another than the client's.

        Raises `Refused` where there is none, at once or when it is awaited.
        """
        service = self.service_of(route, grant, policies, trace)
        request = _request(head, HeldBody(body) if body else None, route, grant, trace)
        return self._answer(service, request, None, grant=grant, policies=policies, trace=trace)

    async def _answer(
        self,
        service: str,
        request: UpstreamRequest,
        body: RequestBody | None,
        *,
        grant: Grant,
        policies: Policies,
        trace: Trace,
    ) -> Reply:
        """`body` is the client's, if it is on its way to the service."""
        asked = self._clock.seconds()
        spared = False
        try:
            response = await policies.upstreams.request(service, request)
        except UpstreamFailed as failed:
            spared = failed.code == "service-unavailable"
            if body is not None:
                _check_sound(body)  # the client's own fault may have broken the exchange
            raise refusal_of(failed, trace) from None
        finally:
            if not spared:  # nothing was sent then, and nobody waited for an answer
                trace.upstream_s = self._clock.seconds() - asked
        return reply_of(request.method, response, grant, policies)

    def service_of(self, route: Route, grant: Grant, policies: Policies, trace: Trace) -> str:
        """Whom to ask; in the request's notes, too."""
        service = route.service or ""
        if grant.claims is not None and grant.claims.is_demo and policies.upstreams.has("demo:" + service):
            service = "demo:" + service
        elif not policies.upstreams.has(service):
            raise refuse("service-unavailable", f"The service {service!r} is not set up here; ask the operators.")
        trace.service = service
        return service


def _request(
    head: RequestHead, body: RequestSource | None, route: Route, grant: Grant, trace: Trace
) -> UpstreamRequest:
    claims = grant.claims
    owed = owed_headers(claims, grant.view, claims.forwarded if claims is not None else None, trace)
    return UpstreamRequest(
        method=head.method,
        target=head.target,
        headers=forward_headers(head, owed, via=VIA),
        body=body,
        first_byte_timeout_s=route.first_byte_timeout_s,
    )


def _check_sound(body: RequestBody) -> None:
    """Refuse what the client itself has spoilt."""
    if body.failure is not None:
        raise Refused(body.failure)


def reply_of(method: str, response: UpstreamResponse, grant: Grant, policies: Policies) -> Reply:
    """A service's response as its caller is to get it."""
    length = None
    if method == "HEAD" or response.status == 304:
        length = _announced(response.headers)
    reply = Reply(
        status=response.status,
        headers=reply_headers(response.headers, authorities=policies.upstreams.all_authorities()),
        body=response.body,
        length=length,
    )
    return reply if grant.claims is None or grant.claims.forwarded is None else _private(reply)


def _private(reply: Reply) -> Reply:
    """The reply for its caller alone."""
    headers = private_headers(reply.headers)
    return Reply(status=reply.status, headers=headers, body=reply.body, length=reply.length, close=reply.close)


def _announced(headers: Pairs) -> int | None:
    """The `Content-Length` of an answer that has no body to measure."""
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


def refusal_of(failed: UpstreamFailed, trace: Trace) -> Refused:
    """What the client is told of a service that gave no usable response; more exact, in the request's notes, too."""
    trace.cause = failed.cause
    retry_s = failed.retry_after_s
    if retry_s is None and failed.code == "service-unavailable":
        retry_s = RETRY_AFTER_SERVICE_S
    status = f"bakerygw; error={failed.error}".encode("ascii")
    return Refused(
        Problem(
            code=failed.code,
            detail=_DETAILS[failed.code],
            headers=((b"Proxy-Status", status),),
            retry_after_s=retry_s,
            reason=failed.error,
        )
    )
