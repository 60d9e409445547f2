"""Who may hold a stream open, and until when: from outside, on two instances that share a Redis."""

import json
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e.calling import WITHIN_S, at_once, code_of, until
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.e2e.key_sets import KeySetServer
from tests.e2e.key_sets import token as signed
from tests.e2e.listening import STREAM, Reader
from tests.e2e.sockets import TrainingService
from tests.e2e.stage import NO_LIMITS, paired
from tests.minting import Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

TICKET = "/api/v1/alerts/ticket"


def reading(gateway: Gateway, token: str | None = None, query: str = "") -> Reader:
    """An open stream."""
    return Reader(gateway, token, path=STREAM + query)


@pytest.fixture(scope="module")
def office(module_redis: RedisServer) -> Iterator["redis.Redis"]:
    with redis.Redis(port=module_redis.port) as client:
        yield client


@pytest.fixture(scope="module")
def training() -> Iterator[TrainingService]:
    with TrainingService() as service:
        yield service


@pytest.fixture(scope="module")
def pair(
    issuer: Issuer, service: RecordingUpstream, training: TrainingService, module_redis: RedisServer
) -> Iterator[list[Gateway]]:
    env = {
        "AUTH_SERVICE_URL": service.url,
        "SALES_SERVICE_URL": service.url,
        "TRAINING_SERVICE_URL": training.url,
        "SSE_MAX_PER_USER": "3",
        "LOG_LEVEL": "DEBUG",
        **NO_LIMITS,
    }
    with paired(issuer, module_redis, env) as gateways:
        yield list(gateways)


class Someone:
    """A user of a tenant of their own."""

    def __init__(self, issuer: Issuer, **claims: Any) -> None:
        self.tenant, self.user = str(uuid.uuid4()), str(uuid.uuid4())
        self.token = issuer.token(**{"tenant_id": self.tenant, "user_id": self.user, **claims})


@pytest.fixture
def someone(issuer: Issuer) -> Someone:
    return Someone(issuer)


