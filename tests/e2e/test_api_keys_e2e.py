"""API keys from outside: made on one instance, used on another, ended on both."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from bakerygw.core.api_keys import key_id_from, record_from, record_json, sealed, spelt
from tests.e2e.asked import asked, settled_cost
from tests.e2e.calling import WITHIN_S, Load, at_once, code_of, until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
from tests.e2e.listening import Reader
from tests.e2e.recording import plain
from tests.minting import OTHER_TENANT_ID, TENANT_ID, Issuer, iso
from tests.redis_server import RedisServer

ME = "/api/v1/auth/me"
"""A route that needs no subscription."""
PROXY = "127.0.0.9"
OK = (200, "")
REVOKED = (401, "token-revoked")
INVALID = (401, "token-invalid")
FORBIDDEN = (403, "tenant-forbidden")
AWAY = (503, "state-unavailable")


def tenant_service(request: Recorded) -> Answer:
    """Answers as the tenant service where it is asked for a subscription, else as any other."""
    if not request.target.endswith(b"/subscription/status"):
        return plain(request)
    paid = {"tier": "professional", "status": "active", "valid_until": iso(time.time() + 86_400)}
    return answer(200, json.dumps(paid).encode())


class Key:
    """A key as its operator got it."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.id, self.text, self.made = made["id"], made["key"], made

    @property
    def field(self) -> dict[str, str]:
        return {"Authorization": f"ApiKey {self.text}"}


class Instance:
    """One gateway, as operators and machines reach it."""

    def __init__(self, gateway: Gateway, running: ExitStack) -> None:
        self.gateway = gateway
        self.admin, self.client = (running.enter_context(of) for of in (gateway.admin(), gateway.client()))
        self._running = running

    def make(self, **wanted: Any) -> Key:
        made = self.admin.post("/api/keys", json={"tenant_id": TENANT_ID, "name": "Till", "role": "pos", **wanted})
        assert made.status_code == 201, made.text
        return Key(made.json())

    def rotate(self, key: Key, **wanted: Any) -> Key:
        made = self.admin.post(f"/api/keys/{key.id}/rotate", json=wanted)
        assert made.status_code == 200, made.text
        return Key(made.json())

    def revoke(self, key: Key) -> None:
        assert self.admin.delete(f"/api/keys/{key.id}").status_code == 200

    def use(self, key: Key, path: str = ME, method: str = "GET", **fields: str) -> tuple[int, str]:
        return code_of(self.client.request(method, path, headers={**key.field, **fields}))

    def sees(self, key: Key, expected: tuple[int, str]) -> float:
        """Seconds until the key is answered so."""
        began = time.monotonic()
        until(lambda: self.use(key) == expected)
        return time.monotonic() - began

    def from_address(self, address: str) -> httpx.Client:
        return self._running.enter_context(self.gateway.client(transport=httpx.HTTPTransport(local_address=address)))


@contextmanager
def instances(count: int, server: RedisServer, issuer: Issuer, service: RecordingUpstream) -> Iterator[list[Instance]]:
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        **{f"{name}_SERVICE_URL": service.url for name in ("AUTH", "POS", "TENANT")},
        "RATE_LIMIT_REQUESTS": "1000000",
        "REDIS_HOST": server.host,
        "REDIS_PORT": str(server.port),
        "TRUSTED_PROXIES": PROXY,
        "API_KEY_SECRET": "only-the-gateways-know-this-secret",
    }
    with ExitStack() as running:
        service.always(tenant_service)
        yield [Instance(running.enter_context(Gateway(settings)), running) for _ in range(count)]


@pytest.fixture(scope="module")
def both(module_redis: RedisServer, issuer: Issuer, service: RecordingUpstream) -> Iterator[list[Instance]]:
    with instances(2, module_redis, issuer, service) as found:
        yield found


@pytest.fixture
def here(both: list[Instance]) -> Instance:
    return both[0]


@pytest.fixture
def there(both: list[Instance]) -> Instance:
    return both[1]


@pytest.fixture
def other(module_redis: RedisServer) -> Iterator[redis.Redis]:
    """Any other program's way to Redis."""
    with redis.Redis(host=module_redis.host, port=module_redis.port) as client:
        yield client


def record_of(key: Key) -> str:
    return f"bakerygw:apikey:{key.id}"


