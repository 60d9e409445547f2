"""Stored publishing, from outside: what is answered is kept, once, whatever two instances and Redis go through."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from tests.e2e.calling import code_of, until
from tests.e2e.harness import Gateway, free_ports, run_twistd
from tests.e2e.stage import paired
from tests.minting import TENANT_ID, Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

PATH = f"/api/tenants/{TENANT_ID}/alerts"
TOKEN = "a-token-for-those-who-publish"
FORBIDDEN = 403, "origin-forbidden"
KEPT = f"bakerygw:alerts:kept:{TENANT_ID}"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as its:
        yield its


@pytest.fixture(scope="module")
def pair(server: RedisServer, issuer: Issuer) -> Iterator[tuple[Gateway, Gateway]]:
    with paired(issuer, server, {"PUBLISH_TOKEN": TOKEN, "SSE_HISTORY_EVENTS": "500"}) as gateways:
        yield gateways


@pytest.fixture
def other_program(server: RedisServer) -> Iterator[redis.Redis]:
    """Any other program's way to the same Redis, emptied."""
    with redis.Redis(host=server.host, port=server.port) as client:
        client.flushall()
        yield client


def publish(gateway: Gateway, document: object, **options: Any) -> httpx.Response:
    fields = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
    return httpx.post(gateway.admin_url + PATH, json=document, headers=fields, timeout=PATIENCE_S, **options)


def kept(client: redis.Redis) -> dict[str, Any]:
    """What stands in the tenant's history, by id."""
    entries: Any = client.xrange(KEPT)
    return {its.decode(): json.loads(fields[b"p"]) for its, fields in entries}


def order(its: str) -> tuple[int, int]:
    epoch, _, offset = its.partition("-")
    return int(epoch), int(offset)


def test_what_is_answered_is_stored_and_told_to_every_instance_once(
    pair: tuple[Gateway, Gateway], other_program: redis.Redis
) -> None:
    heard = other_program.pubsub()
    heard.psubscribe("alerts:tenant:*")
    heard.get_message(timeout=PATIENCE_S)
    said = {"alert_id": "a-1", "message": "oven 3 is cold"}
    first, again = publish(pair[0], said), publish(pair[1], {**said, "severity": "high"})
    its = first.json()["id"]
    assert (first.status_code, first.json()) == (201, {"id": its, "stored": True, "repeated": False})
    assert (again.status_code, again.json()) == (200, {"id": its, "stored": True, "repeated": True})
    assert kept(other_program) == {its: said}
    message = heard.get_message(timeout=PATIENCE_S)
    assert message is not None
    assert (message["channel"].decode(), json.loads(message["data"])) == (f"alerts:tenant:{TENANT_ID}", said)
    assert heard.get_message(timeout=0.1) is None
    heard.close()


def test_many_who_publish_to_both_instances_get_places_of_one_order(
    pair: tuple[Gateway, Gateway], other_program: redis.Redis
) -> None:
    def send(number: int) -> str:
        with httpx.Client(timeout=PATIENCE_S) as client:
            fields = {"Authorization": f"Bearer {TOKEN}"}
            told = [
                client.post(
                    pair[(number + its) % 2].admin_url + PATH,
                    json={"alert_id": f"{number // 2}-{its}", "message": f"{number // 2}-{its}"},
                    headers=fields,
                )
                for its in range(20)
            ]
        assert {answer.status_code for answer in told} <= {200, 201}
        return " ".join(answer.json()["id"] for answer in told)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert answers[::2] == answers[1::2]
    ids = {its for answer in answers for its in answer.split()}
    assert sorted(order(its)[1] for its in ids) == list(range(1, 81))
    assert len({order(its)[0] for its in ids}) == 1
    assert kept(other_program).keys() == ids


