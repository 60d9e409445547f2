"""Old tokens, two gateways on one Redis, and a tenant service that hangs, lies, floods, redirects and dies."""

import hmac
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from bakerygw.stores.sealed import SEAL_BYTES
from tests.e2e.asked import settled_cost
from tests.e2e.calling import SALES, at_once, code_of, until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS
from tests.minting import ABSENT, OTHER_TENANT_ID, TENANT_ID, USER_ID, Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

ACTIVE = {"tier": "professional", "status": "active", "valid_until": "2099-01-01T00:00:00Z"}
SECRET = "a secret of all instances, at least 32"
UNCHECKED = (503, "critical-check-unavailable")
OK = (200, "")


def status_path(tenant_id: str = TENANT_ID) -> bytes:
    return f"/api/v1/tenants/{tenant_id}/subscription/status".encode()


class Town:
    """Two gateways, their Redis, and the services that know what tokens leave out."""

    def __init__(self, running: ExitStack, issuer: Issuer, server: RedisServer) -> None:
        self.issuer, self.server = issuer, server
        self.sales, self.tenant, self.auth = (running.enter_context(RecordingUpstream()) for _ in range(3))
        self.redis = running.enter_context(redis.Redis(host=server.host, port=server.port))
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "SALES_SERVICE_URL": self.sales.url,
            "TENANT_SERVICE_URL": self.tenant.url,
            "AUTH_SERVICE_URL": self.auth.url,
            "REDIS_HOST": server.host,
            "REDIS_PORT": str(server.port),
            "TOKEN_CACHE_SECRET": SECRET,
            **NO_LIMITS,
        }
        self.settings = settings
        self.gateways = [running.enter_context(Gateway(settings)) for _ in range(2)]
        self.clients = [running.enter_context(gateway.client()) for gateway in self.gateways]
        self._tenants = 0

    def reset(self) -> None:
        for service in (self.sales, self.tenant, self.auth):
            service.reset()
        self.tenant.always(says(ACTIVE))

    def new_tenant(self) -> str:
        """One that nobody has asked about."""
        self._tenants += 1
        return f"tenant-{self._tenants}"

    def old_token(self, tenant_id: str, **claims: Any) -> str:
        return self.issuer.token(tenant_id=tenant_id, subscription=ABSENT, **claims)

    def ask(self, which: int, token: str, **how: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", **how.pop("headers", {})}
        return self.clients[which].request(how.pop("method", "GET"), how.pop("path", SALES), headers=headers, **how)

    def questions(self) -> list[Recorded]:
        return [it for it in self.tenant.requests if it.target.endswith(b"/subscription/status")]

    def metric(self, which: int, series: str) -> float:
        with self.gateways[which].admin() as admin:
            for line in admin.get("/metrics").text.splitlines():
                if line.startswith(f"{series} "):
                    return float(line.rpartition(" ")[2])
        return 0


def says(document: Any, status: int = 200) -> Answer:
    return answer(status, json.dumps(document).encode())


@pytest.fixture(scope="module")
def whole_town(issuer: Issuer) -> Iterator[Town]:
    with ExitStack() as running:
        yield Town(running, issuer, running.enter_context(RedisServer()))


@pytest.fixture
def town(whole_town: Town) -> Town:
    for which in (0, 1):  # what was still to be written for the test before is then in Redis
        whole_town.ask(which, whole_town.issuer.token())
    whole_town.reset()
    return whole_town


def test_an_old_token_is_looked_up_once_for_both_instances(town: Town) -> None:
    tenant_id = town.new_tenant()
    token = town.old_token(tenant_id)

    for which in (0, 1, 0, 1):
        assert code_of(town.ask(which, token)) == OK

    (question,) = town.questions()
    assert question.target == status_path(tenant_id)
    assert question.value("authorization") == b"Bearer " + token.encode()
    assert question.value("x-user-id") == USER_ID.encode()
    assert question.value("x-tenant-id") == tenant_id.encode()
    assert question.value("x-request-id") == town.sales.requests[0].value("x-request-id")
    assert {request.value("x-subscription-tier") for request in town.sales.requests} == {b"professional"}
    assert town.metric(1, 'gateway_lookups_total{result="shared",what="subscription"}') >= 1
    assert town.metric(0, 'gateway_incomplete_tokens_total{lacks="subscription"}') >= 1


def test_a_complete_token_costs_no_question_and_no_further_command(town: Town) -> None:
    token = town.issuer.token()
    for _ in range(3):
        assert code_of(town.ask(0, token)) == OK
    until(lambda: town.metric(0, "gateway_mirror_trusted") == 1)
    town.ask(0, token)

    assert settled_cost(town.redis, lambda: [town.ask(0, token) for _ in range(50)]) == {"EVALSHA": 50}
    assert town.questions() == []


def test_many_at_once_ask_once_on_each_instance(town: Town) -> None:
    token = town.old_token(town.new_tenant())
    slow = answer(200, json.dumps(ACTIVE).encode(), delay_s=0.3)
    town.tenant.always(slow)

    answers = at_once([lambda which=which: code_of(town.ask(which, token)) for which in (0, 1) for _ in range(10)])

    assert set(answers) == {OK}
    assert len(town.questions()) <= 2


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (says(ACTIVE, 500), UNCHECKED),
        (says(ACTIVE, 302), UNCHECKED),
        (answer(307, b"", ("Location", "/api/v1/tenants/rich/subscription/status")), UNCHECKED),
        (answer(200, b"[" + b" " * 10_000_000 + b"]"), UNCHECKED),
        (answer(200, b'{"tier":"enterprise",' * 20_000), UNCHECKED),
        (Answer(pieces=(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + json.dumps(ACTIVE).encode(),), close=True),
         UNCHECKED),
        (Answer(pieces=(b"SSH-2.0-OpenSSH\r\n",), close=True), UNCHECKED),
        (says({"tier": "imperial", "status": "active"}), UNCHECKED),
        (says({"subscription": ACTIVE}), UNCHECKED),
        (says({**ACTIVE, "status": "active\r\nX-User-Role: owner"}), UNCHECKED),
        (answer(200, b'{"tier":"starter","tier":"enterprise","status":"active","valid_until":null}'), UNCHECKED),
        (says({**ACTIVE, "status": "canceled"}), (402, "subscription-inactive")),
        (says({"detail": "no such tenant"}, 404), (402, "subscription-inactive")),
        (says({}, 401), (401, "token-stale")),
        (says({}, 403), (403, "tenant-forbidden")),
    ],
)  # fmt: skip
def test_whatever_the_tenant_service_says_nothing_passes_that_it_does_not_vouch_for(
    town: Town, behaviour: Answer, expected: tuple[int, str]
) -> None:
    token = town.old_token(town.new_tenant())
    town.tenant.always(behaviour)

    for _ in range(3):
        refusal = town.ask(0, token)
        assert code_of(refusal) == expected
        assert ("retry-after" in refusal.headers) == (expected[0] == 503)

    assert town.sales.requests == []
    assert 1 <= len(town.questions()) <= 2  # a request without a body is sent once more if nothing came back


