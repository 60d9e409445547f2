"""Rate limits: one bucket over two instances, who pays for what, and what the answers tell of it."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
import redis

from tests.e2e.calling import SALES, at_once, code_of, from_address
from tests.e2e.harness import Gateway, RecordingUpstream, free_ports
from tests.e2e.stage import paired
from tests.minting import OTHER_TENANT_ID, Issuer
from tests.redis_server import RedisServer

LIMIT, WINDOW_S = 20, 3600
"""A token comes back in three minutes, so that what tests take is what is gone."""
OF_TIMERS = (b"bakerygw:audit", b"bakerygw:alerts:", b"bakerygw:notify:")
"""How keys begin that instances write without a request."""
LIMIT_HEADERS = ("ratelimit-policy", "ratelimit", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@pytest.fixture(scope="module")
def pair(issuer: Issuer, service: RecordingUpstream, shared_redis: RedisServer) -> Iterator[tuple[Gateway, Gateway]]:
    """Two instances that share one Redis."""
    env = {
        "SALES_SERVICE_URL": service.url,
        "AUTH_SERVICE_URL": service.url,
        "ORDERS_SERVICE_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "CORS_ORIGINS": "https://app.example",
        "RATE_LIMIT_REQUESTS": str(LIMIT),
        "RATE_LIMIT_WINDOW_SECONDS": str(WINDOW_S),
    }
    with paired(issuer, shared_redis, env) as gateways:
        yield gateways


@pytest.fixture
def gateways(pair: tuple[Gateway, Gateway], redis_server: RedisServer) -> tuple[Gateway, Gateway]:
    """The pair, with all buckets full."""
    return pair


@pytest.fixture
def gateway(gateways: tuple[Gateway, Gateway]) -> Gateway:
    return gateways[0]


def remaining(response: httpx.Response) -> int:
    return int(response.headers["x-ratelimit-remaining"])


INTERLEAVINGS: dict[str, list[int]] = {
    "one by one in turn": [0, 1] * 30,
    "half and half": [0] * 30 + [1] * 30,
    "nearly all on one": [0] * 59 + [1],
    "all on the second": [1] * 60,
}


@pytest.mark.parametrize("name", INTERLEAVINGS)
def test_two_instances_let_one_user_pass_no_more_often_than_one(
    gateways: tuple[Gateway, Gateway], service: RecordingUpstream, issuer: Issuer, name: str
) -> None:
    token = issuer.token(user_id=f"burst-{name.replace(' ', '-')}")
    with ExitStack() as clients:
        calls: list[Callable[[], httpx.Response]] = []
        for instance in gateways:
            with instance.client(token) as warm_up:
                assert warm_up.get(SALES).status_code == 200
        for number in INTERLEAVINGS[name]:
            client = clients.enter_context(gateways[number].client(token))
            calls.append(partial(client.get, SALES))
        reached = len(service.requests)

        responses = at_once(calls)

    passed = [response for response in responses if response.status_code == 200]
    assert abs(len(passed) - LIMIT) <= 1
    assert {code_of(response) for response in responses} == {(200, ""), (429, "rate-limited")}
    assert len(service.requests) - reached == len(passed)
    # Whatever the order, each answer that passed counted another token.
    assert len({remaining(response) for response in passed}) >= LIMIT - 1


def test_requests_one_after_the_other_on_changing_instances_share_one_bucket(
    gateways: tuple[Gateway, Gateway], issuer: Issuer
) -> None:
    token = issuer.token(user_id="in-turn")
    with gateways[0].client(token) as one, gateways[1].client(token) as two:
        one.get(SALES)
        two.get(SALES)
        left = [remaining(client.get(SALES)) for client in (one, two, one, two)]

    assert left == [19, 18, 17, 16]


def test_bad_tokens_spend_only_their_senders_address(gateway: Gateway, issuer: Issuer) -> None:
    good = issuer.token(user_id="victim")
    thief = Issuer()
    with gateway.client(good) as user:
        assert user.get(SALES).status_code == 200  # from here on this token is known

        with gateway.client() as attacker:
            answers = [
                code_of(attacker.get(SALES, headers={"Authorization": f"Bearer {thief.token(user_id='victim')}"}))
                for _ in range(100)
            ]

        refused = answers.count((401, "token-invalid"))
        assert abs(refused - (LIMIT - 1)) <= 1  # less the good token's first request, which came from there too
        assert answers[refused:].count((429, "rate-limited")) + answers[refused:].count((401, "token-invalid")) == (
            100 - refused
        )
        still = user.get(SALES)
        assert (still.status_code, remaining(still)) == (200, LIMIT - 1)

    with from_address(gateway, "127.0.0.2") as neighbour:
        elsewhere = neighbour.get(SALES)
    assert (code_of(elsewhere), remaining(elsewhere)) == ((401, "token-missing"), LIMIT - 1)


def test_a_header_of_the_client_does_not_choose_whose_budget_is_spent(gateway: Gateway) -> None:
    with gateway.client() as client:
        left = [
            remaining(client.get(SALES, headers={"X-Forwarded-For": f"10.0.0.{n}", "X-Real-IP": f"10.0.0.{n}"}))
            for n in range(3)
        ]

    assert left == [19, 18, 17]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (SALES, {}, 200),
        (SALES, {"Authorization": "Bearer nonsense"}, 401),
        (SALES, {"X-Tenant-ID": OTHER_TENANT_ID}, 403),
        ("/api/v1/nowhere", {}, 404),
        ("/api/v1/orders/1", {}, 502),
        ("/api/v1/recipes/1", {}, 503),
        ("/openapi.json", {}, 200),
    ],
)
def test_every_limited_answer_tells_of_the_limit(
    gateway: Gateway, issuer: Issuer, path: str, headers: dict[str, str], status: int
) -> None:
    with gateway.client(issuer.token(user_id="told")) as client:
        response = client.get(path, headers=headers)

    assert response.status_code == status
    assert [name for name in LIMIT_HEADERS if name not in response.headers] == []
    assert response.headers["ratelimit-policy"] == f'"default";q={LIMIT};w={WINDOW_S}'
    assert re.fullmatch(r'"default";r=\d+;t=\d+', response.headers["ratelimit"])
    assert response.headers["x-ratelimit-limit"] == "20"
    assert (
        f'"default";r={remaining(response)};t={response.headers["x-ratelimit-reset"]}'
        == (response.headers["ratelimit"])
    )
    if remaining(response) == LIMIT - 1:
        assert response.headers["x-ratelimit-reset"] == str(WINDOW_S // LIMIT)


def test_a_refusal_says_when_to_come_back_and_that_is_true(
    issuer: Issuer, service: RecordingUpstream, redis_server: RedisServer
) -> None:
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "RATE_LIMIT_REQUESTS": "5",
        "RATE_LIMIT_WINDOW_SECONDS": "20",
        "REDIS_HOST": redis_server.host,
        "REDIS_PORT": str(redis_server.port),
    }
    with Gateway(settings) as gateway, gateway.client(issuer.token(user_id="patient")) as client:
        assert [client.get(SALES).status_code for _ in range(6)] == [200] * 6  # the first spends the address's
        asked_at = time.monotonic()
        refused = client.get(SALES)
        answered_at = sent_at = time.monotonic()

        assert code_of(refused) == (429, "rate-limited")
        wait_s = int(refused.headers["retry-after"])
        assert 1 <= wait_s <= 4
        assert refused.json()["retry_after"] == wait_s
        assert (refused.headers["x-ratelimit-remaining"], remaining(refused)) == ("0", 0)
        while client.get(SALES).status_code == 429:
            assert sent_at < answered_at + wait_s, "it may come back by then"
            time.sleep(0.2)
            sent_at = time.monotonic()
        assert time.monotonic() >= asked_at + wait_s - 1  # it was told in whole seconds


def test_refused_requests_cost_nothing(gateway: Gateway, issuer: Issuer) -> None:
    with gateway.client() as client:
        for _ in range(LIMIT + 2):
            client.get(SALES)
        first = client.get(SALES)
        for _ in range(30):
            client.get(SALES)
        last = client.get(SALES)

    assert first.status_code == last.status_code == 429
    assert int(last.headers["retry-after"]) <= int(first.headers["retry-after"]) <= WINDOW_S // LIMIT
    assert int(last.headers["x-ratelimit-reset"]) <= int(first.headers["x-ratelimit-reset"]) <= WINDOW_S


def test_the_limit_comes_before_the_token_and_the_route(gateway: Gateway) -> None:
    with gateway.client() as client:
        for _ in range(LIMIT + 2):
            client.get("/api/v1/nowhere")

        assert code_of(client.get("/api/v1/nowhere")) == (429, "rate-limited")
        assert code_of(client.get(SALES, headers={"Authorization": "Bearer x"})) == (429, "rate-limited")


def test_preflights_and_health_spend_nothing(gateway: Gateway) -> None:
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    with gateway.client() as client:
        before = remaining(client.get(SALES))
        for _ in range(30):
            answered = client.options(SALES, headers=preflight)
            assert (answered.status_code, answered.headers["access-control-max-age"]) == (204, "600")
            assert client.get("/health").status_code == 200
            assert client.get("/api/v1/health").status_code == 200
            assert not [name for name in LIMIT_HEADERS if name in answered.headers]
        after = remaining(client.get(SALES))

    assert before - after == 1


def test_signing_in_is_limited_by_address_over_both_instances(
    gateways: tuple[Gateway, Gateway], service: RecordingUpstream, issuer: Issuer
) -> None:
    settings_of_login = {"email": "ana@panaderia.example", "password": "guess"}
    with gateways[0].client() as one, gateways[1].client() as two:
        reached = len(service.requests)
        answers = []
        for number in range(LIMIT + 4):
            path = ("login", "register", "refresh")[number % 3]
            sent = {"refresh_token": f"{number}th"} if path == "refresh" else settings_of_login
            answers.append((one, two)[number % 2].post(f"/api/v1/auth/{path}", json=sent))
        statuses = [answer.status_code for answer in answers]

    assert abs(statuses.count(200) - LIMIT) <= 1
    assert set(statuses[LIMIT + 1 :]) == {429}
    assert len(service.requests) - reached == statuses.count(200)
    assert answers[0].headers["ratelimit-policy"] == f'"default";q={LIMIT};w={WINDOW_S}, "auth";q=20;w={WINDOW_S}'
    with from_address(gateways[0], "127.0.0.2") as neighbour:
        assert neighbour.post("/api/v1/auth/login", json=settings_of_login).status_code == 200


def test_the_limit_of_signing_in_is_one_of_its_own(
    issuer: Issuer, service: RecordingUpstream, redis_server: RedisServer
) -> None:
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "AUTH_SERVICE_URL": service.url,
        "SALES_SERVICE_URL": service.url,
        "AUTH_RATE_LIMIT_REQUESTS": "3",
        "REDIS_HOST": redis_server.host,
        "REDIS_PORT": str(redis_server.port),
    }
    with Gateway(settings) as gateway, gateway.client() as client:
        answers = [client.post("/api/v1/auth/login", json={}) for _ in range(5)]
        problem = answers[-1].json()

        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert (problem["policy"], problem["limit"], problem["window_seconds"]) == ("auth", 3, 60)
        with gateway.client(issuer.token()) as user:
            assert user.get(SALES).status_code == 200
            assert user.get("/api/v1/auth/me").status_code == 200


def test_without_redis_an_instance_limits_by_itself(
    issuer: Issuer, service: RecordingUpstream, start_gateway: Callable[..., Gateway]
) -> None:
    gateway = start_gateway({"RATE_LIMIT_REQUESTS": "4", "SALES_SERVICE_URL": service.url})
    with gateway.client(issuer.token()) as client:
        assert [client.get(SALES).status_code for _ in range(7)] == [200] * 5 + [429] * 2


def test_a_route_with_a_limit_of_its_own_has_its_own_bucket(
    issuer: Issuer, service: RecordingUpstream, start_gateway: Callable[..., Gateway], tmp_path: object
) -> None:
    routes = f"{tmp_path}/routes.toml"
    with open(routes, "w") as file:
        file.write(
            '[[route]]\nprefix = "/api/v1/sales/export"\nservice = "sales"\n'
            "limit = {requests = 2, window_seconds = 60}\n"
            '[[route]]\nprefix = "/api/v1/sales/watched"\nservice = "sales"\n'
            "limit = {requests = 1, window_seconds = 60, shadow = true}\n"
        )
    gateway = start_gateway({"ROUTES_FILE": routes, "SALES_SERVICE_URL": service.url})
    with gateway.client(issuer.token()) as client:
        client.get(SALES)
        export = [client.get("/api/v1/sales/export/all").status_code for _ in range(3)]
        watched = [client.get("/api/v1/sales/watched").status_code for _ in range(3)]

        assert export == [200, 200, 429]
        assert watched == [200, 200, 200]
        assert client.get(SALES).status_code == 200
    with gateway.admin() as admin:
        exceeded = admin.get("/metrics").text
    assert 'gateway_rate_limit_exceeded_total{endpoint="/api/v1/sales/export/**"} 1.0' in exceeded
    assert 'gateway_rate_limit_exceeded_total{endpoint="/api/v1/sales/watched/**"} 2.0' in exceeded


def test_every_key_in_redis_is_the_gateways_own_and_ends_by_itself(
    gateway: Gateway, issuer: Issuer, redis_server: RedisServer
) -> None:
    with gateway.client(issuer.token(user_id="keys")) as client:
        client.get(SALES)
        client.get(SALES)
    store = redis.Redis(host=redis_server.host, port=redis_server.port)
    try:
        keys = [key for key in store.keys("*") if not key.startswith(OF_TIMERS)]
        lives = [store.pttl(key) for key in keys]
    finally:
        store.close()

    assert len(keys) == 2
    assert all(key.startswith(b"bakerygw:limit:") for key in keys)
    assert all(0 < life <= WINDOW_S * 1000 for life in lives)
