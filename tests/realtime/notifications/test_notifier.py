"""One attempt to notify: what the service gets, and what its answer comes to."""

import itertools

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.ports import Notification, UpstreamFailed, UpstreamResponse
from bakerygw.realtime.notifications.notifier import ATTEMPT_S, Notifier
from tests.deferreds import success_of
from tests.services import Services

PAYLOAD = b'{"message":"\xc3\xa9"}\n'
ALERT = Notification(name="t1:7-3", tenant_id="t1", payload=PAYLOAD, failed=0, lease="l")


class Body:
    length = None

    def __init__(self, whole):
        self._whole = whole
        self.stopped = False

    def whole(self):
        return self._whole

    def stop(self):
        self.stopped = True


NAMES = ("notification",)


def said(status, *headers, body=b""):
    return UpstreamResponse(status=status, headers=headers, body=Body(body), authority="n:80")


def notifier(services, clock=None):
    numbers = itertools.count(1)
    return Notifier(
        lambda: services, clock=clock or Clock(), now=lambda: 0.0, token=lambda size: f"{next(numbers):0{2 * size}x}"
    )


def send(services, *, demo=False, clock=None):
    return Deferred.fromCoroutine(notifier(services, clock).send("notification", ALERT, demo=demo))


def test_the_service_gets_the_alert_byte_for_byte_and_what_it_must_know():
    services = Services(NAMES, said(202))
    attempt = success_of(send(services))
    ((service, request),) = services.asked
    fields = dict(request.headers)
    assert service == "notification"
    assert (request.method, request.target) == ("POST", b"/api/v1/notifications/alerts")
    assert request.body.whole() == PAYLOAD
    assert request.body.length == len(PAYLOAD)
    assert fields[b"Content-Type"] == b"application/json"
    assert fields[b"X-Tenant-Id"] == b"t1"
    assert fields[b"X-Is-Demo"] == b"false"
    assert fields[b"X-Request-ID"].decode() == attempt.request_id
    assert fields[b"traceparent"].count(b"-") == 3
    assert not [name for name in fields if name.lower() in (b"authorization", b"x-user-id")]


def test_the_key_is_the_same_at_each_attempt_and_the_request_is_not():
    services = Services(NAMES, said(503))
    way = notifier(services)
    for _ in range(2):
        success_of(Deferred.fromCoroutine(way.send("notification", ALERT, demo=False)))
    first, second = (dict(request.headers) for _, request in services.asked)
    assert first[b"Idempotency-Key"] == second[b"Idempotency-Key"]
    assert first[b"X-Request-ID"] != second[b"X-Request-ID"]


def test_alerts_of_demo_tenants_say_so():
    services = Services(NAMES, said(202))
    success_of(send(services, demo=True))
    assert dict(services.asked[0][1].headers)[b"X-Is-Demo"] == b"true"


@pytest.mark.parametrize(
    ("status", "verdict", "away"),
    [
        (200, "accepted", False),
        (204, "accepted", False),
        (422, "refused", False),
        (404, "later", False),
        (307, "later", False),
        (500, "later", False),
        (429, "later", True),
        (503, "later", True),
    ],
)
def test_a_status_says_what_became_of_it(status, verdict, away):
    attempt = success_of(send(Services(NAMES, said(status))))
    assert (attempt.verdict, attempt.away) == (verdict, away)
    assert (attempt.cause == "") == (verdict == "accepted")


def test_a_wish_to_be_left_alone_is_told():
    assert success_of(send(Services(NAMES, said(429, (b"Retry-After", b"17"))))).asked_s == 17
    failed = UpstreamFailed("service-unavailable", "x", "breaker open: refused", retry_after_s=4)
    attempt = success_of(send(Services(NAMES, failed)))
    assert (attempt.verdict, attempt.away, attempt.asked_s, attempt.cause) == (
        "later",
        True,
        4,
        "breaker open: refused",
    )


def test_the_status_is_enough_and_a_body_that_is_still_to_come_is_not_waited_for():
    answer = said(200, body=None)
    assert success_of(send(Services(NAMES, answer))).verdict == "accepted"
    assert answer.body.stopped


def test_no_answer_in_time_is_a_failure_and_ends_the_exchange():
    services, clock = Services(NAMES), Clock()
    sending = send(services, clock=clock)
    clock.advance(ATTEMPT_S - 0.1)
    assert not sending.called
    clock.advance(0.2)
    assert success_of(sending).verdict == "later"
    assert services.cancelled == 1
    assert services.asked[0][1].first_byte_timeout_s > ATTEMPT_S


@pytest.mark.parametrize(
    ("names", "demo", "service"),
    [
        ((), False, None),
        (("notification",), True, "notification"),
        (("notification", "demo:notification"), True, "demo:notification"),
        (("notification", "demo:notification"), False, "notification"),
        (("demo:notification",), False, None),
    ],
)
def test_demo_alerts_go_to_the_demo_service_where_there_is_one(names, demo, service):
    assert notifier(Services(names)).service_of(demo=demo) == service