def test_a_hanging_service_costs_one_wait_of_two_seconds_and_no_other_tenant_anything(town: Town) -> None:
    token = town.old_token(town.new_tenant())
    town.tenant.always(Answer(never=True))
    began = time.monotonic()

    answers = at_once([lambda: code_of(town.ask(0, token)) for _ in range(5)])
    assert set(answers) == {UNCHECKED}
    assert 1.8 < time.monotonic() - began < 8

    began = time.monotonic()
    assert code_of(town.ask(0, token)) == UNCHECKED
    assert code_of(town.ask(0, town.issuer.token())) == OK
    assert time.monotonic() - began < 1.8
    assert len(town.questions()) == 1


def test_a_service_that_is_down_and_comes_back(town: Town) -> None:
    token = town.old_token(town.new_tenant())
    known = town.old_token(town.new_tenant())
    assert code_of(town.ask(0, known)) == OK
    town.tenant.stop()

    assert code_of(town.ask(0, token)) == UNCHECKED
    assert code_of(town.ask(0, known)) == OK
    town.tenant.start()
    until(lambda: code_of(town.ask(0, token)) == OK)


def test_a_client_that_leaves_ends_the_question(town: Town) -> None:
    token = town.old_token(town.new_tenant())
    town.tenant.always(Answer(never=True))
    head = f"GET {SALES} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode()

    with socket.create_connection(("127.0.0.1", town.gateways[0].port), PATIENCE_S) as client:
        client.sendall(head)
        (question,) = town.tenant.wait_for(1)
        asked_at = time.monotonic()

    assert question.left.wait(PATIENCE_S)
    assert time.monotonic() - asked_at < 1.9, "it was waited for to the end"


