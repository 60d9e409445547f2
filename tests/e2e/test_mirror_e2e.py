"""Two gateways on one Redis: a known tenant costs no reading; a change by anybody is in force on both in a second."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any

import httpx
import pytest
import redis

from bakerygw.stores.mirror import MAX_TENANTS
from tests.e2e.asked import OWN, settled_cost
from tests.e2e.calling import SALES, WITHIN_S, Load, code_of, until
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.e2e.relay import Relay
from tests.minting import TENANT_ID, Issuer, join
from tests.redis_server import RedisServer

READ_ONLY = f"tenant:{TENANT_ID}:read_only"
CHANGED_AT = f"tenant:{TENANT_ID}:subscription_changed_at"
DEMO = f"tenant:{TENANT_ID}:demo"
OK, HELD = (200, ""), (403, "tenant-read-only")
STALE, APART, REVOKED = (401, "token-stale"), (403, "demo-isolation"), (401, "token-revoked")


def revoked_key(token: str) -> str:
    return "bakerygw:revoked:" + sha256(token.rpartition(".")[0].encode()).hexdigest()


def forged(issuer: Issuer, number: int) -> bytes:
    """A request with a token that nobody has signed, about two tenants that no other names."""
    own, other = f"own-{number}", f"other-{number}"
    token = join(issuer.header(), issuer.payload(tenant_id=own, tenant_access=[{"id": other}]), b"forged")
    lines = [f"GET {SALES} HTTP/1.1", "Host: gateway", f"X-Tenant-ID: {other}", f"Authorization: Bearer {token}"]
    return "\r\n".join([*lines, "", ""]).encode()


class Caller:
    """One user's way to one gateway."""

    def __init__(self, gateway: Gateway, client: httpx.Client, admin: httpx.Client) -> None:
        self.gateway, self.client, self.admin = gateway, client, admin

    def write(self) -> tuple[int, str]:
        return code_of(self.client.post(SALES, json={}))

    def metric(self, name: str) -> float:
        lines = self.admin.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])

    @property
    def trusted(self) -> bool:
        return self.metric("gateway_mirror_trusted") == 1

    def sees(self, expected: tuple[int, str]) -> float:
        """Wait until writes are answered so; returns the seconds it took."""
        began = time.monotonic()
        until(lambda: self.write() == expected, every_s=0.005)
        return time.monotonic() - began


@contextmanager
def callers(count: int, port: int, token: str, issuer: Issuer, service: RecordingUpstream) -> Iterator[list[Caller]]:
    """So many gateways on the Redis at this port, each with its mirror in use."""
    with ExitStack() as running:
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "SALES_SERVICE_URL": service.url,
            "RATE_LIMIT_REQUESTS": "1000000",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
        }
        found = []
        for _ in range(count):
            gateway = running.enter_context(Gateway(settings))
            client, admin = (running.enter_context(of) for of in (gateway.client(token), gateway.admin()))
            found.append(Caller(gateway, client, admin))
        for caller in found:
            until(lambda caller=caller: caller.trusted)
            assert [caller.write() for _ in range(3)] == [OK] * 3
        yield found


@pytest.fixture(scope="module")
def token(issuer: Issuer) -> str:
    return issuer.token()


@pytest.fixture(scope="module")
def both(module_redis: RedisServer, token: str, issuer: Issuer, service: RecordingUpstream) -> Iterator[list[Caller]]:
    with callers(2, module_redis.port, token, issuer, service) as found:
        yield found


@pytest.fixture
def pair(both: list[Caller], module_redis: RedisServer, token: str) -> list[Caller]:
    """Two gateways with their mirrors trusted, and a Redis without flags."""
    module_redis.command("DEL", revoked_key(token))
    module_redis.command("FLUSHALL")
    for caller in both:
        until(lambda caller=caller: caller.trusted)
        caller.sees(OK)
    return both


@contextmanager
def program(server: RedisServer) -> Iterator[redis.Redis]:
    """Any other program's way to Redis."""
    with redis.Redis(host=server.host, port=server.port) as client:
        yield client


@pytest.fixture
def other(module_redis: RedisServer) -> Iterator[redis.Redis]:
    with program(module_redis) as client:
        yield client


def calls(client: redis.Redis) -> dict[str, int]:
    stats: dict[str, Any] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): its["calls"] for name, its in stats.items()}


CHANGES: dict[str, tuple[Callable[[redis.Redis, str], object], tuple[int, str]]] = {
    "read_only": (lambda other, token: other.set(READ_ONLY, "held"), HELD),
    "subscription_changed_at": (lambda other, token: other.set(CHANGED_AT, time.time() + 5), STALE),
    "demo": (lambda other, token: other.set(DEMO, "1"), APART),
    "revoked": (lambda other, token: other.set(revoked_key(token), "1", ex=60), REVOKED),
}


