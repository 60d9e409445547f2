"""Questions to the tenant and the auth service: whatever these do, an answer is whole, short, in time, or none."""

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.claims import Subscription
from bakerygw.core.http import BodySink
from bakerygw.ports import LookupFailed, UpstreamFailed, UpstreamResponse
from bakerygw.upstream.enquiries import MAX_ANSWER_BYTES, ServiceEnquiries
from tests.deferreds import failure_of, success_of
from tests.services import Services

PRO = Subscription(tier="professional", status="active", valid_until=1_767_225_600.0)
SAID = json.dumps({"tier": "professional", "status": "active", "valid_until": "2026-01-01T00:00:00Z"}).encode()
WHO = ((b"X-User-Id", b"u1"),)


class Body:
    """An answer's body, pushed by the test."""

    def __init__(self, data: bytes | None = None, length: int | None = None) -> None:
        self._data, self.length = data, length
        self.sink: BodySink | None = None
        self.stopped = 0

    def whole(self) -> bytes | None:
        return self._data

    def start(self, sink: BodySink) -> None:
        self.sink = sink

    def pause(self) -> None:
        raise AssertionError

    def resume(self) -> None:
        raise AssertionError

    def stop(self) -> None:
        self.stopped += 1


def said(body: Body, status: int = 200) -> UpstreamResponse:
    return UpstreamResponse(status=status, headers=(), body=body, authority="10.0.0.9:80")


def ask(services: Services, clock: Any = None, *, demo: bool = False, tenant_id: str = "t1") -> "Deferred[Any]":
    enquiries = ServiceEnquiries(clock or Clock())
    return Deferred.fromCoroutine(enquiries.subscription(services, tenant_id, demo=demo, headers=WHO))


def kind_of(deferred: "Deferred[Any]") -> str:
    failed = failure_of(deferred, LookupFailed)
    assert isinstance(failed, LookupFailed)
    return failed.kind


def test_the_tenant_service_is_asked_for_the_subscription_as_it_is():
    services = Services({"tenant"}, said(Body(SAID)))
    assert success_of(ask(services)) == PRO
    ((service, request),) = services.asked
    assert service == "tenant"
    assert (request.method, request.target) == ("GET", b"/api/v1/tenants/t1/subscription/status")
    assert request.headers == WHO
    assert request.body is None


def test_the_auth_service_is_asked_for_the_email_address():
    services = Services({"auth"}, said(Body(b'{"user_id":"u1","email":"ana@b.example"}')))
    asked = Deferred.fromCoroutine(ServiceEnquiries(Clock()).email(services, "u1", demo=False, headers=WHO))
    assert success_of(asked) == "ana@b.example"
    assert [(service, request.target) for service, request in services.asked] == [("auth", b"/api/v1/auth/me")]


@pytest.mark.parametrize(
    ("names", "demo", "service"),
    [
        ({"tenant", "demo:tenant"}, True, "demo:tenant"),
        ({"tenant", "demo:tenant"}, False, "tenant"),
        ({"tenant"}, True, "tenant"),
    ],
)
def test_demo_sessions_ask_the_demo_service_where_there_is_one(names, demo, service):
    services = Services(names, said(Body(SAID)))
    success_of(ask(services, demo=demo))
    assert services.asked[0][0] == service


def test_a_service_without_address_is_unavailable():
    assert kind_of(ask(Services({"demo:tenant"}))) == "unavailable"


@pytest.mark.parametrize("tenant_id", [".", ".."])
def test_an_id_that_would_lead_to_another_path_is_asked_of_nobody(tenant_id):
    services = Services({"tenant"}, said(Body(SAID)))
    assert kind_of(ask(services, tenant_id=tenant_id)) == "invalid"
    assert services.asked == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "unknown"),
        *((status, "unavailable") for status in (201, 204, 301, 302, 307, 400, 429, 500, 503)),
    ],
)
def test_only_a_200_answers_and_no_redirect_is_followed(status, kind):
    body = Body(SAID)
    services = Services({"tenant"}, said(body, status))
    assert kind_of(ask(services)) == kind
    assert body.stopped == 1
    assert len(services.asked) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("upstream-timeout", "timeout"),
        ("upstream-unreachable", "unreachable"),
        ("upstream-invalid", "invalid"),
        ("service-unavailable", "unavailable"),
    ],
)
def test_a_failing_service_is_told_apart(code, kind):
    failed = failure_of(ask(Services({"tenant"}, UpstreamFailed(code, "x", "y", retry_after_s=4))), LookupFailed)
    assert isinstance(failed, LookupFailed)
    assert (failed.kind, failed.retry_after_s) == (kind, 4)


@pytest.mark.parametrize("data", [b"", b"{}", b"<html>", b"null", SAID[:-1], SAID + SAID, b"\x1f\x8b\x08"])
def test_what_is_no_subscription_is_invalid(data):
    assert kind_of(ask(Services({"tenant"}, said(Body(data))))) == "invalid"


def test_a_body_in_pieces_is_put_together():
    body = Body()
    asked = ask(Services({"tenant"}, said(body)))
    for piece in (SAID[:7], SAID[7:]):
        body.sink.write(piece)
    body.sink.done()
    assert success_of(asked) == PRO


def test_a_body_that_ends_early_is_invalid_even_if_what_came_could_be_read():
    body = Body()
    asked = ask(Services({"tenant"}, said(body)))
    body.sink.write(SAID)
    body.sink.cut("closed early")
    assert kind_of(asked) == "invalid"


def test_a_long_body_is_not_read_to_its_end():
    body = Body(length=MAX_ANSWER_BYTES + 1)
    assert kind_of(ask(Services({"tenant"}, said(body)))) == "invalid"
    assert body.stopped == 1
    assert body.sink is None
    body = Body()
    asked = ask(Services({"tenant"}, said(body)))
    body.sink.write(SAID + b" " * MAX_ANSWER_BYTES)
    assert kind_of(asked) == "invalid"
    assert body.stopped == 1
    body.sink.write(b" ")
    assert kind_of(ask(Services({"tenant"}, said(Body(SAID + b" " * MAX_ANSWER_BYTES))))) == "invalid"


def test_a_service_that_hangs_is_left_after_two_seconds():
    clock, services = Clock(), Services({"tenant"})
    asked = ask(services, clock)
    clock.advance(1.9)
    assert services.cancelled == 0
    clock.advance(0.2)
    assert kind_of(asked) == "timeout"
    assert services.cancelled == 1


def test_one_that_never_ends_its_answer_too():
    clock, body = Clock(), Body()
    asked = ask(Services({"tenant"}, said(body)), clock)
    for _ in range(3):
        clock.advance(0.7)
        body.sink.write(b" ")
    assert kind_of(asked) == "timeout"
    assert body.stopped == 1


def test_cancelling_ends_the_exchange_and_leaves_no_timer():
    clock, services = Clock(), Services({"tenant"})
    asked = ask(services, clock)
    asked.cancel()
    failure_of(asked)
    assert services.cancelled == 1
    assert clock.getDelayedCalls() == []