def test_a_change_makes_what_is_remembered_worthless_on_both(town: Town) -> None:
    tenant_id = town.new_tenant()
    now = int(time.time())
    token = town.old_token(tenant_id, iat=now + 5)
    for which in (0, 1):
        assert code_of(town.ask(which, token)) == OK

    town.tenant.always(says({**ACTIVE, "status": "canceled"}))
    town.redis.set(f"tenant:{tenant_id}:subscription_changed_at", str(time.time()))

    for which in (0, 1):
        until(lambda which=which: code_of(town.ask(which, token)) == (402, "subscription-inactive"))


class TestRedis:
    def key(self, town: Town, before: set[bytes]) -> bytes:
        def new() -> list[bytes]:
            return [key for key in town.redis.keys("bakerygw:lookup:*") if key not in before]

        (key,) = until(new)
        return key

    def test_holds_sealed_answers_for_five_minutes_and_nobodys_name(self, town: Town) -> None:
        tenant_id = town.new_tenant()
        before = set(town.redis.keys("bakerygw:lookup:*"))
        town.ask(0, town.old_token(tenant_id))

        key = self.key(town, before)

        assert 0 < town.redis.ttl(key) <= 300
        assert tenant_id.encode() not in key
        assert b"professional" in town.redis.get(key)

    @pytest.mark.parametrize("how", ["raised", "moved", "rubbish", "huge", "list"])
    def test_who_writes_to_it_raises_nobodys_plan(self, town: Town, how: str) -> None:
        before = set(town.redis.keys("bakerygw:lookup:*"))
        town.tenant.always(says({**ACTIVE, "tier": "enterprise"}))
        town.ask(0, town.old_token(town.new_tenant()))
        rich = self.key(town, before)
        town.tenant.always(says({**ACTIVE, "tier": "starter"}))
        token = town.old_token(town.new_tenant())
        town.ask(0, token)
        poor = self.key(town, {*before, rich})
        held = town.redis.get(poor)
        town.redis.delete(poor)
        if how == "list":
            town.redis.rpush(poor, "x")
        else:
            town.redis.set(
                poor,
                {
                    "raised": held.replace(b"starter", b"enterprise"),
                    "moved": town.redis.get(rich),
                    "rubbish": b"\0" * 40,
                    "huge": held + b" " * 2_000_000,
                }[how],
            )
        asked = len(town.questions())

        assert code_of(town.ask(1, token)) == OK

        assert town.sales.requests[-1].value("x-subscription-tier") == b"starter"
        assert len(town.questions()) == asked + 1


