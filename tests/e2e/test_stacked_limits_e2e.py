"""Limits upon limits over two instances and one Redis: files, the admin port, shadows, and what callers are told."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests.e2e.calling import SALES, WITHIN_S, Load, at_once, code_of, from_address, until
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.minting import OTHER_TENANT_ID, Issuer, iso
from tests.redis_server import RedisServer

STOCK = "/api/v1/inventory/flour"
PER_BAKERY, PER_USER, PER_ADDRESS = 30, 12, 5
ROUTES = f"""
[[limit]]
name = "bakery"
by = "tenant"
prefix = "/api/v1/sales"
requests = {PER_BAKERY}
window_seconds = 3600

[[limit]]
name = "person"
by = "user"
prefix = "/api/v1/sales"
requests = {PER_USER}
window_seconds = 3600

[[limit]]
name = "desk"
by = "address"
prefix = "/api/v1/auth"
requests = {PER_ADDRESS}
window_seconds = 3600

[[limit]]
name = "tried"
by = "tenant"
prefix = "/api/v1/inventory"
requests = 3
window_seconds = 3600
shadow = true
"""
Pair = tuple[Gateway, Gateway]


def settings_of(issuer: Issuer, service: RecordingUpstream, store: RedisServer, **more: str) -> dict[str, str]:
    names = ("SALES", "AUTH", "INVENTORY")
    return {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        **{f"{name}_SERVICE_URL": service.url for name in names},
        "RATE_LIMIT_REQUESTS": "1000",
        "REDIS_HOST": store.host,
        "REDIS_PORT": str(store.port),
        **more,
    }


@pytest.fixture(scope="module")
def pair(
    issuer: Issuer, service: RecordingUpstream, shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two instances that share one Redis and these limits."""
    file = tmp_path_factory.mktemp("routes") / "routes.toml"
    file.write_text(ROUTES)
    settings = settings_of(issuer, service, shared_redis, ROUTES_FILE=str(file))
    with Gateway(settings) as one, Gateway(settings) as two:
        yield one, two


@pytest.fixture
def gateways(pair: Pair, redis_server: RedisServer) -> Pair:
    """The pair, with all buckets full and no limit for a time."""
    return pair


def known(stack: ExitStack, gateway: Gateway, token: str) -> httpx.Client:
    """A client whose token this instance knows."""
    client = stack.enter_context(gateway.client(token))
    assert client.get("/api/v1/limits").status_code == 200
    return client


def limit(gateway: Gateway, tenant_id: str, **wanted: object) -> httpx.Response:
    """Put the tenant under a limit for a time, by this instance's admin port."""
    with gateway.admin() as admin:
        response = admin.put(
            f"/api/tenants/{tenant_id}/limits", json={"window_seconds": 3600, "for_seconds": 600, **wanted}
        )
    assert response.status_code == 200, response.text
    return response


def left(response: httpx.Response) -> dict[str, int]:
    """What remains, by policy, as `GET /api/v1/limits` tells."""
    assert response.status_code == 200, response.text
    return {row["policy"]: row["remaining"] for row in response.json()["limits"]}


def test_all_users_of_a_tenant_together_pass_no_more_often_than_its_limit_on_both_instances(
    gateways: Pair, service: RecordingUpstream, issuer: Issuer
) -> None:
    tenant = "crowded"
    with ExitStack() as stack:
        calls: list[Callable[[], httpx.Response]] = []
        for user in range(4):
            token = issuer.token(user_id=f"baker-{user}", tenant_id=tenant)
            clients = [known(stack, gateway, token) for gateway in gateways]
            calls += [partial(clients[number % 2].get, SALES) for number in range(PER_USER - 2)]
        reached = len(service.requests)
        responses = at_once(calls)

        passed = [response for response in responses if response.status_code == 200]
        assert abs(len(passed) - PER_BAKERY) <= 1
        assert len(service.requests) - reached == len(passed)
        refused = next(response for response in responses if response.status_code == 429)
        assert (refused.json()["policy"], refused.json()["scope"]) == ("bakery", "tenant")
        assert refused.json()["retry_after"] == int(refused.headers["retry-after"]) <= 120
        elsewhere = known(stack, gateways[1], issuer.token(user_id="baker-0", tenant_id="calm"))
        assert code_of(elsewhere.get(SALES))[0] == 200