class TestLife:
    def test_made_on_one_instance_it_works_on_the_other_and_stays_in_the_gateway(
        self, here: Instance, there: Instance, service: RecordingUpstream, other: redis.Redis
    ) -> None:
        key = here.make()
        service.reset()
        service.always(tenant_service)
        assert there.use(key, ME, **{"X-User-Role": "owner", "X-Api-Key": key.text}) == OK
        (seen,) = [request for request in service.requests if request.target == ME.encode()]
        assert seen.value("x-user-id") == f"key-{key.id}".encode()
        assert (seen.value("x-user-role"), seen.value("x-tenant-id")) == (b"pos", TENANT_ID.encode())
        assert (seen.value("x-is-demo"), seen.value("x-user-email")) == (b"false", None)
        assert key.text.encode() not in seen.head
        for name in other.scan_iter("bakerygw:apikey:*"):
            assert key.text.split("_", 2)[2][:43].encode() not in (other.get(name) or b"")

    def test_a_rotation_with_overlap_interrupts_nothing(self, here: Instance, there: Instance) -> None:
        old = here.make()
        assert there.use(old) == OK
        began = time.monotonic()
        new = here.rotate(old, overlap_seconds=3)
        assert [there.use(key) for key in (old, new)] == [OK, OK]
        until(lambda: there.use(old) == REVOKED)
        assert time.monotonic() - began >= 2.99
        assert [instance.use(key) for instance in (here, there) for key in (old, new)] == [REVOKED, OK] * 2

    @pytest.mark.parametrize("act", ["rotate", "revoke"])
    def test_ended_under_load_on_one_it_is_ended_on_the_other_within_a_second(
        self, here: Instance, there: Instance, act: str
    ) -> None:
        keys = [here.make() for _ in range(3)]
        clients = [there.gateway.client(headers=key.field) for key in keys for _ in range(2)]
        with ExitStack() as running:
            loads = [running.enter_context(Load(client=running.enter_context(client), path=ME)) for client in clients]
            for load in loads:
                load.go_on(20)
            for key in keys:
                here.rotate(key) if act == "rotate" else here.revoke(key)
                assert here.use(key) == REVOKED
                assert there.sees(key, REVOKED) < WITHIN_S
                assert {there.use(key) for _ in range(20)} == {REVOKED}
        assert [load.errors for load in loads] == [[]] * 6
        for load in loads:
            assert load.statuses == sorted(load.statuses), "once refused, never let pass again"
            assert set(load.statuses) == {200, 401}

    @pytest.mark.parametrize("act", ["rotate", "revoke", "subscription"])
    def test_what_ends_it_on_one_ends_its_stream_on_the_other(self, here: Instance, there: Instance, act: str) -> None:
        key = here.make(tenant_id=f"stream-{act}")
        with Reader(there.gateway, headers=key.field) as read:
            if act == "subscription":
                assert here.admin.post(f"/api/tenants/stream-{act}/subscription-changed", json={}).is_success
            else:
                here.rotate(key) if act == "rotate" else here.revoke(key)

            assert read.bye() == ("token-stale" if act == "subscription" else "token-revoked")

    def test_an_instance_that_never_saw_a_revoked_key_refuses_it_too(self, here: Instance, there: Instance) -> None:
        key = here.make()
        here.revoke(key)
        assert there.use(key) == REVOKED

    def test_a_key_expires_on_every_instance(self, here: Instance, there: Instance) -> None:
        key = here.make(expires_in=3)
        assert [instance.use(key) for instance in (here, there)] == [OK, OK]
        for instance in (here, there):
            until(lambda instance=instance: instance.use(key) == (401, "token-expired"))

    def test_rotated_on_two_instances_at_once_one_new_key_works(self, here: Instance, there: Instance) -> None:
        for _ in range(5):
            old = here.make()
            path = f"/api/keys/{old.id}/rotate"
            rotated = at_once([lambda at=at, path=path: at.admin.post(path) for at in (here, there)])
            new = [Key(reply.json()) for reply in rotated if reply.status_code == 200]
            assert {reply.status_code for reply in rotated} <= {200, 503}
            assert [there.use(key) for key in new].count(OK) == 1
            assert here.use(old) == REVOKED

    def test_the_list_tells_of_it_until_the_end_and_of_its_last_use(self, here: Instance, there: Instance) -> None:
        key = here.make(tenant_id="list-1")
        here.make(tenant_id="list-2")

        def shown() -> dict[str, Any]:
            (found,) = there.admin.get("/api/keys", params={"tenant_id": "list-1"}).json()["keys"]
            assert found == there.admin.get(f"/api/keys/{key.id}").json()
            assert "key" not in found
            return found

        assert (shown()["status"], shown()["last_used_at"]) == ("active", None)
        there.use(key)
        until(lambda: shown()["last_used_at"] is not None)
        there.revoke(key)
        assert shown()["status"] == "revoked"
        assert len(there.admin.get("/api/keys", params={"limit": 1}).json()["keys"]) == 1