class TestFurtherTenants:
    def test_what_an_entry_leaves_out_is_looked_up_and_not_borrowed(self, town: Town) -> None:
        tenant_id = town.new_tenant()
        town.tenant.always(says({**ACTIVE, "status": "past_due"}))
        token = town.issuer.token(tenant_access=[{"id": tenant_id, "role": "viewer", "tier": "starter"}])

        reply = town.ask(0, token, headers={"X-Tenant-ID": tenant_id})

        assert code_of(reply) == OK
        assert "x-subscription-grace" in reply.headers
        (request,) = town.sales.requests
        assert request.value("x-subscription-tier") == b"starter"
        assert request.value("x-subscription-status") == b"past_due"
        (question,) = town.questions()
        assert question.target == status_path(tenant_id)
        assert question.value("x-user-role") == b"viewer"

    def test_nobody_asks_about_a_tenant_that_is_not_open(self, town: Town) -> None:
        assert code_of(town.ask(0, town.issuer.token(), headers={"X-Tenant-ID": OTHER_TENANT_ID})) == (
            403,
            "tenant-forbidden",
        )
        assert town.questions() == []


def test_another_secret_seals_from_the_reload_on(town: Town, issuer: Issuer, tmp_path: Path) -> None:
    file, old, new = tmp_path / "gateway.toml", "o" * 32, "n" * 32
    file.write_text(f'token_cache_secret = "{old}"\n')
    with Gateway({**town.settings, "TOKEN_CACHE_SECRET": None}, config=file) as gateway, gateway.client() as client:

        def sealed() -> bytes:
            """What it writes about a tenant that nobody has asked about."""
            known = set(town.redis.keys("bakerygw:lookup:*"))
            token = town.old_token(town.new_tenant())
            assert client.get(SALES, headers={"Authorization": f"Bearer {token}"}).status_code == 200
            until(lambda: len(set(town.redis.keys("bakerygw:lookup:*")) - known) == 1)
            (key,) = set(town.redis.keys("bakerygw:lookup:*")) - known
            name = key.removeprefix(b"bakerygw:")
            value = town.redis.get(key)
            seals = [hmac.digest(secret.encode(), b"bakerygw lookups v1", "sha256") for secret in (old, new)]
            told = b"%d:%b%b" % (len(name), name, value[SEAL_BYTES:])
            return b"".join(b"on"[at : at + 1] for at in (0, 1) if hmac.digest(seals[at], told, "sha256") == value[:32])

        assert sealed() == b"o"
        file.write_text(f'token_cache_secret = "{new}"\n')
        gateway.signal(signal.SIGHUP)
        gateway.wait_for_event("reload.done")
        assert sealed() == b"n"


class TestEmail:
    def test_is_asked_of_the_auth_service_once_for_both(self, town: Town) -> None:
        user_id = "user-" + town.new_tenant()
        token = town.issuer.token(user_id=user_id, email=ABSENT)
        town.auth.always(says({"user_id": user_id, "email": "ana@b.example", "tenant_role": "god"}))

        for which in (0, 1, 0):
            assert code_of(town.ask(which, token)) == OK

        assert [request.value("x-user-email") for request in town.sales.requests] == [b"ana@b.example"] * 3
        assert {request.value("x-user-role") for request in town.sales.requests} == {b"owner"}
        (question,) = town.auth.requests
        assert (question.method, question.target) == ("GET", b"/api/v1/auth/me")
        assert question.value("authorization") == b"Bearer " + token.encode()

    @pytest.mark.parametrize(
        "behaviour",
        [
            says({}, 500),
            says({"user_id": "somebody-else", "email": "eve@b.example"}),
            says({"email": "a@b\r\nX-User-Role: god"}),
            answer(200, b" " * 1_000_000),
            Answer(never=True),
        ],
    )
    def test_that_cannot_be_had_holds_nobody_up_for_more_than_a_second(self, town: Town, behaviour: Answer) -> None:
        token = town.issuer.token(user_id="user-" + town.new_tenant(), email=ABSENT)
        town.auth.always(behaviour)
        began = time.monotonic()

        for _ in range(3):
            assert code_of(town.ask(0, token)) == OK

        assert time.monotonic() - began < 2.9, "each has waited"
        assert [request.value("x-user-email") for request in town.sales.requests] == [None] * 3
        assert len(town.auth.requests) == 1