def test_one_user_meets_the_users_limit_before_the_tenants_and_both_are_in_every_header(
    gateways: Pair, issuer: Issuer
) -> None:
    with ExitStack() as stack:
        clients = [known(stack, gateway, issuer.token(user_id="alone", tenant_id="lone")) for gateway in gateways]
        answers = [clients[number % 2].get(SALES) for number in range(PER_USER + 2)]

    assert [answer.status_code for answer in answers] == [200] * PER_USER + [429] * 2
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {
        f'"default";q=1000;w=60, "bakery";q={PER_BAKERY};w=3600, "person";q={PER_USER};w=3600'
    }
    assert [answer.headers["x-ratelimit-limit"] for answer in answers] == [str(PER_USER)] * len(answers)
    assert f'"bakery";r={PER_BAKERY - PER_USER}' in answers[-1].headers["ratelimit"]
    assert answers[-1].json()["scope"] == "user"


def test_a_limit_by_address_counts_everybody_there(gateways: Pair, issuer: Issuer) -> None:
    with from_address(gateways[0], "127.0.0.9") as one, from_address(gateways[1], "127.0.0.9") as two:
        statuses = [client.post("/api/v1/auth/login", json={}).status_code for client in (one, two) * 4]
    with from_address(gateways[0], "127.0.0.10") as neighbour:
        assert neighbour.post("/api/v1/auth/login", json={}).status_code == 200

    assert statuses == [200] * PER_ADDRESS + [429] * 3


def test_nobody_spends_a_tenants_limit_by_forged_or_new_tokens(gateways: Pair, issuer: Issuer) -> None:
    thief = Issuer()
    limit(gateways[0], "victim", requests=5)
    with gateways[1].client() as attacker:
        for number in range(20):
            forged = thief.token(user_id=f"u{number}", tenant_id="victim")
            assert attacker.get(SALES, headers={"Authorization": f"Bearer {forged}"}).status_code == 401
    with ExitStack() as stack:
        assert left(known(stack, gateways[1], issuer.token(tenant_id="victim")).get("/api/v1/limits"))["tenant"] == 5


def test_a_limit_for_a_time_set_on_one_instance_holds_on_the_other_within_a_second_and_ends(
    gateways: Pair, issuer: Issuer
) -> None:
    one, two = gateways
    with ExitStack() as stack:
        client = known(stack, two, issuer.token(user_id="till", tenant_id="wild"))
        with Load(client=client, path=STOCK) as load:
            load.go_on(20)
            limit(one, "wild", requests=3, reason="till 4", by="maria")
            set_at = time.monotonic()
            until(lambda: 429 in load.statuses)
            assert time.monotonic() - set_at < WITHIN_S
        refused = client.get(STOCK)
        problem = refused.json()
        assert (refused.status_code, problem["policy"], problem["scope"], problem["limit"]) == (
            429,
            "tenant",
            "tenant",
            3,
        )
        assert problem["until"] in problem["detail"]
        assert "till 4" not in refused.text
        assert '"tenant";q=3;w=3600' in refused.headers["ratelimit-policy"]
        with one.admin() as admin:
            shown = admin.get("/api/tenants/wild/limits").json()
            assert (shown["for_a_time"]["remaining"], shown["for_a_time"]["by"]) == (0, "maria")
            assert admin.delete("/api/tenants/wild/limits").status_code == 200
        until(lambda: client.get(STOCK).status_code == 200)
        events = [one.wait_for_event(f"admin.tenant.limit.{name}") for name in ("set", "cleared")]
        assert [events[0]["before"], events[1]["after"]] == [None, None]

        limit(two, "wild", requests=1, window_seconds=86_400, for_seconds=3)
        assert code_of(client.get(STOCK))[0] == 429  # the bucket that was emptied is empty still
        until(lambda: client.get(STOCK).status_code == 200)


def test_without_redis_telling_of_changes_a_limit_for_a_time_holds_with_the_next_request(
    issuer: Issuer, service: RecordingUpstream, own_redis: RedisServer
) -> None:
    own_redis.command("ACL", "SETUSER", "default", "-client|tracking")
    settings = settings_of(issuer, service, own_redis)
    with Gateway(settings) as one, Gateway(settings) as two, ExitStack() as stack:
        client = known(stack, two, issuer.token(tenant_id="blind"))
        limit(one, "blind", requests=2)
        assert [client.get(SALES).status_code for _ in range(4)] == [200, 200, 429, 429]
        with one.admin() as admin:
            admin.delete("/api/tenants/blind/limits")
        assert client.get(SALES).status_code == 200


