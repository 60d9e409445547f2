"""A real Redis: flags that other programs write, and what holds while Redis is killed, hung, shut or wrong."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any

import httpx
import pytest
import redis

from tests.e2e.asked import settled_cost
from tests.e2e.calling import SALES, Load, code_of, until
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.e2e.relay import Relay
from tests.minting import OTHER_TENANT_ID, TENANT_ID, Issuer, access
from tests.redis_server import RedisServer

StartGateway = Callable[..., Gateway]

USUAL_S, SLOWEST_S = 0.25, 5.0
"""Half of all answers take less than the one, and none more than the other, whatever Redis does."""


def settings_for(server: RedisServer, issuer: Issuer, service: RecordingUpstream, **more: str | None) -> dict[str, Any]:
    return {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "TENANT_SERVICE_URL": service.url,
        "RATE_LIMIT_REQUESTS": "100000",
        "REDIS_HOST": server.host,
        "REDIS_PORT": str(server.port),
        **more,
    }


@pytest.fixture(scope="module")
def gateway(issuer: Issuer, service: RecordingUpstream, shared_redis: RedisServer) -> Iterator[Gateway]:
    """One on the healthy Redis, with time enough for each call."""
    with Gateway(settings_for(shared_redis, issuer, service, REDIS_TIMEOUT_MS="1000")) as running:
        yield running


@pytest.fixture
def other_program(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """Any other service's way to the same, empty Redis."""
    client = redis.Redis(host=redis_server.host, port=redis_server.port)
    yield client
    client.close()


@contextmanager
def on(server: RedisServer, issuer: Issuer, service: RecordingUpstream, **more: str | None) -> Iterator[Gateway]:
    with Gateway(settings_for(server, issuer, service, **more)) as running:
        yield running


def health(gateway: Gateway) -> dict[str, Any]:
    with gateway.client() as client:
        response = client.get("/health")
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


def redis_is(gateway: Gateway, state: str) -> Callable[[], bool]:
    return lambda: health(gateway)["redis"] == state