def test_with_another_secret_in_force_what_keys_have_opened_ends_and_nothing_else(
    issuer: Issuer, service: RecordingUpstream, tmp_path: Path
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'api_key_secret = "{"a" * 40}"')
    settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "TENANT_SERVICE_URL": service.url}
    service.always(tenant_service)
    with Gateway(settings, config=config) as gateway, ExitStack() as running:
        key = Instance(gateway, running).make()
        read = running.enter_context(Reader(gateway, headers=key.field))
        other = running.enter_context(Reader(gateway, issuer.token()))
        config.write_text(f'api_key_secret = "{"b" * 40}"')
        gateway.signal(signal.SIGHUP)

        assert read.bye() == "token-invalid"
        assert not other.ended.is_set()


class TestSubscription:
    def test_that_of_the_keys_tenant_is_looked_up_and_counts(
        self, here: Instance, there: Instance, service: RecordingUpstream
    ) -> None:
        key = here.make()
        service.reset()
        service.always(tenant_service)
        assert [there.use(key, "/api/v1/pos/receipts", "POST") for _ in range(3)] == [OK] * 3
        *asked, first, _, _ = service.requests
        assert (first.value("x-subscription-tier"), first.value("x-user-role")) == (b"professional", b"pos")
        assert [request.target for request in asked] == [f"/api/v1/tenants/{TENANT_ID}/subscription/status".encode()]
        assert key.text.encode() not in b"".join(request.head for request in service.requests)

    def test_a_tenant_on_hold_is_on_hold_for_its_keys(self, here: Instance, there: Instance) -> None:
        key = here.make(tenant_id="held-1")
        assert there.use(key, "/api/v1/pos/receipts", "POST") == OK
        assert here.admin.put("/api/tenants/held-1/read-only", json={}).status_code == 200
        until(lambda: there.use(key, "/api/v1/pos/receipts", "POST") == (403, "tenant-read-only"))
        assert there.use(key, "/api/v1/pos/receipts") == OK

    def test_a_change_of_it_makes_no_key_stale(self, here: Instance, there: Instance) -> None:
        key = here.make(tenant_id="changed-1")
        assert there.use(key, "/api/v1/pos/receipts") == OK
        assert here.admin.post("/api/tenants/changed-1/subscription-changed").status_code == 200
        assert {there.use(key, "/api/v1/pos/receipts") for _ in range(20)} == {OK}