UNDOINGS = [(flag, undo) for flag in CHANGES for undo in ("DEL", "FLUSHALL", "EXPIRE") if flag != "revoked"]


class TestChanges:
    @pytest.mark.parametrize(("flag", "undo"), [*UNDOINGS, ("revoked", "DEL"), ("revoked", "EXPIRE")])
    def test_set_and_undone_by_another_program_it_is_in_force_on_both_within_a_second(
        self, pair: list[Caller], other: redis.Redis, token: str, *, flag: str, undo: str
    ) -> None:
        change, expected = CHANGES[flag]
        change(other, token)
        assert [caller.sees(expected) < WITHIN_S for caller in pair] == [True, True]

        if undo == "FLUSHALL":
            other.flushall()
        else:
            for key in (READ_ONLY, CHANGED_AT, DEMO, revoked_key(token)):
                other.delete(key) if undo == "DEL" else other.pexpire(key, 100)
        assert [caller.sees(OK) < WITHIN_S for caller in pair] == [True, True]

    def test_a_hold_that_expires_is_over_at_its_moment(self, pair: list[Caller], other: redis.Redis) -> None:
        ends = time.monotonic() + 1.5
        other.set(READ_ONLY, "held", px=1500)
        for caller in pair:
            caller.sees(HELD)
        while True:
            answers = [caller.write() for caller in pair]
            if time.monotonic() >= ends:
                break
            assert answers == [HELD, HELD]
        for caller in pair:
            caller.sees(OK)

    def test_an_operators_change_is_in_force_with_the_answer_and_elsewhere_within_a_second(
        self, pair: list[Caller]
    ) -> None:
        here, there = pair
        for _ in range(10):
            assert here.admin.put(f"/api/tenants/{TENANT_ID}/read-only", json={"reason": "x"}).status_code == 200
            assert here.write() == HELD
            there.sees(HELD)
            assert here.admin.delete(f"/api/tenants/{TENANT_ID}/read-only").status_code == 200
            assert here.write() == OK
            there.sees(OK)

    def test_a_revoked_token_is_told_how_to_go_on_and_others_pass(
        self, pair: list[Caller], other: redis.Redis, token: str, issuer: Issuer
    ) -> None:
        other.set(revoked_key(token), "1", ex=60)
        for caller in pair:
            caller.sees(REVOKED)
            refused = caller.client.get(SALES)
            assert code_of(refused) == REVOKED
            assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            with caller.gateway.client(issuer.token(jti="another")) as client:
                assert client.post(SALES).status_code == 200

    def test_a_revoked_token_is_refused_by_who_has_never_seen_it(
        self, pair: list[Caller], other: redis.Redis, issuer: Issuer
    ) -> None:
        fresh = issuer.token(jti="fresh")
        other.set(revoked_key(fresh), "1", ex=60)
        for caller in pair:
            with caller.gateway.client(fresh) as client:
                assert code_of(client.get(SALES)) == REVOKED

    def test_a_redis_that_is_emptied_puts_no_token_in_force_again(
        self, pair: list[Caller], other: redis.Redis, issuer: Issuer
    ) -> None:
        used, unused = (issuer.token(jti=f"lost-{name}") for name in ("used", "unused"))
        read = calls(other).get("pttl", 0)
        other.set(revoked_key(unused), "1", ex=60)
        until(lambda: calls(other).get("pttl", 0) >= read + len(pair))  # each has looked what it was told of
        other.set(revoked_key(used), "1", ex=60)
        for caller in pair:
            with caller.gateway.client(used) as client:
                until(lambda client=client: code_of(client.get(SALES)) == REVOKED)
        other.flushall()

        for caller in pair:
            caller.sees(OK)
            for token in (used, unused):
                with caller.gateway.client(token) as client:
                    assert [code_of(client.get(SALES)) for _ in range(3)] == [REVOKED] * 3


class TestCost:
    def test_requests_of_a_known_tenant_cost_their_limit_and_nothing_else(
        self, pair: list[Caller], other: redis.Redis
    ) -> None:
        caller = pair[0]

        def ask() -> None:
            nonlocal hits, misses
            hits, misses = read()
            assert {caller.write() for _ in range(100)} == {OK}

        def read() -> list[float]:
            return [caller.metric(f"gateway_mirror_{which}_total") for which in ("hits", "misses")]

        hits, misses = read()
        assert settled_cost(other, ask) == {"EVALSHA": 100}
        # An instance that had to wait for the processor relies on the mirror again a little later.
        until(lambda: read() == [hits + 100, misses] or ask())

    def test_the_call_names_no_key_but_the_limits(self, pair: list[Caller], other: redis.Redis) -> None:
        with other.monitor() as monitor:
            pair[0].write()
            command = ""
            while not command.startswith("EVALSHA") or any(own in command for own in OWN):
                command = monitor.next_command()["command"]
        words = command.split()
        assert words[2] == "1"
        assert words[3].startswith("bakerygw:limit:{default:user:")