class TestFlags:
    """Written straight into Redis by somebody else, and in force with the next request."""

    @pytest.mark.parametrize(
        "spelt",
        [
            lambda at: str(int(at) + 1),
            lambda at: f"{at:.6f}",
            lambda at: datetime.fromtimestamp(at, UTC).isoformat(),
            lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            lambda at: datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(),
        ],
        ids=["seconds", "fraction", "ISO", "ISO with Z", "ISO without offset"],
    )
    def test_a_changed_subscription_makes_older_tokens_stale(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis, spelt: Callable[[float], str]
    ) -> None:
        changed_at = time.time() - 60
        old, new = (issuer.token(iat=int(changed_at) + moved) for moved in (-5, 5))
        with gateway.client(old) as outdated, gateway.client(new) as refreshed:
            assert outdated.get(SALES).status_code == 200

            other_program.set(f"tenant:{TENANT_ID}:subscription_changed_at", spelt(changed_at))
            stale = outdated.get(SALES)

            assert code_of(stale) == (401, "token-stale")
            assert stale.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            assert refreshed.get(SALES).status_code == 200
            other_program.delete(f"tenant:{TENANT_ID}:subscription_changed_at")
            assert outdated.get(SALES).status_code == 200

    def test_a_fraction_of_a_second_counts_as_the_whole(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        now = int(time.time()) - 10
        other_program.set(f"tenant:{TENANT_ID}:subscription_changed_at", f"{now}.25")

        with gateway.client() as client:
            answers = [
                code_of(client.get(SALES, headers={"Authorization": f"Bearer {issuer.token(iat=now + moved)}"}))
                for moved in (0, 1)
            ]

        assert answers == [(401, "token-stale"), (200, "")]

    def test_the_change_of_the_effective_tenant_counts_too(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        token = issuer.token(tenant_access=[access(OTHER_TENANT_ID, "admin", "starter")])
        other_program.set(f"tenant:{OTHER_TENANT_ID}:subscription_changed_at", str(int(time.time()) + 60))

        with gateway.client(token) as client:
            assert client.get(SALES).status_code == 200
            assert code_of(client.get(SALES, headers={"X-Tenant-ID": OTHER_TENANT_ID})) == (401, "token-stale")

    def test_read_only_as_json_says_why_and_until_when(
        self, gateway: Gateway, service: RecordingUpstream, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        hold = {"reason": "Inventur", "since": "2030-01-01T00:00:00Z", "until": "2030-01-02T00:00:00Z", "by": "ops"}
        with gateway.client(issuer.token()) as client:
            assert client.post(SALES, json={}).status_code == 200
            other_program.set(f"tenant:{TENANT_ID}:read_only", json.dumps(hold))
            reached = len(service.requests)

            refused = [client.request(method, SALES) for method in ("POST", "PUT", "PATCH", "DELETE")]

            assert {code_of(response) for response in refused} == {(403, "tenant-read-only")}
            assert len(service.requests) == reached
            problem = refused[0].json()
            assert problem["read_only_reason"] == "Inventur"
            assert problem["read_only_until"] == "2030-01-02T00:00:00Z"
            assert client.get(SALES).status_code == 200
            assert client.head(SALES).status_code == 200
            override = {"X-HTTP-Method-Override": "GET"}
            assert code_of(client.post(SALES, headers=override)) == (403, "tenant-read-only")

            other_program.delete(f"tenant:{TENANT_ID}:read_only")
            assert client.post(SALES, json={}).status_code == 200

    @pytest.mark.parametrize(
        "value", ["1", "year-end stock-taking", "", "{broken", "[]", b"\xff\xfe\x00", "x" * 100_000]
    )
    def test_read_only_as_any_text_holds(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis, value: str | bytes
    ) -> None:
        other_program.set(f"tenant:{TENANT_ID}:read_only", value)

        with gateway.client(issuer.token()) as client:
            refused = client.post(SALES, json={})
            assert code_of(refused) == (403, "tenant-read-only")
            assert len(refused.content) < 5000
            assert client.get(SALES).status_code == 200

    def test_a_customer_can_pay_while_on_hold(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        other_program.set(f"tenant:{TENANT_ID}:read_only", "unpaid")

        with gateway.client(issuer.token()) as client:
            assert client.get(f"/api/v1/tenants/{TENANT_ID}/subscription").status_code == 200
            assert code_of(client.post(f"/api/v1/tenants/{TENANT_ID}/settings")) == (403, "tenant-read-only")
            assert code_of(client.post(f"/api/v1/tenants/{TENANT_ID}/subscription")) != (403, "tenant-read-only")

    def test_a_tenant_marked_demo_is_closed_to_ordinary_tokens(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        ordinary = issuer.token(tenant_access=[access(OTHER_TENANT_ID, "admin", "starter")])
        visitor = issuer.token(tenant_id=OTHER_TENANT_ID, is_demo=True, demo_session_id="s1")
        there = {"X-Tenant-ID": OTHER_TENANT_ID}
        with gateway.client(ordinary) as client:
            assert client.get(SALES, headers=there).status_code == 200

            other_program.set(f"tenant:{OTHER_TENANT_ID}:demo", "1")

            assert code_of(client.get(SALES, headers=there)) == (403, "demo-isolation")
            assert client.get(SALES).status_code == 200
        with gateway.client(visitor) as client:
            assert client.get(SALES).status_code == 200
            assert code_of(client.get(SALES, headers={"X-Tenant-ID": TENANT_ID})) == (403, "demo-isolation")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("subscription_changed_at", (503, "state-unavailable")), ("read_only", (403, "tenant-read-only"))],
    )
    def test_a_value_of_the_wrong_type_stops_writes_of_that_tenant_alone(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis, *, name: str, expected: tuple[int, str]
    ) -> None:
        other_program.rpush(f"tenant:tenant-{name}:{name}", "a", "list")

        with gateway.client(issuer.token(tenant_id=f"tenant-{name}")) as client:
            assert client.get(SALES).status_code == 200
            assert code_of(client.post(SALES)) == expected
        with gateway.client(issuer.token(user_id="elsewhere")) as client:
            assert client.post(SALES).status_code == 200
        assert health(gateway)["redis"] == "connected"

    def test_a_time_that_cannot_be_read_stops_writes_of_that_tenant_alone(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        tenant_id = "tenant-unreadable"
        other_program.set(f"tenant:{tenant_id}:subscription_changed_at", "yesterday")

        with gateway.client(issuer.token(tenant_id=tenant_id)) as client:
            assert client.get(SALES).status_code == 200
            assert code_of(client.post(SALES)) == (503, "state-unavailable")
        with gateway.client(issuer.token()) as client:
            assert client.post(SALES).status_code == 200

    def test_a_wrong_type_under_a_bucket_stops_nobody(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        with gateway.client(issuer.token(user_id="list-in-the-way")) as client:
            client.get(SALES)
            key = "bakerygw:limit:{default:user:list-in-the-way}"
            other_program.delete(key)
            other_program.rpush(key, "x")
            try:
                assert {client.get(SALES).status_code for _ in range(10)} == {200}
                assert other_program.type(key) != b"list"
            finally:
                other_program.delete(key)

    def test_the_script_is_found_again_after_it_was_flushed(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        with gateway.client(issuer.token()) as client:
            client.get(SALES)
            other_program.script_flush()
            other_program.set(f"tenant:{TENANT_ID}:read_only", "now")

            assert code_of(client.post(SALES)) == (403, "tenant-read-only")

    def test_one_round_trip_for_each_request(
        self, gateway: Gateway, issuer: Issuer, other_program: redis.Redis
    ) -> None:
        with gateway.client(issuer.token()) as client:
            client.get(SALES)
            assert settled_cost(other_program, lambda: [client.get(SALES) for _ in range(20)]) == {"EVALSHA": 20}


BLOWS: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], None]]] = {
    "killed": (RedisServer.kill, RedisServer.start),
    "stopped": (RedisServer.stop, RedisServer.start),
    "hung": (RedisServer.suspend, RedisServer.resume),
}


class TestAway:
    @pytest.mark.parametrize("blow", BLOWS)
    def test_reads_go_on_quickly_through_loss_and_return_under_load(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream, blow: str
    ) -> None:
        strike, heal = BLOWS[blow]
        with on(own_redis, issuer, service, REDIS_TIMEOUT_MS="50") as gateway, gateway.client(issuer.token()) as client:
            assert redis_is(gateway, "connected")()
            with Load(client=client) as load:
                load.go_on(20)
                strike(own_redis)
                until(redis_is(gateway, "disconnected"))
                assert health(gateway)["status"] == "degraded"
                load.go_on(100)
                heal(own_redis)
                until(redis_is(gateway, "connected"))
                load.go_on(20)

            assert load.errors == []
            assert set(load.statuses) == {200}
            assert (median(load.seconds) < USUAL_S, max(load.seconds) < SLOWEST_S) == (True, True)
            assert health(gateway)["redis"] == "connected"
            assert client.post(SALES).status_code == 200
            until(lambda: gateway.events("store.link")[-1]["state"] == "connected")

    def test_restarted_again_and_again_under_load_it_is_found_each_time(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        with on(own_redis, issuer, service) as gateway, gateway.client(issuer.token()) as client:
            with Load(client=client) as load, gateway.admin() as admin:
                for _ in range(3):
                    own_redis.restart()
                    until(redis_is(gateway, "connected"))
                    before = round_trips(admin)
                    until(lambda before=before: round_trips(admin) > before)

            assert (load.errors, set(load.statuses)) == ([], {200})
            assert (median(load.seconds) < USUAL_S, max(load.seconds) < SLOWEST_S) == (True, True)

    def test_writes_pass_on_flags_seen_before_and_else_wait_for_redis(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        known, unknown = issuer.token(), issuer.token(tenant_id="tenant-never-seen")
        with on(own_redis, issuer, service) as gateway:
            with gateway.client(known) as client:
                assert client.get(SALES).status_code == 200
                own_redis.kill()
                began = time.monotonic()
                assert client.post(SALES, json={}).status_code == 200
                assert time.monotonic() - began < SLOWEST_S
            reached = len(service.requests)
            with gateway.client(unknown) as client:
                refused = client.post(SALES, json={})
                assert code_of(refused) == (503, "state-unavailable")
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["retry_after"] == int(refused.headers["retry-after"])
                assert len(service.requests) == reached
                assert client.get(SALES).status_code == 200

                own_redis.start()
                until(lambda: client.post(SALES, json={}).status_code == 200)

    def test_a_hold_that_was_seen_goes_on(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        with on(own_redis, issuer, service) as gateway, gateway.client(issuer.token()) as client:
            own_redis.command("SET", f"tenant:{TENANT_ID}:read_only", "unpaid")
            assert code_of(client.post(SALES)) == (403, "tenant-read-only")
            own_redis.kill()

            assert code_of(client.post(SALES)) == (403, "tenant-read-only")
            assert client.get(SALES).status_code == 200

    def test_a_gateway_that_starts_without_redis_serves_and_finds_it(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        own_redis.kill()
        with on(own_redis, issuer, service) as gateway, gateway.client(issuer.token()) as client:
            assert health(gateway)["redis"] == "disconnected"
            assert client.get(SALES).status_code == 200
            assert code_of(client.post(SALES)) == (503, "state-unavailable")

            own_redis.start()
            until(redis_is(gateway, "connected"))

            until(lambda: client.post(SALES).status_code == 200)
            assert gateway.wait_for_event("gateway.started")["redis"] == "disconnected"

    def test_a_gateway_that_starts_with_a_hung_redis_serves(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        own_redis.suspend()
        try:
            with on(own_redis, issuer, service) as gateway, gateway.client(issuer.token()) as client:
                began = time.monotonic()
                assert client.get(SALES).status_code == 200
                assert time.monotonic() - began < SLOWEST_S
                own_redis.resume()
                until(redis_is(gateway, "connected"))
        finally:
            own_redis.resume()

    @pytest.mark.parametrize("password", [None, "wrong-password-1"])
    def test_without_the_right_password_it_serves_degraded_and_says_why(
        self, issuer: Issuer, service: RecordingUpstream, password: str | None
    ) -> None:
        with (
            RedisServer(password="right-password-1") as locked,
            on(locked, issuer, service, REDIS_PASSWORD=password) as gateway,
            gateway.client(issuer.token()) as client,
        ):
            assert client.get(SALES).status_code == 200
            assert code_of(client.post(SALES)) == (503, "state-unavailable")
            assert health(gateway)["redis"] == "disconnected"
            told = "NOAUTH" if password is None else "WRONGPASS"
            gateway.wait_for_event("store.link", lambda event: told in event["reason"])
            assert "wrong-password-1" not in gateway.output

    def test_with_the_right_password_it_works(self, issuer: Issuer, service: RecordingUpstream) -> None:
        with (
            RedisServer(password="right-password-1") as locked,
            on(locked, issuer, service, REDIS_PASSWORD="right-password-1", REDIS_DB="3") as gateway,
            gateway.client(issuer.token()) as client,
        ):
            assert client.post(SALES).status_code == 200
            assert health(gateway)["redis"] == "connected"
            store = redis.Redis(host=locked.host, port=locked.port, db=3, password="right-password-1")
            store.set(f"tenant:{TENANT_ID}:read_only", "in database 3")
            store.close()
            assert code_of(client.post(SALES)) == (403, "tenant-read-only")
            assert "right-password-1" not in gateway.output

    @pytest.mark.parametrize("trouble", ["read-only replica", "out of memory"])
    def test_a_redis_that_refuses_to_write_is_no_reason_to_fail(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream, trouble: str
    ) -> None:
        with on(own_redis, issuer, service) as gateway, gateway.client(issuer.token()) as client:
            client.get(SALES)
            if trouble == "out of memory":
                own_redis.command("CONFIG", "SET", "maxmemory", "1")
            else:
                own_redis.command("REPLICAOF", "127.0.0.1", "1")
                own_redis.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
            statuses = {client.get(SALES).status_code for _ in range(20)}
            assert statuses == {200}
            own_redis.command("CONFIG", "SET", "maxmemory", "0")
            own_redis.command("REPLICAOF", "NO", "ONE")
            with gateway.admin() as admin:
                before = round_trips(admin)
                until(lambda: client.get(SALES).status_code == 200 and round_trips(admin) > before)


class TestFailover:
    """The old primary lives on as a replica and keeps its connections; the address leads to the new one."""

    def test_the_new_primary_is_found_and_the_log_tells(self, issuer: Issuer, service: RecordingUpstream) -> None:
        with (
            RedisServer() as old,
            RedisServer() as new,
            Relay(old.host, old.port) as relay,
            Gateway(settings_for(old, issuer, service) | {"REDIS_PORT": str(relay.port)}) as gateway,
            gateway.client(issuer.token()) as client,
            gateway.admin() as admin,
        ):
            until(lambda: metric(admin, "gateway_mirror_trusted") == 1.0)
            assert client.post(SALES, json={}).status_code == 200

            old.command("REPLICAOF", new.host, str(new.port))
            until(lambda: client.get(SALES).status_code == 200 and redis_is(gateway, "disconnected")())
            failing = gateway.wait_for_event("store.link", lambda event: event["state"] == "failing")
            assert "READONLY You can't write against a read only replica." in failing["reason"]
            time.sleep(2)  # more than one attempt ends at the replica
            assert client.get(SALES).status_code == 200

            new.command("SET", f"tenant:{TENANT_ID}:read_only", "written to the new one")
            relay.lead_to(new.host, new.port)
            until(lambda: client.get(SALES).status_code == 200 and redis_is(gateway, "connected")())
            assert code_of(client.post(SALES)) == (403, "tenant-read-only")
            assert metric(admin, "gateway_redis_degraded") == 0.0
            until(lambda: metric(admin, "gateway_mirror_trusted") == 1.0)
            gateway.wait_for_event("store.mirror", lambda event: event["state"] == "trusted")

            until(lambda: len(gateway.events("store.link")) >= 3)
            assert [event["state"] for event in gateway.events("store.link")] == ["connected", "failing", "connected"]

    def test_without_requests_a_replica_that_is_promoted_is_noticed(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        with on(own_redis, issuer, service) as gateway, gateway.client(issuer.token()) as client:
            own_redis.command("REPLICAOF", "127.0.0.1", "1")
            assert client.get(SALES).status_code == 200
            until(redis_is(gateway, "disconnected"))

            own_redis.command("REPLICAOF", "NO", "ONE")
            until(redis_is(gateway, "connected"))

            until(lambda: [event["state"] for event in gateway.events("store.link")][-2:] == ["failing", "connected"])


def round_trips(admin: httpx.Client) -> float:
    return metric(admin, "gateway_redis_round_trips_total")


def metric(admin: httpx.Client, name: str) -> float:
    lines = admin.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])


class TestLimitsWithoutRedis:
    def statuses(
        self, policy: str | None, server: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> list[Any]:
        more = {"RATE_LIMIT_REQUESTS": "3", "RATE_LIMIT_ON_STORE_FAILURE": policy}
        with on(server, issuer, service, **more) as gateway, gateway.client(issuer.token()) as client:
            client.get(SALES)
            server.kill()
            until(redis_is(gateway, "disconnected"))
            answers = [client.get(SALES) for _ in range(6)]
            if policy == "closed":
                assert {"retry-after"} <= set(answers[0].headers)
                assert client.get("/health").status_code == 200
            with gateway.admin() as admin:
                assert metric(admin, "gateway_redis_degraded") == 1.0
            return [code_of(answer) for answer in answers]

    @pytest.mark.parametrize("policy", [None, "local"])
    def test_local_buckets_take_over(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream, policy: str | None
    ) -> None:
        answers = self.statuses(policy, own_redis, issuer, service)

        assert answers == [(200, "")] * 3 + [(429, "rate-limited")] * 3

    def test_open_lets_everything_pass(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        assert self.statuses("open", own_redis, issuer, service) == [(200, "")] * 6

    def test_closed_lets_nothing_pass(self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream) -> None:
        assert self.statuses("closed", own_redis, issuer, service) == [(503, "state-unavailable")] * 6