class TestBounds:
    def test_of_a_tenant(self, here: Instance) -> None:
        key = here.make()
        assert here.use(key, f"/api/v1/tenants/{TENANT_ID}/subscription") == OK
        assert here.use(key, f"/api/v1/tenants/{OTHER_TENANT_ID}/subscription") == FORBIDDEN
        assert here.use(key, **{"X-Tenant-ID": OTHER_TENANT_ID}) == FORBIDDEN

    def test_of_routes_and_methods(self, here: Instance, service: RecordingUpstream) -> None:
        key = here.make(routes=["/api/v1/auth/till"], methods=["GET", "POST"])
        service.reset()
        assert here.use(key, "/api/v1/auth/till/7?x=1", "POST") == OK
        for path, method in (
            ("/api/v1/auth/till/7", "DELETE"),
            ("/api/v1/auth/tills", "GET"),
            ("/api/v1/auth/me", "GET"),
            ("/api/v1/auth/%74ill", "GET"),
            ("/api/v1/pos", "GET"),
        ):
            assert here.use(key, path, method) == FORBIDDEN, path
        assert [request.target for request in service.requests] == [b"/api/v1/auth/till/7?x=1"]
        refused = here.client.get("/api/v1/pos", headers=key.field).json()
        assert refused["allowed_routes"] == ["/api/v1/auth/till"]

    def test_of_what_no_key_may_do(self, here: Instance, service: RecordingUpstream) -> None:
        key = here.make()
        service.reset()
        assert here.use(key, "/api/v1/auth/logout", "POST") == FORBIDDEN
        assert here.use(key, f"/api/v1/tenants/{TENANT_ID}/subscription", "PUT") == FORBIDDEN
        assert here.use(key, f"/api/v1/tenants/{TENANT_ID}", "DELETE") == FORBIDDEN
        assert service.requests == []
        assert here.use(key) == OK

    def test_of_addresses_also_behind_a_trusted_proxy(self, here: Instance) -> None:
        key = here.make(addresses=["127.0.0.2", "203.0.113.0/24", "2001:db8::/32"])

        def ask(address: str, forwarded: str | None = None) -> tuple[int, str]:
            fields = {} if forwarded is None else {"X-Forwarded-For": forwarded}
            return code_of(here.from_address(address).get(ME, headers={**key.field, **fields}))

        assert ask("127.0.0.2") == OK
        assert ask("127.0.0.1") == FORBIDDEN
        assert ask("127.0.0.1", "127.0.0.2") == FORBIDDEN
        assert ask(PROXY) == FORBIDDEN
        assert [ask(PROXY, client) for client in ("203.0.113.9", "2001:db8::7", "1.1.1.1, 203.0.113.9")] == [OK] * 3
        assert ask(PROXY, "203.0.113.9, 198.51.100.1") == FORBIDDEN

    def test_of_a_limit_of_its_own_for_all_instances_together(self, here: Instance, there: Instance) -> None:
        key = here.make(limit={"requests": 4, "window_seconds": 600})
        assert [instance.use(key) for instance in (here, there)] == [OK, OK]  # these spend the address's budget
        asked = [instance.use(key) for _ in range(3) for instance in (here, there)]
        assert asked == [OK] * 4 + [(429, "rate-limited")] * 2
        refused = here.client.get(ME, headers=key.field)
        assert refused.headers["ratelimit-policy"] == '"key";q=4;w=600'
        assert here.use(here.make()) == OK

    def test_that_a_finder_elsewhere_cannot_spend_it(self, here: Instance) -> None:
        key = here.make(limit={"requests": 2, "window_seconds": 600}, addresses=["127.0.0.2"])
        client = here.from_address("127.0.0.2")
        assert client.get(ME, headers=key.field).status_code == 200
        assert {here.use(key) for _ in range(10)} == {FORBIDDEN}
        assert [client.get(ME, headers=key.field).status_code for _ in range(3)] == [200, 200, 429]


class TestCost:
    def test_a_known_key_costs_its_limit_and_nothing_else(self, here: Instance, other: redis.Redis) -> None:
        key = here.make()

        def ask() -> None:
            assert {here.use(key) for _ in range(50)} == {OK}

        ask()
        assert settled_cost(other, ask) == {"EVALSHA": 50}

    def test_a_wrong_key_is_asked_for_once_and_nonsense_never(self, here: Instance, other: redis.Redis) -> None:
        wrong = Key({"id": "", "key": spelt(key_id_from(b"wrong-key!"), bytes(32)).decode()})
        nonsense = [Key({"id": "", "key": text}) for text in ("x", wrong.text[:-1], wrong.text + "0")]
        here.use(here.make())
        with asked(other) as commands:
            assert {here.use(key) for key in nonsense for _ in range(10)} == {INVALID}
            assert {here.use(wrong) for _ in range(50)} == {INVALID}
        assert commands["EVALSHA"] == 80
        assert 1 <= commands["GETRANGE"] < 10


