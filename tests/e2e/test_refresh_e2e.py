"""Refreshing and signing out, over two instances and a real Redis."""

import json
import time
from collections.abc import Iterator
from hashlib import sha256

import pytest

from tests.e2e.calling import SALES, WITHIN_S, at_once, code_of, until
from tests.e2e.harness import Gateway, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS, paired
from tests.minting import USER_ID, Issuer
from tests.redis_server import RedisServer

REFRESH = "/api/v1/auth/refresh"
TOKENS = json.dumps({"access_token": "new", "refresh_token": "next"}).encode()


@pytest.fixture(scope="module")
def pair(issuer: Issuer, service: RecordingUpstream, module_redis: RedisServer) -> Iterator[tuple[Gateway, Gateway]]:
    """Two instances over one Redis, with one service for all."""
    env = {
        "AUTH_SERVICE_URL": service.url,
        "SALES_SERVICE_URL": service.url,
        "REDIS_TIMEOUT_MS": "2000",  # of interest is who wins, not how fast a busy machine is
        "UPSTREAM_FIRST_BYTE_TIMEOUT": "2",
        **NO_LIMITS,
    }
    with paired(issuer, module_redis, env) as gateways:
        yield gateways


@pytest.fixture(autouse=True)
def fresh(service: RecordingUpstream) -> None:
    service.reset()


def refresh(gateway: Gateway, token: str) -> tuple[int, str]:
    with gateway.client(verify=False) as client:
        return code_of(client.post(REFRESH, json={"refresh_token": token}))


def test_of_many_uses_at_once_on_two_instances_one_works(
    pair: tuple[Gateway, Gateway], service: RecordingUpstream, issuer: Issuer
) -> None:
    service.always(answer(200, TOKENS, delay_s=0.05))
    for number in range(5):
        token = issuer.token(type="refresh", jti=f"r-{number}")
        calls = [lambda gateway=gateway, token=token: refresh(gateway, token) for gateway in pair * 5]

        results = at_once(calls)

        assert sorted(results) == [(200, ""), *[(401, "token-revoked")] * 9]
    assert len(service.requests) == 5
    until(lambda: sum(len(gateway.events("refresh.reused")) for gateway in pair) == 45)
    assert token not in "".join(gateway.output for gateway in pair)


def test_a_used_token_works_on_neither_and_reuse_names_its_user(
    pair: tuple[Gateway, Gateway], service: RecordingUpstream, module_redis: RedisServer, issuer: Issuer
) -> None:
    token = issuer.token(type="refresh", exp=int(time.time()) + 600)
    service.always(answer(200, TOKENS))
    assert [refresh(gateway, token) for gateway in pair] == [(200, ""), (401, "token-revoked")]
    event = pair[1].wait_for_event("refresh.reused", lambda event: event["state"] == "spent" and event["user_id"])
    assert event["user_id"] == USER_ID
    digest = sha256(token.rpartition(".")[0].encode()).hexdigest()
    assert module_redis.command("GET", f"bakerygw:refresh:{digest}") == b"spent"
    left_s = int(module_redis.command("TTL", f"bakerygw:refresh:{digest}")[1:])
    assert 590 <= left_s <= 611  # to its end, and the leeway of ten seconds


def test_after_a_refusal_it_works_at_once_and_after_a_timeout_in_ten_seconds(
    pair: tuple[Gateway, Gateway], service: RecordingUpstream, module_redis: RedisServer
) -> None:
    service.next(answer(422, b"{}"), answer(200, TOKENS))
    assert [refresh(gateway, "refused") for gateway in pair] == [(422, ""), (200, "")]

    service.next(answer(200, TOKENS, delay_s=60))
    assert refresh(pair[0], "late") == (504, "upstream-timeout")
    assert refresh(pair[1], "late") == (401, "token-revoked")
    key = "bakerygw:refresh:" + sha256(b"late").hexdigest()
    assert module_redis.command("GET", key) == b"unknown"
    assert 5_000 < int(module_redis.command("PTTL", key)[1:]) <= 10_000
    module_redis.command("DEL", key)  # as if the ten seconds were over
    assert refresh(pair[1], "late") == (200, "")