def ticket_of(gateway: Gateway, token: str, **headers: str) -> str:
    with gateway.client(token) as client:
        answer = client.post(TICKET, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


def test_signing_out_on_one_instance_ends_the_stream_on_the_other(
    pair: list[Gateway], someone: Someone, issuer: Issuer
) -> None:
    with reading(pair[1], someone.token) as read, reading(pair[1], Someone(issuer).token) as other:
        with pair[0].client(someone.token) as client:
            assert client.post("/api/v1/auth/logout").is_success
        began = time.monotonic()

        assert read.bye() == "token-revoked"
        assert read.ended_at is not None
        assert read.ended_at - began < WITHIN_S
        assert other.ended_at is None


def test_a_changed_subscription_is_told_and_then_the_stream_ends(pair: list[Gateway], issuer: Issuer) -> None:
    someone = Someone(issuer, iat=int(time.time()) - 60)
    with reading(pair[1], someone.token) as read, pair[0].admin() as admin:
        began = time.monotonic()
        assert admin.post(f"/api/tenants/{someone.tenant}/subscription-changed", json={}).is_success

        assert read.bye() == "token-stale"
        assert read.ended_at is not None
        assert read.ended_at - began < WITHIN_S
        assert read.kinds[-2:] == ["tenant-state", "bye"]


def test_a_hold_is_told_when_it_is_set_and_lifted_and_when_the_stream_opens(
    pair: list[Gateway], someone: Someone, office: Any
) -> None:
    with reading(pair[1], someone.token) as read:
        office.set(f"tenant:{someone.tenant}:read_only", '{"reason": "stock-taking"}')
        until(lambda: len(read.named("tenant-state")) == 1)
        with reading(pair[0], someone.token) as late:
            assert late.first("tenant-state").json == read.named("tenant-state")[0]
            ticket_of(pair[0], someone.token)
            office.delete(f"tenant:{someone.tenant}:read_only")
            until(lambda: len(read.named("tenant-state")) == 2 == len(late.named("tenant-state")))
        assert "stock-taking" in json.dumps(read.named("tenant-state")[0])
        assert "stock-taking" not in json.dumps(read.named("tenant-state")[1])
        assert read.ended_at is None


def test_operators_see_and_disconnect_what_is_open_on_all_instances(pair: list[Gateway], someone: Someone) -> None:
    with reading(pair[0], someone.token) as here, reading(pair[1], someone.token) as there, pair[0].admin() as admin:
        page = admin.get(f"/api/tenants/{someone.tenant}").json()
        assert page["open"] == {"streams": 1, "sockets": 0}
        said = admin.post(f"/api/tenants/{someone.tenant}/disconnect", json={}).json()

        assert (said["ended"], said["instances"]) == (1, 2)
        assert [here.bye(), there.bye()] == ["disconnected"] * 2
        until(lambda: admin.get(f"/api/tenants/{someone.tenant}").json()["open"]["streams"] == 0)


def test_it_ends_with_the_token_to_the_second(pair: list[Gateway], issuer: Issuer) -> None:
    end = int(time.time()) + 5
    someone = Someone(issuer, exp=end)
    with reading(pair[0], someone.token) as read:
        read.first("token-expiring")
        assert read.bye() == "token-expired"

        assert 0 <= time.time() - end < WITHIN_S  # and not after the ten seconds of leeway


def test_access_by_a_tenant_above_ends_when_that_changes(pair: list[Gateway], issuer: Issuer, office: Any) -> None:
    chain, shop = str(uuid.uuid4()), str(uuid.uuid4())
    entry = {"id": chain, "role": "admin", "tier": "starter", "status": "active", "include_children": True}
    someone = Someone(issuer, tenant_access=[{**entry, "valid_until": "2099-01-01T00:00:00Z"}])
    office.set(f"tenant:{shop}:parent", chain)
    with reading(pair[0], someone.token, f"?tenant_id={shop}") as read:
        office.set(f"tenant:{shop}:parent", str(uuid.uuid4()))

        assert read.bye() == "forbidden"


def test_it_ends_with_the_key_that_its_token_is_signed_with(issuer: Issuer, tmp_path: Path) -> None:
    other, pem = Issuer(), tmp_path / "issuer.pem"
    pem.write_text(issuer.public_pem)
    with ExitStack() as running:
        keys = running.enter_context(KeySetServer())
        keys.publish(old=issuer)
        by_set = running.enter_context(Gateway({"JWT_JWKS_URL": keys.url}))
        by_file = running.enter_context(Gateway({"JWT_PUBLIC_KEY_FILE": str(pem)}))
        ending = [running.enter_context(reading(gateway, signed(issuer, "old"))) for gateway in (by_set, by_file)]

        keys.publish(new=other)
        staying = running.enter_context(reading(by_set, signed(other, "new")))  # for which the set is fetched
        pem.write_text(other.public_pem)
        by_file.signal(signal.SIGHUP)

        assert [read.bye() for read in ending] == ["token-invalid"] * 2
        assert staying.ended_at is None


def test_one_user_has_so_many(pair: list[Gateway], someone: Someone) -> None:
    with ExitStack() as open_ones, pair[0].client(someone.token) as client:
        for _ in range(3):
            open_ones.enter_context(reading(pair[0], someone.token))
        refused = client.get(STREAM)

        assert code_of(refused) == (429, "too-many-streams")
        assert (refused.json()["scope"], refused.json()["limit"]) == ("user", 3)
        assert 2 <= int(refused.headers["Retry-After"]) <= 10


def test_a_ticket_opens_one_stream_on_whatever_instance(pair: list[Gateway], someone: Someone) -> None:
    ticket = ticket_of(pair[0], someone.token)

    with reading(pair[1], query=f"?ticket={ticket}") as read:
        read.first("hello")
    for gateway in pair:
        with gateway.client() as client:
            assert code_of(client.get(f"{STREAM}?ticket={ticket}")) == (401, "token-invalid")


def test_of_a_hundred_at_once_on_two_instances_one_opens(pair: list[Gateway], someone: Someone) -> None:
    for _ in range(2):
        target = f"{STREAM}?ticket={ticket_of(pair[0], someone.token)}"
        with ExitStack() as clients:
            several = [clients.enter_context(pair[number % 2].client()) for number in range(20)]

            def attempt(client: httpx.Client) -> list[int]:
                found = []
                for _ in range(5):
                    with client.stream("GET", target) as response:  # noqa: B023
                        found.append(response.status_code)
                return found

            statuses = at_once([lambda client=client: attempt(client) for client in several])  # type: ignore[misc]

        assert sorted(status for its in statuses for status in its) == [200] + [401] * 99


def test_a_ticket_opens_a_socket_which_ends_like_a_stream(pair: list[Gateway], someone: Someone) -> None:
    ticket = ticket_of(pair[0], someone.token)
    url = f"ws://127.0.0.1:{pair[1].port}/api/v1/training/ws?ticket={ticket}"
    with connect(url) as socket_, pair[1].admin() as admin, pair[0].client(someone.token) as client:
        socket_.send("over")
        assert socket_.recv(PATIENCE_S) == "over"
        assert admin.get(f"/api/tenants/{someone.tenant}").json()["open"] == {"streams": 0, "sockets": 1}
        assert client.post("/api/v1/auth/logout").is_success
        began = time.monotonic()
        with pytest.raises(ConnectionClosed):
            socket_.recv(PATIENCE_S)

        assert time.monotonic() - began < WITHIN_S
        assert socket_.close_code == 1008
    with pytest.raises(InvalidStatus), connect(url):
        pass


def test_a_socket_whose_service_has_not_answered_yet_is_refused_when_it_ends(
    pair: list[Gateway], training: TrainingService, issuer: Issuer
) -> None:
    def disconnect(of: Someone) -> None:
        with pair[0].admin() as admin:
            assert admin.post(f"/api/tenants/{of.tenant}/disconnect", json={}).is_success

    def sign_out(of: Someone) -> None:
        with pair[0].client(of.token) as client:
            assert client.post("/api/v1/auth/logout").is_success

    def dial(of: Someone) -> tuple[int, str]:
        url = f"ws://127.0.0.1:{pair[1].port}/api/v1/training/ws?late=1&token={of.token}"
        with pytest.raises(InvalidStatus) as refused, connect(url):
            pass
        response = refused.value.response
        return response.status_code, json.loads(response.body or b"")["code"]

    ends: list[tuple[Callable[[Someone], None], tuple[int, str]]] = [
        (disconnect, (503, "service-unavailable")),
        (sign_out, (401, "token-revoked")),
    ]
    with ThreadPoolExecutor() as threads:
        for end, refusal in ends:
            asked, dialler = len(training.requests), Someone(issuer)
            dialling = threads.submit(dial, dialler)
            until(lambda asked=asked: len(training.requests) > asked)  # type: ignore[misc]
            end(dialler)
            assert dialling.result(PATIENCE_S) == refusal


def test_a_ticket_of_somebody_who_has_signed_out_opens_nothing(pair: list[Gateway], someone: Someone) -> None:
    ticket = ticket_of(pair[0], someone.token)
    with pair[0].client(someone.token) as client:
        assert client.post("/api/v1/auth/logout").is_success

    def look() -> bool:
        with pair[1].client(someone.token) as client:
            return code_of(client.get("/api/v1/sales/x")) == (401, "token-revoked")

    until(look)
    with pair[1].client() as client:
        assert code_of(client.get(f"{STREAM}?ticket={ticket}")) == (401, "token-revoked")


def test_what_lies_in_redis_is_of_no_use(pair: list[Gateway], someone: Someone, office: Any) -> None:
    before = set(office.scan_iter("bakerygw:ticket:*"))
    ticket = ticket_of(pair[0], someone.token)
    (key,) = set(office.scan_iter("bakerygw:ticket:*")) - before
    held = key + office.get(key)

    assert 0 < office.ttl(key) <= 30
    for secret in (ticket, someone.token, someone.token.split(".")[1], someone.tenant):
        assert secret.encode() not in held


def test_no_secret_of_a_url_is_in_a_log_or_an_answer(pair: list[Gateway], someone: Someone) -> None:
    """Last, since it reads all that was logged for the tests before, too."""
    gateway = pair[0]
    token, ticket = someone.token, ticket_of(gateway, someone.token)
    marked = f"marked-{uuid.uuid4().hex}"
    with gateway.client() as client:
        answers = [
            client.get(target)
            for target in (
                f"{STREAM}?token={token}&ticket={ticket}",
                f"{STREAM}?token={marked}",
                f"{STREAM}?ticket={marked}",
                f"{STREAM}?%74oken={marked}",
                f"/api/v1/sales/x?token={marked}",
                f"/api/v1/nowhere?ticket={marked}&token={token}",
                f"/api/v1/training/ws?token={marked}",
                f"/health?token={marked}",
            )
        ]
        answers.append(client.post(f"{STREAM}?token={marked}"))
    raw = [
        gateway.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\n{field}\r\n".encode())
        for target, field in (
            (f"{STREAM}?token={marked}\\", ""),
            (f"//{STREAM}?token={marked}", ""),
            (f"{STREAM}?token={marked}#x", ""),
            (f"{STREAM}?token={marked} x", ""),
            (f"{STREAM}?token={marked}", "Host: y\r\n"),
            (f"{STREAM}?token={marked}&x={'a' * 9000}", ""),
        )
    ]
    assert all(status.startswith(b"HTTP/1.1 4") for status in raw)
    said = "".join(f"{answer.text}{answer.headers}" for answer in answers) + "".join(map(repr, raw))
    logged = "".join(each.output for each in pair)
    with gateway.admin() as admin:
        metrics = admin.get("/metrics").text
    for secret in (marked, token, token.split(".")[1], ticket):
        for where in (said, logged, metrics):
            assert secret not in where
    assert "request.done" in logged
    refused = [answer for answer in answers if answer.url.path == STREAM]
    assert all(answer.headers["Referrer-Policy"] == "no-referrer" for answer in refused)