class TestTrouble:
    def test_killed_invalidation_connections_cost_no_truth(self, pair: list[Caller], other: redis.Redis) -> None:
        for value in ("held", None) * 3:
            other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            other.set(READ_ONLY, value) if value else other.delete(READ_ONLY)
            assert max(caller.sees(HELD if value else OK) for caller in pair) < WITHIN_S
        for caller in pair:
            until(lambda caller=caller: caller.trusted)
            for state in ("distrusted", "trusted"):
                caller.gateway.wait_for_event("store.mirror", lambda event, state=state: event["state"] == state)

    def test_a_hung_redis_is_noticed_last_values_stand_in_and_changes_count_as_soon_as_it_goes_on(
        self, pair: list[Caller], other: redis.Redis, module_redis: RedisServer
    ) -> None:
        other.set(READ_ONLY, "held")
        pair[1].sees(HELD)
        pair[0].sees(HELD)
        other.delete(READ_ONLY)
        other.set(CHANGED_AT, "5")
        for caller in pair:
            caller.sees(OK)
        module_redis.suspend()
        try:
            until(lambda: not any(caller.trusted for caller in pair))
            assert [caller.write() for caller in pair] == [OK, OK]
        finally:
            module_redis.resume()
        other.set(READ_ONLY, "held")
        for caller in pair:
            caller.sees(HELD)
            until(lambda caller=caller: caller.trusted)
        other.delete(READ_ONLY)
        assert max(caller.sees(OK) for caller in pair) < WITHIN_S

    def test_forged_tokens_take_nothing_from_what_is_known_of_real_tenants_when_redis_goes(
        self, own_redis: RedisServer, token: str, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        batch = 100
        with callers(1, own_redis.port, token, issuer, service) as (caller,):
            for start in range(0, MAX_TENANTS // 2 + batch, batch):
                requests = b"".join(forged(issuer, start + number) for number in range(batch))
                answers = caller.gateway.raw(requests, answers=batch)
                assert answers.count(b"HTTP/1.1 401 ") == batch
            own_redis.kill()
            until(lambda: not caller.trusted)
            assert [caller.write() for _ in range(3)] == [OK] * 3

    def test_a_restarted_redis_leaves_nothing_of_before(
        self, pair: list[Caller], other: redis.Redis, module_redis: RedisServer
    ) -> None:
        other.set(READ_ONLY, "held")
        for caller in pair:
            caller.sees(HELD)
        with Load(client=pair[0].client) as load:
            module_redis.restart()
            for caller in pair[1:]:
                caller.sees(OK)
                until(lambda caller=caller: caller.trusted)
            load.go_on(10)
        assert (load.errors, set(load.statuses)) == ([], {200})

    def test_a_subscriber_connection_that_swallows_everything_costs_no_truth_and_is_found_again(
        self, own_redis: RedisServer, token: str, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        with (
            Relay(own_redis.host, own_redis.port) as relay,
            callers(1, relay.port, token, issuer, service) as (caller,),
            program(own_redis) as other,
        ):
            relay.swallowing.set()
            for value in ("held", None) * 3:
                other.set(READ_ONLY, value) if value else other.delete(READ_ONLY)
                assert caller.sees(HELD if value else OK) < WITHIN_S
            assert not caller.trusted
            relay.swallowing.clear()
            until(lambda: caller.trusted)
            other.set(READ_ONLY, "held")
            assert caller.sees(HELD) < WITHIN_S
            until(lambda: caller.trusted)

    def test_a_redis_that_may_not_tell_is_asked_with_each_request_and_said_so_once(
        self, issuer: Issuer, service: RecordingUpstream, token: str
    ) -> None:
        with RedisServer() as server:
            server.command("ACL", "SETUSER", "default", "on", "nopass", "~*", "&*", "+@all", "-client")
            settings = {
                "JWT_PUBLIC_KEY": issuer.public_pem,
                "SALES_SERVICE_URL": service.url,
                "REDIS_HOST": server.host,
                "REDIS_PORT": str(server.port),
            }
            with Gateway(settings) as gateway, gateway.client(token) as client, gateway.admin() as admin:
                caller = Caller(gateway, client, admin)
                gateway.wait_for_event("store.mirror")
                for value in ("held", None) * 3:
                    words = ("SET", READ_ONLY, value) if value else ("DEL", READ_ONLY)
                    server.command(*words)
                    assert caller.write() == (HELD if value else OK)
                assert not caller.trusted
                (told,) = gateway.events("store.mirror")
                assert told["state"] == "distrusted"
                assert "NOPERM" in told["reason"]