def test_the_publishers_token_opens_this_call_and_nothing_else(pair: tuple[Gateway, Gateway]) -> None:
    fields = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=pair[0].admin_url, headers=fields) as client:
        for method, path in (("GET", "/api/config"), ("POST", "/api/drain"), ("GET", "/"), ("GET", "/api/keys")):
            refused = client.request(method, path)
            assert code_of(refused) == (401, "token-invalid")
        with_get = client.get(PATH)
        assert (with_get.status_code, with_get.headers["Allow"]) == (405, "POST")
    with pair[0].admin() as admin:
        assert admin.post(PATH, json={"message": "by the operator"}).status_code == 201
        shown = admin.get("/api/config").json()
    assert shown["publish_token"] == "***"
    assert code_of(publish(pair[0], {"message": "m"}, headers={"Authorization": "Bearer wrong"})) == (
        401,
        "token-invalid",
    )
    assert code_of(publish(pair[0], {"message": "m"}, headers={"Host": "evil.example"})) == FORBIDDEN
    assert code_of(publish(pair[0], {"message": "m"}, headers={"Origin": "https://evil.example"})) == FORBIDDEN
    with pair[0].client() as public:
        assert public.post(PATH, json={"message": "m"}, headers=fields).status_code == 404


def test_what_is_no_alert_is_named_and_what_is_too_large_refused(pair: tuple[Gateway, Gateway]) -> None:
    missing = publish(pair[0], {"alert_id": "x"})
    assert (missing.status_code, missing.json()["field"]) == (400, "message")
    assert publish(pair[0], ["message"]).status_code == 400
    assert publish(pair[0], {"message": "x" * (64 * 1024 - 14)}).status_code == 201
    assert code_of(publish(pair[0], {"message": "x" * (64 * 1024)})) == (413, "body-too-large")


def test_what_was_answered_outlives_redis_and_nothing_is_answered_without_it(
    pair: tuple[Gateway, Gateway], server: RedisServer, other_program: redis.Redis
) -> None:
    stored: dict[str, str] = {}
    unexpected: list[str] = []
    stop = threading.Event()

    def keep_publishing(gateway: Gateway, name: str) -> None:
        number = 0
        fields = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=gateway.admin_url, headers=fields, timeout=PATIENCE_S) as client:
            while not stop.is_set():
                answer = client.post(PATH, json={"alert_id": f"{name}-{number}", "message": f"{name}-{number}"})
                if answer.is_success:
                    stored[f"{name}-{number}"] = answer.json()["id"]
                    number += 1
                    continue
                if (code_of(answer), answer.headers["Retry-After"]) != ((503, "state-unavailable"), "1"):
                    unexpected.append(answer.text)
                time.sleep(0.05)

    workers = [threading.Thread(target=keep_publishing, args=(its, f"w{at}")) for at, its in enumerate(pair)]
    for worker in workers:
        worker.start()
    try:
        for pause in (server.restart, server.suspend):
            time.sleep(0.3)
            before = len(stored)
            pause()
            if pause == server.suspend:
                time.sleep(0.8)
                server.resume()
            until(lambda before=before: len(stored) >= before + 20)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert unexpected == []
    history = {document["alert_id"]: its for its, document in kept(other_program).items()}
    newest = max(order(its) for its in stored.values())
    within = {name: its for name, its in stored.items() if order(its) > (newest[0], newest[1] - 500)}
    assert {name: history.get(name) for name in within} == within
    assert len(set(stored.values())) == len(stored)


def test_without_redis_one_instance_does_the_same(issuer: Issuer) -> None:
    with Gateway({"JWT_PUBLIC_KEY": issuer.public_pem, "PUBLISH_TOKEN": TOKEN}) as alone:
        first = publish(alone, {"alert_id": "a", "message": "m"})
        again = publish(alone, {"alert_id": "a", "message": "m"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == {**first.json(), "repeated": True}
        with alone.admin() as admin:
            metrics = admin.get("/metrics").text
    assert 'gateway_alerts_posted_total{result="stored"} 1.0' in metrics
    assert 'gateway_alerts_posted_total{result="repeated"} 1.0' in metrics


def test_the_check_refuses_one_token_for_both(issuer: Issuer) -> None:
    public, admin = free_ports(2)
    settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "PORT": str(public), "ADMIN_PORT": str(admin)}
    done = run_twistd("--check", env={**settings, "ADMIN_TOKEN": "same-token", "PUBLISH_TOKEN": "same-token"})
    assert done.returncode == 1
    assert "PUBLISH_TOKEN: got ***; other than ADMIN_TOKEN" in done.stdout
    assert "same-token" not in done.stdout
