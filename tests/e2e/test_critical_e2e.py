"""Critical operations on two gateways with one Redis, and changed subscriptions in force on both within a second."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import redis

from tests.e2e.calling import SALES, WITHIN_S, code_of, until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS
from tests.minting import ABSENT, TENANT_ID, Issuer, iso
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

TENANT = f"/api/v1/tenants/{TENANT_ID}"
PLAN = TENANT + "/subscription"
ACTIVE = {"tier": "professional", "status": "active", "valid_until": iso(time.time() + 30 * 86_400)}
LAPSED = {**ACTIVE, "valid_until": "2020-01-01T00:00:00Z"}
UNCHECKED, STALE, OK = (503, "critical-check-unavailable"), (401, "token-stale"), (200, "")


def says(document: Any, status: int = 200) -> Answer:
    return answer(status, json.dumps(document).encode())


def is_question(request: Recorded) -> bool:
    return request.target.endswith(b"/subscription/status")


class Office:
    """Two gateways, their Redis, and a tenant service that answers the question apart from all else."""

    def __init__(self, running: ExitStack, issuer: Issuer, server: RedisServer) -> None:
        self.issuer, self.server = issuer, server
        self.sales, self.tenant = (running.enter_context(RecordingUpstream()) for _ in range(2))
        self.redis = running.enter_context(redis.Redis(host=server.host, port=server.port))
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "SALES_SERVICE_URL": self.sales.url,
            "TENANT_SERVICE_URL": self.tenant.url,
            "REDIS_HOST": server.host,
            "REDIS_PORT": str(server.port),
            **NO_LIMITS,
        }
        self.gateways = [running.enter_context(Gateway(settings)) for _ in range(2)]
        self.clients = [running.enter_context(gateway.client()) for gateway in self.gateways]
        self.reset()

    def reset(self) -> None:
        for service in (self.sales, self.tenant):
            service.reset()
        self.status: Answer = says(ACTIVE)
        self.done: Answer = says({"ok": True})
        self.tenant.always(lambda request: self.status if is_question(request) else self.done)

    def ask(self, which: int, token: str, path: str = SALES, method: str = "GET", **how: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return self.clients[which].request(method, path, headers=headers, **how)

    @property
    def questions(self) -> list[Recorded]:
        return [request for request in self.tenant.requests if is_question(request)]

    @property
    def writes(self) -> list[Recorded]:
        return [request for request in self.tenant.requests if not is_question(request)]

    @property
    def changed_at(self) -> bytes | None:
        return self.redis.get(f"tenant:{TENANT_ID}:subscription_changed_at")


@pytest.fixture(scope="module")
def whole_office(issuer: Issuer) -> Iterator[Office]:
    with ExitStack() as running:
        yield Office(running, issuer, running.enter_context(RedisServer()))


@pytest.fixture
def office(whole_office: Office) -> Office:
    whole_office.redis.flushall()
    whole_office.reset()
    token = whole_office.issuer.token(jti="between-tests")
    for which in (0, 1):  # an instance hears of it a moment later
        until(lambda which=which: code_of(whole_office.ask(which, token)) == OK, WITHIN_S, every_s=0.005)
    whole_office.reset()
    return whole_office


@pytest.mark.parametrize(("path", "method"), [(TENANT, "DELETE"), (TENANT + "/", "DELETE"), (PLAN, "PUT"),
                                              (PLAN + "/seats", "POST")])  # fmt: skip
def test_a_critical_operation_is_confirmed_first_and_each_time(office: Office, path: str, method: str) -> None:
    token = office.issuer.token()
    office.done = says({}, 409)

    for which in (0, 1, 0):
        assert office.ask(which, token, path, method).status_code == 409

    assert [request.method for request in office.tenant.requests] == ["GET", method] * 3
    question, write = office.tenant.requests[:2]
    assert question.value("authorization") == b"Bearer " + token.encode()
    assert question.value("x-tenant-id") == TENANT_ID.encode()
    assert question.value("x-subscription-tier") == b"professional"
    assert question.value("x-request-id") == write.value("x-request-id")


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (says(ACTIVE, 500), UNCHECKED),
        (answer(302, b"", ("Location", "/")), UNCHECKED),
        (answer(200, b" " * 10_000_000), UNCHECKED),
        (says("active"), UNCHECKED),
        (Answer(pieces=(b"HTTP/1.1 200 OK\r\n",), close=True), UNCHECKED),
        (says({**ACTIVE, "tier": "enterprise"}), STALE),
        (says({**ACTIVE, "status": "past_due"}), STALE),
        (says(LAPSED), (402, "subscription-expired")),
        (says({}, 401), STALE),
        (says({}, 403), (403, "tenant-forbidden")),
        (says({}, 404), (404, "not-found")),
    ],
)
def test_nothing_critical_is_done_that_the_tenant_service_does_not_confirm(
    office: Office, behaviour: Answer, expected: tuple[int, str]
) -> None:
    office.status = behaviour

    refusal = office.ask(0, office.issuer.token(), TENANT, "DELETE")

    assert code_of(refusal) == expected
    assert ("retry-after" in refusal.headers) == (expected[0] == 503)
    assert office.writes == []


def test_a_service_that_hangs_or_is_dead_fails_closed(office: Office) -> None:
    token = office.issuer.token()
    office.status = Answer(never=True)
    began = time.monotonic()
    assert code_of(office.ask(0, token, TENANT, "DELETE")) == UNCHECKED
    assert 1.8 < time.monotonic() - began < 8
    office.tenant.stop()
    assert code_of(office.ask(0, token, TENANT, "DELETE")) == UNCHECKED
    assert office.writes == []
    office.tenant.start()


def test_where_one_can_pay_expiry_is_of_no_matter_but_a_contradiction_is(office: Office) -> None:
    token = office.issuer.token(subscription=LAPSED)
    office.status = says(LAPSED)
    assert code_of(office.ask(0, token, PLAN, "PUT")) == OK
    assert code_of(office.ask(0, office.issuer.token(iat=int(time.time()) + 5), PLAN, "PUT")) == OK
    office.status = says({**LAPSED, "status": "canceled"})
    assert code_of(office.ask(0, office.issuer.token(iat=int(time.time()) + 5), PLAN, "PUT")) == STALE


def test_an_old_token_is_judged_by_the_answer(office: Office) -> None:
    token = office.issuer.token(tenant_id="t-old", subscription=ABSENT)
    assert code_of(office.ask(0, token)) == OK
    office.status = says({**ACTIVE, "tier": "starter"})
    assert code_of(office.ask(0, token, "/api/v1/tenants/t-old", "DELETE")) == OK
    assert office.writes[0].value("x-subscription-tier") == b"starter"
    assert code_of(office.ask(0, token)) == OK
    assert office.sales.requests[-1].value("x-subscription-tier") == b"starter"


def test_a_demo_session_is_refused_unasked(office: Office) -> None:
    token = office.issuer.token(is_demo=True, demo_session_id="s1")
    assert code_of(office.ask(0, token, PLAN, "PUT")) == (403, "demo-isolation")
    assert office.tenant.requests == []


class TestChanges:
    def test_the_next_request_with_the_old_token_is_stale_on_both_instances(self, office: Office) -> None:
        token = office.issuer.token()
        for which in (0, 1):
            assert code_of(office.ask(which, token)) == OK

        assert code_of(office.ask(0, token, PLAN, "PUT", json={"tier": "enterprise"})) == OK

        assert code_of(office.ask(0, token)) == STALE
        until(lambda: code_of(office.ask(1, token)) == STALE, WITHIN_S, every_s=0.005)
        assert b"." in (office.changed_at or b"")
        newer = office.issuer.token(iat=int(time.time()) + 2)
        assert [code_of(office.ask(which, newer)) for which in (0, 1)] == [OK, OK]
        event = office.gateways[0].wait_for_event("subscription.changed")
        assert (event["tenant_id"], event["outcome"]) == (TENANT_ID, "done")

    @pytest.mark.parametrize("status", [400, 402, 500, 301])
    def test_a_write_that_the_service_turns_down_changes_nothing(self, office: Office, status: int) -> None:
        token = office.issuer.token()
        office.done = says({}, status)
        assert office.ask(0, token, PLAN, "PUT").status_code == status
        assert code_of(office.ask(0, token)) == OK
        assert office.changed_at is None

    def test_a_long_answer_streams_and_one_that_is_cut_is_a_change_all_the_same(self, office: Office) -> None:
        token = office.issuer.token()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n"
        office.done = Answer(pieces=(head + b"x" * 3_000_000,))
        assert len(office.ask(0, token, PLAN, "PUT").content) == 3_000_000
        assert office.changed_at is not None
        office.redis.flushall()
        until(lambda: code_of(office.ask(0, token)) == OK)
        office.done = Answer(pieces=(head + b"x" * 3_000_000,), cut_after=100_000)
        with pytest.raises(httpx.HTTPError):
            office.ask(0, token, PLAN, "PUT")
        assert code_of(office.ask(0, token)) == STALE

    def test_a_client_that_leaves_before_the_answer_is_found_out_about(self, office: Office) -> None:
        token = office.issuer.token()
        office.done = Answer(never=True)
        head = f"DELETE {PLAN} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        for then, stale in ((ACTIVE, False), ({**ACTIVE, "status": "canceled"}, True)):
            office.status = says(ACTIVE)
            asked = len(office.questions)
            written = len(office.writes)
            with socket.create_connection(("127.0.0.1", office.gateways[0].port), PATIENCE_S) as client:
                client.sendall(head)
                until(lambda written=written: len(office.writes) == written + 1)
                office.status = says(then)
            until(lambda asked=asked: len(office.questions) == asked + 2)
            if stale:
                until(lambda: office.changed_at is not None)
            else:
                assert office.changed_at is None


class TestRedisAway:
    @contextmanager
    def alone(self, issuer: Issuer, server: RedisServer) -> Iterator[Office]:
        with ExitStack() as running:
            yield Office(running, issuer, server)

    def test_nothing_critical_is_done_without_it_and_a_change_is_written_when_it_is_back(
        self, issuer: Issuer, own_redis: RedisServer
    ) -> None:
        with self.alone(issuer, own_redis) as office:
            token = issuer.token()
            for which in (0, 1):
                assert code_of(office.ask(which, token, SALES, "POST")) == OK

            def paid(request: Recorded) -> Answer:
                if is_question(request):
                    return says(ACTIVE)
                own_redis.suspend()  # just when the service has done it
                return says({"ok": True})

            office.tenant.always(paid)
            assert code_of(office.ask(0, token, PLAN, "PUT")) == OK
            asked = len(office.questions)
            refusal = office.ask(1, token, TENANT, "DELETE")
            assert code_of(refusal) == (503, "state-unavailable")
            assert "retry-after" in refusal.headers
            assert len(office.questions) == asked
            assert len(office.writes) == 1
            own_redis.resume()
            until(lambda: office.changed_at is not None)
            for which in (0, 1):
                until(lambda which=which: code_of(office.ask(which, token)) == STALE)
            office.gateways[0].wait_for_event("subscription.change_waits")