@pytest.mark.parametrize(
    "written", ["rubbish", "5 60", "0 60 0 99999999999", "1 60 0 1", "1 60 0 999999999999999", "1 " * 100_000]
)
def test_what_others_write_over_a_limit_for_a_time_limits_nobody_and_harms_nobody(
    gateways: Pair, issuer: Issuer, redis_server: RedisServer, written: str
) -> None:
    with ExitStack() as stack:
        client = known(stack, gateways[1], issuer.token(tenant_id="odd"))
        redis_server.command("SET", "bakerygw:limits:odd", written)
        assert {client.get(STOCK).status_code for _ in range(4)} == {200}
        with gateways[0].admin() as admin:
            assert admin.get("/api/tenants/odd/limits").json()["for_a_time"] is None


def test_a_shadow_counts_and_logs_and_is_no_matter_of_the_clients(gateways: Pair, issuer: Issuer) -> None:
    gateway = gateways[0]
    with ExitStack() as stack:
        client = known(stack, gateway, issuer.token(tenant_id="tried-out"))
        with gateway.admin() as admin:
            before = shadowed(admin)
            answers = [client.get(STOCK) for _ in range(5)]
            after = shadowed(admin)
        listed = left(client.get("/api/v1/limits"))

    assert [answer.status_code for answer in answers] == [200] * 5
    assert not [answer for answer in answers if "tried" in str(answer.headers)]
    assert after - before == 2
    assert "tried" not in listed
    request_id = answers[-1].headers["x-request-id"]
    done = until(lambda: [line for line in gateway.events("request.done") if line["request_id"] == request_id])
    assert done[0]["limited"] == "tried"


def shadowed(admin: httpx.Client) -> float:
    name = 'gateway_rate_limit_policy_exceeded_total{policy="tried",shadow="true"} '
    return sum(float(line[len(name) :]) for line in admin.get("/metrics").text.splitlines() if line.startswith(name))


def test_callers_see_their_limits_at_no_cost_and_in_the_documented_form(gateways: Pair, issuer: Issuer) -> None:
    paid = {"tier": "starter", "status": "active", "valid_until": iso(time.time() + 86_400)}
    entry = {"id": OTHER_TENANT_ID, "role": "admin", **paid}
    token = issuer.token(user_id="curious", tenant_access=[entry])
    limit(gateways[0], OTHER_TENANT_ID, requests=1)
    with ExitStack() as stack:
        client = known(stack, gateways[1], token)
        client.get(SALES)
        looks = [left(client.get("/api/v1/limits")) for _ in range(10)]
        assert [list(look) for look in looks] == [["default"]] * 10
        assert all(look["default"] >= 999 for look in looks)  # a token is back after 60 ms

        other = {"X-Tenant-ID": OTHER_TENANT_ID}
        assert [client.get(STOCK, headers=other).status_code for _ in range(2)] == [200, 429]
        emptied = client.get("/api/v1/limits", headers=other)
        rows = {row["policy"]: row for row in emptied.json()["limits"]}
        assert (rows["tenant"]["remaining"], rows["tenant"]["scope"]) == (0, "tenant")
        assert 0 < rows["tenant"]["retry_after"] <= 3600
        assert rows["tenant"]["until"].endswith("Z")
        assert emptied.headers["cache-control"] == "no-store"
        document = client.get("/openapi.json").json()
        assert client.head("/api/v1/limits").status_code == 200
        assert code_of(client.post("/api/v1/limits")) == (405, "method-not-allowed")
        stranger = {"X-Tenant-ID": "somebody-elses"}
        assert code_of(client.get("/api/v1/limits", headers=stranger)) == (403, "tenant-forbidden")

    answer = document["paths"]["/api/v1/limits"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][answer["$ref"].rpartition("/")[2]]
    Draft202012Validator(schema).validate(emptied.json())


def test_with_redis_gone_under_load_the_limits_last_known_hold_on_each_instance(
    issuer: Issuer, service: RecordingUpstream, own_redis: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(ROUTES)
    settings = settings_of(issuer, service, own_redis, ROUTES_FILE=str(file))
    with Gateway(settings) as one, Gateway(settings) as two, ExitStack() as stack:
        tenant = "stranded"
        clients = [known(stack, gateway, issuer.token(user_id="s", tenant_id=tenant)) for gateway in (one, two)]
        limit(one, tenant, requests=8)
        loads = [stack.enter_context(Load(client=client)) for client in clients]
        for load in loads:
            load.go_on(6)
        own_redis.kill()
        for load in loads:
            load.go_on(60)
        own_redis.start()
        until(lambda: own_redis.command("PING"))
        for load in loads:
            load.go_on(20)
        passed = sum(load.statuses.count(200) for load in loads)

    assert {status for load in loads for status in load.statuses} == {200, 429}
    assert [load.errors for load in loads] == [[], []]
    # What Redis let pass, once more on each instance while it was away, and once more by a Redis that has lost all.
    assert passed <= 8 + 2 * 8 + PER_USER