class TestTrouble:
    @pytest.mark.parametrize("length", [100, 40_000, 3_000_000])
    def test_a_record_of_rubbish_opens_nothing_and_can_be_revoked(
        self, here: Instance, there: Instance, other: redis.Redis, length: int
    ) -> None:
        key = here.make()
        other.set(record_of(key), b"\xff" * length)
        assert there.use(key) == INVALID
        assert here.admin.get(f"/api/keys/{key.id}").status_code == 400
        assert there.admin.delete(f"/api/keys/{key.id}").json()["status"] == "unreadable"
        assert here.admin.get(f"/api/keys/{key.id}").status_code == 404

    @pytest.mark.parametrize(
        "change",
        [
            {"tenant_id": OTHER_TENANT_ID},
            {"role": "owner"},
            {"role": "a\r\nX-User-Role: owner"},
            {"expires_at": None},
            {"routes": None},
            {"addresses": None},
            {"limit": None},
            {"id": "a" * 16},
            {"extra": 1},
        ],
        ids=str,
    )
    def test_a_record_that_somebody_has_changed_opens_nothing(
        self, here: Instance, there: Instance, other: redis.Redis, change: dict[str, Any]
    ) -> None:
        key = here.make(
            expires_in=60,
            routes=["/api/v1/auth"],
            addresses=["127.0.0.0/8"],
            limit={"requests": 10, "window_seconds": 60},
        )
        record = json.loads(other.get(record_of(key)) or b"")
        other.set(record_of(key), json.dumps({**record, **change}))
        assert there.use(key) == INVALID
        other.set(record_of(key), json.dumps(record))
        assert here.use(key) == OK

    def test_a_record_of_somebodys_own_making_opens_nothing(self, here: Instance, other: redis.Redis) -> None:
        made = here.make()
        record = record_from(other.get(record_of(made)) or b"", made.id)
        forged = replace(record, key_id=key_id_from(b"of-my-own!"))
        for guess in (b"", b"a guess"):
            own = Key({"id": forged.key_id, "key": spelt(forged.key_id, guess.ljust(32)).decode()})
            secret = sealed(forged, own.text.encode(), guess, time.time())
            other.set(record_of(own), record_json(replace(forged, secrets=(secret,))))
            assert here.use(own) == INVALID
        assert here.use(made) == OK

    def test_a_list_with_rubbish_in_it_is_still_one(self, here: Instance, other: redis.Redis) -> None:
        key = here.make(tenant_id="rubbish")
        other.sadd("bakerygw:apikeys:rubbish", "x", b"\xff\x00", "../../x", "a" * 16)
        (shown,) = here.admin.get("/api/keys?tenant_id=rubbish").json()["keys"]
        assert shown["id"] == key.id
        assert b"a" * 16 not in other.smembers("bakerygw:apikeys:rubbish")

    def test_without_redis_known_keys_go_on_and_others_wait(
        self, own_redis: RedisServer, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        with instances(1, own_redis, issuer, service) as (only,):
            known, unknown, revoked = (only.make() for _ in range(3))
            assert [only.use(known) for _ in range(2)] == [OK, OK]
            assert only.use(revoked) == OK
            only.revoke(revoked)
            own_redis.suspend()
            assert only.use(unknown) == AWAY
            assert only.use(known) == OK
            own_redis.kill()
            assert {only.use(known) for _ in range(20)} == {OK}
            assert (only.use(unknown), only.use(revoked)) == (AWAY, REVOKED)
            assert only.use(known, method="POST") == OK
            refused = only.client.get(ME, headers=unknown.field)
            assert refused.headers["retry-after"] == "2"
            for method, path in (
                ("POST", ""),
                ("GET", ""),
                ("DELETE", f"/{known.id}"),
                ("POST", f"/{known.id}/rotate"),
            ):
                body = {"tenant_id": TENANT_ID, "name": "x", "role": "pos"} if (method, path) == ("POST", "") else None
                assert code_of(only.admin.request(method, f"/api/keys{path}", json=body)) == AWAY
            assert only.use(known) == OK

    def test_no_key_is_ever_logged_wherever_it_was_put(self, here: Instance, there: Instance) -> None:
        key = here.make()
        secret = key.text.split("_", 2)[2][:20]
        quoted = key.text.replace("_", "%5F")
        here.use(key)
        for path in (f"/api/v1/auth/{key.text}", f"/api/v1/auth/{quoted}", f"{ME}?key={key.text}", f"/{key.text}"):
            for fields in (
                {},
                key.field,
                {"Authorization": f"Bearer {key.text}"},
                {"Authorization": key.text},
                {"X-Request-ID": key.text},
                {"X-Tenant-ID": key.text, **key.field},
                {"Cookie": f"a={key.text}", "User-Agent": key.text, "Referer": f"https://x/{key.text}"},
            ):
                told = here.client.get(path, headers=fields).headers
                assert secret not in str(told)
        here.admin.get(f"/api/keys/{key.text}")
        here.admin.get(f"/api/keys?after={key.text}")
        here.admin.post("/api/keys", json={"tenant_id": TENANT_ID, "name": key.text, "role": "pos"})
        here.rotate(key)
        here.revoke(key)
        until(lambda: here.gateway.events("admin.key.revoked"))
        for instance in (here, there):
            assert secret not in instance.gateway.output
        used = [event for event in here.gateway.events("key.used") if event["key_id"] == key.id]
        assert [event["client"] for event in used] == ["127.0.0.1"]
        assert {event.get("key_id") for event in here.gateway.events("key.refused")} >= {key.id}