def test_spellings_of_the_request_pass_nothing_by(
    pair: tuple[Gateway, Gateway], service: RecordingUpstream, issuer: Issuer
) -> None:
    service.always(answer(200, TOKENS))
    assert refresh(pair[0], "spelt") == (200, "")
    service.reset()
    with pair[1].client(issuer.token()) as client:
        body = {"refresh_token": "spelt"}
        tries = [
            client.post(REFRESH + "/", json=body),
            client.post("/api/v1/auth/%72efresh", json=body),
            client.post("/api/v1/auth/refresh;v=1", json=body),
            client.post(REFRESH + "?refresh_token=spelt"),
            client.post(REFRESH, data=body),
            client.post(REFRESH, content=b'{"refresh_token":"x","refresh_token":"spelt"}'),
            client.post(REFRESH, json={"refreshToken": "spelt"}),
            client.post(REFRESH, json={}, headers={"Cookie": "refresh_token=spelt"}),
            client.post(REFRESH, json={"refresh_token": "x"}, headers={"Cookie": "Refresh_Token=spelt"}),
            client.post(REFRESH, json=body, headers={"Content-Encoding": "gzip"}),
        ]
        chunked = client.post(
            REFRESH, content=iter([b'{"refresh_', b'token":"spelt"}']), headers={"Content-Type": "application/json"}
        )
    assert {code_of(response)[1] for response in tries} == {"token-revoked", "bad-request"}
    assert code_of(chunked) == (401, "token-revoked")
    assert service.requests == []


def test_a_chunked_body_goes_on_with_its_length(pair: tuple[Gateway, Gateway], service: RecordingUpstream) -> None:
    with pair[0].client() as client:
        client.post(
            REFRESH, content=iter([b'{"refresh_token"', b': "c-1"}']), headers={"Content-Type": "application/json"}
        )
    (sent,) = service.wait_for(1)
    assert (sent.value("Content-Length"), sent.body) == (b"24", b'{"refresh_token": "c-1"}')


def test_signing_out_on_one_instance_is_in_force_on_the_other_within_a_second(
    pair: tuple[Gateway, Gateway], service: RecordingUpstream, issuer: Issuer
) -> None:
    access, token = issuer.token(jti="out"), "signed-out"
    with pair[0].client(access) as here, pair[1].client(access) as there:
        assert [here.get(SALES).status_code, there.get(SALES).status_code] == [200, 200]
        service.next(answer(204, b""))
        began = time.monotonic()
        assert here.post("/api/v1/auth/logout", json={"refresh_token": token}).status_code == 204
        assert code_of(here.get(SALES)) == (401, "token-revoked")
        until(lambda: code_of(there.get(SALES)) == (401, "token-revoked"), every_s=0.01)
        assert time.monotonic() - began < WITHIN_S
    service.reset()
    assert [refresh(gateway, token) for gateway in pair] == [(401, "token-revoked")] * 2
    assert service.requests == []
    event = pair[0].wait_for_event("auth.logout")
    assert event["user_id"] == USER_ID


def test_without_redis_nothing_is_refreshed_and_tokens_work_again_afterwards(
    pair: tuple[Gateway, Gateway], service: RecordingUpstream, module_redis: RedisServer
) -> None:
    service.always(answer(200, TOKENS))
    module_redis.kill()
    with pair[0].client() as client:
        response = client.post(REFRESH, json={"refresh_token": "patient"})
    assert code_of(response) == (503, "state-unavailable")
    assert response.headers["retry-after"] == "2"
    assert service.requests == []
    module_redis.start()
    until(lambda: refresh(pair[0], "patient") == (200, ""), every_s=0.1)
    assert refresh(pair[1], "patient")[0] in (401, 503)
