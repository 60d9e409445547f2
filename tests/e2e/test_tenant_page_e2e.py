"""A tenant's page of the admin port, and what it does on the other instance."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.calling import SALES, code_of, until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS, paired
from tests.minting import OTHER_TENANT_ID, Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer
from tests.test_docs import page, rows

FLAGS = {"tenant_id", "read_only", "subscription_changed_at", "demo"}


@pytest.fixture(scope="module")
def pair(issuer: Issuer, service: RecordingUpstream, module_redis: RedisServer) -> Iterator[list[Gateway]]:
    with paired(issuer, module_redis, {"SALES_SERVICE_URL": service.url, **NO_LIMITS}) as gateways:
        yield list(gateways)


def documented_sections() -> set[str]:
    """The members in the operators' table."""
    section = page("docs/operators.md").partition("**A tenant's page**")[2].partition("\n## ")[0]
    return {cells[0] for cells in rows(section.partition("A part that cannot")[0])} - {"member"}


def test_one_call_shows_a_tenant(pair: list[Gateway], issuer: Issuer, service: RecordingUpstream) -> None:
    tenant, user = str(uuid.uuid4()), str(uuid.uuid4())
    path = f"/api/tenants/{tenant}"
    with pair[0].client(issuer.token(tenant_id=tenant, user_id=user)) as client, pair[0].admin() as admin:
        assert admin.put(f"{path}/read-only", json={"reason": "stock-taking"}).status_code == 200
        assert code_of(client.post(SALES, json={})) == (403, "tenant-read-only")
        refused = client.get(SALES, headers={"X-Tenant-ID": OTHER_TENANT_ID})
        service.next(answer(500, b"{}", reason="Oh"))
        failed = client.get(SALES)
        until(lambda: len(admin.get(path).json()["audit"]) == 3)
        shown = admin.get(path).json()
    assert shown.keys() == FLAGS | documented_sections()
    assert shown["read_only"]["reason"] == "stock-taking"
    assert [(it["code"], it["status"], it["user"]) for it in shown["refusals"]] == [
        ("tenant-forbidden", 403, user),
        ("tenant-read-only", 403, user),
    ]
    assert shown["refusals"][0]["request_id"] == refused.headers["X-Request-ID"]
    (error,) = shown["errors"]
    assert (error["status"], error["service"], error["request_id"]) == (500, "sales", failed.headers["X-Request-ID"])
    assert [it["event"] for it in shown["audit"]] == ["request.refused"] * 2 + ["admin.tenant.read_only.set"]
    assert user not in str(shown["audit"])


def test_a_hold_and_a_changed_subscription_reach_the_other_instance(pair: list[Gateway], issuer: Issuer) -> None:
    tenant = str(uuid.uuid4())
    path = f"/api/tenants/{tenant}"
    with pair[0].admin() as admin, pair[1].admin() as other:
        with pair[1].client(issuer.token(tenant_id=tenant, iat=int(time.time()) - 60)) as client:
            assert client.get(SALES).status_code == 200
            hold = {"reason": "unpaid", "until": "2040-01-31T18:00:00Z", "by": "maria"}
            assert admin.put(f"{path}/read-only", json=hold).status_code == 200
            until(lambda: code_of(client.post(SALES, json={})) == (403, "tenant-read-only"))
            assert admin.post(f"{path}/subscription-changed").status_code == 200
            until(lambda: code_of(client.get(SALES)) == (401, "token-stale"))
        shown = other.get(path).json()
        assert (shown["read_only"]["by"], shown["subscription_changed_at"] is None) == ("maria", False)
        assert [note["code"] for note in shown["refusals"]] == ["token-stale", "tenant-read-only"]


def test_a_disconnect_ends_what_is_open_for_the_tenant_on_every_instance_and_nothing_else(
    pair: list[Gateway], issuer: Issuer, service: RecordingUpstream
) -> None:
    tenant, neighbour = str(uuid.uuid4()), str(uuid.uuid4())
    service.reset()
    disconnected = threading.Event()

    def slow(_: Recorded) -> Answer:
        disconnected.wait(PATIENCE_S)
        return answer(200, b'{"slow": true}')

    service.always(slow)

    def call(gateway: Gateway, whose: str) -> str:
        with gateway.client(issuer.token(tenant_id=whose)) as client:
            try:
                return str(client.get(SALES).status_code)
            except httpx.TransportError:
                return "reset"

    with ThreadPoolExecutor(3) as pool, pair[1].admin() as admin:
        calls = [pool.submit(call, *of) for of in ((pair[0], tenant), (pair[1], tenant), (pair[0], neighbour))]
        until(lambda: len(service.requests) == 3)
        done = admin.post(f"/api/tenants/{tenant}/disconnect")
        assert (done.status_code, done.json()) == (202, {"tenant_id": tenant, "ended": 1, "instances": 2})
        assert [one.result(PATIENCE_S) for one in calls[:2]] == ["reset", "reset"]
        disconnected.set()
        assert [one.result(PATIENCE_S) for one in calls] == ["reset", "reset", "200"]
        assert code_of(admin.get("/api/tenants/a/disconnect")) == (405, "method-not-allowed")
    service.reset()


def test_with_redis_away_the_page_and_a_disconnect_say_so(pair: list[Gateway], module_redis: RedisServer) -> None:
    module_redis.suspend()
    try:
        with pair[0].admin() as admin:
            shown, ended = admin.get("/api/tenants/a"), admin.post("/api/tenants/a/disconnect")
            page = shown.json()
            assert {name for name in page if "unavailable" in (page[name] or {})} >= {"read_only", "limits", "audit"}
            assert (page["refusals"], page["errors"]) == ([], [])  # of this instance's memory
            assert code_of(ended) == (503, "state-unavailable")
            assert shown.elapsed.total_seconds() < 8.0
            assert ended.elapsed.total_seconds() < 8.0
    finally:
        module_redis.resume()
