"""Requests under way: no bakery takes a service's connections from the others, and no place is lost."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.calling import SALES, code_of, until
from tests.e2e.harness import Gateway
from tests.e2e.recording import answer
from tests.e2e.stage import Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

SHARE = 100
"""The default."""
POOL = 256
"""Requests that one URL of a service takes at a time."""


@pytest.fixture(scope="module")
def stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, {"TENANT_MAX_CONCURRENT": None}, services=("sales", "auth")) as made:
        yield made


@pytest.fixture(scope="module")
def tight(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, {"TENANT_MAX_CONCURRENT": "4"}) as made:
        yield made


@pytest.fixture
def small(tight: Stage) -> Stage:
    tight.reset()
    return tight


def upload(token: str) -> bytes:
    """The beginning of a request whose body takes its time."""
    lines = [f"POST {SALES} HTTP/1.1", "Host: gateway.example", f"Authorization: Bearer {token}"]
    return "\r\n".join([*lines, "Content-Length: 100000", "", "a"]).encode()


def download(token: str) -> bytes:
    return f"GET {SALES} HTTP/1.1\r\nHost: gateway.example\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S)


def under_way(stage: Stage, tenant_id: str) -> int:
    with stage.gateway.admin() as admin:
        now: int = admin.get(f"/api/tenants/{tenant_id}/limits").json()["under_way"]["now"]
        return now


def test_slow_uploads_of_one_tenant_leave_the_service_to_the_others(stage: Stage, issuer: Issuer) -> None:
    greedy, modest = issuer.token(tenant_id="greedy"), issuer.token(tenant_id="modest")
    with stage.gateway.client(greedy) as first, stage.gateway.client(modest) as other, ExitStack() as open_ones:
        assert first.get(SALES).status_code == other.get(SALES).status_code == 200
        socks = [open_ones.enter_context(connect(stage.gateway)) for _ in range(POOL + 20)]
        for sock in socks:
            sock.sendall(upload(greedy))
        until(lambda: under_way(stage, "greedy") == SHARE)

        refused = first.get(SALES)
        assert code_of(refused) == (429, "rate-limited")
        assert (refused.json()["policy"], refused.json()["limit"]) == ("concurrency", SHARE)
        assert refused.headers["retry-after"] == "1"
        assert [other.get(SALES).status_code for _ in range(20)] == [200] * 20
        until(lambda: len(select.select(socks, [], [], 0)[0]) >= POOL + 20 - SHARE)
        refusals = select.select(socks, [], [], 0)[0]
        assert len(refusals) == POOL + 20 - SHARE
        assert {sock.recv(4096)[:13] for sock in refusals} == {b"HTTP/1.1 429 "}

        open_ones.close()
        until(lambda: under_way(stage, "greedy") == 0)
        assert first.get(SALES).status_code == 200
        assert 'policy="concurrency",shadow="false"' in metrics(stage)


def metrics(stage: Stage) -> str:
    with stage.gateway.admin() as admin:
        return admin.get("/metrics").text


def test_who_does_not_read_its_answers_fills_its_own_share_alone(small: Stage, issuer: Issuer) -> None:
    small.upstream.always(lambda _: answer(200, b"x" * 8_000_000))
    slow, quick = issuer.token(tenant_id="slow"), issuer.token(tenant_id="quick")
    with ExitStack() as open_ones, small.gateway.client(slow) as one, small.gateway.client(quick) as other:
        for _ in range(4):
            sock = open_ones.enter_context(connect(small.gateway))
            sock.sendall(download(slow))
        until(lambda: under_way(small, "slow") == 4)
        assert code_of(one.get(SALES)) == (429, "rate-limited")
        assert len(other.get(SALES).content) == 8_000_000
        open_ones.close()
        until(lambda: under_way(small, "slow") == 0)
        assert one.get(SALES).status_code == 200


def test_requests_without_a_token_have_a_share_by_address(stage: Stage) -> None:
    head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: gateway.example\r\nContent-Length: 1000\r\n\r\n{"
    with ExitStack() as open_ones:
        for _ in range(SHARE):
            sock = open_ones.enter_context(connect(stage.gateway))
            sock.sendall(head)
        with stage.gateway.client() as same:
            until(lambda: same.post("/api/v1/auth/login", json={}).status_code == 429)
            refused = same.post("/api/v1/auth/login", json={})
            assert (refused.json()["policy"], refused.json()["scope"]) == ("concurrency", "address")
            assert same.get("/openapi.json").status_code == 200
        with stage.gateway.client(stage.token) as user:
            assert user.get(SALES).status_code == 200


def test_no_place_is_lost_however_requests_end(small: Stage, issuer: Issuer) -> None:
    token = issuer.token(tenant_id="restless")
    endings = [
        answer(200, b"{}"),
        answer(500, b"{}"),
        answer(200, b"x" * 1000, cut_after=400),
        answer(200, b"{}", delay_s=0.3),
        answer(200, b"x" * 100_000, cut_after=0),
    ]
    for number in range(60):
        small.upstream.next(endings[number % len(endings)])
        with connect(small.gateway) as sock:
            patient = number % 3 > 0
            sock.sendall(download(token) if patient or number % 2 else upload(token))
            if patient:
                sock.recv(10)
    until(lambda: under_way(small, "restless") == 0)
    small.upstream.reset()
    with small.gateway.client(token) as client:
        until(lambda: client.get(SALES).status_code == 200)
    assert small.gateway.faults() == []
