"""The issuer's keys by URL, and tokens that instances vouch for to each other: real processes, issuer and Redis."""

import re
import signal
import ssl
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import trustme

from tests.e2e.calling import SALES, at_once, code_of, until
from tests.e2e.conftest import StartGateway
from tests.e2e.harness import Gateway
from tests.e2e.key_sets import KeySetServer, token
from tests.minting import Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

A, B, C = Issuer(), Issuer(), Issuer()
SECRET = "a secret of the instances, long enough"


@pytest.fixture
def issuer_site() -> Iterator[KeySetServer]:
    with KeySetServer() as site:
        site.publish(a=A)
        yield site


def ask(gateway: Gateway, bearer: str, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
    """Status and problem code of a read with this token."""
    with gateway.client(bearer, timeout=timeout_s) as client:
        return code_of(client.get(SALES))


def metric(gateway: Gateway, name: str) -> float:
    """One sample by its name and labels; 0 where there is none."""
    with gateway.admin() as client:
        found = re.search(rf"^{re.escape(name)} (.+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def fetches(gateway: Gateway, result: str) -> float:
    return metric(gateway, f'gateway_key_set_fetches_total{{result="{result}"}}')


def seals(gateway: Gateway, result: str) -> float:
    return metric(gateway, f'gateway_shared_tokens_total{{result="{result}"}}')


OK, UNKNOWN, UNCHECKED = (200, ""), (401, "token-invalid"), (503, "state-unavailable")


def test_keys_rotate_while_requests_go_on(start_gateway: StartGateway, issuer_site: KeySetServer) -> None:
    gateway = start_gateway({"JWT_PUBLIC_KEY": None, "JWT_JWKS_URL": issuer_site.url})
    old, new = token(A, "a"), token(B, "b")
    assert ask(gateway, old) == OK

    # The new key is published beside the old one: both hold.
    issuer_site.publish(a=A, b=B)
    asked = issuer_site.asked
    assert at_once([lambda: ask(gateway, new)] * 8) == [OK] * 8
    assert issuer_site.asked == asked + 1
    assert ask(gateway, old) == OK

    # Unknown ids and forged signatures make nobody fetch again within ten seconds.
    for forged in (token(C, "c"), token(C, "d"), token(C, "a"), token(C, "../a")):
        assert ask(gateway, forged) == UNKNOWN
    assert issuer_site.asked == asked + 1

    # Down, rubbish: the last good set stays, also after a reload, which forgets all verified tokens.
    issuer_site.stop()
    gateway.signal(signal.SIGHUP)
    gateway.wait_for_event("reload.done")
    assert ask(gateway, token(A, "a", jti="another")) == OK
    assert ask(gateway, new) == OK
    assert metric(gateway, "gateway_key_set_age_seconds") > 0
    with gateway.admin() as admin:
        assert admin.get("/api/config").json()["jwt_jwks_url"] == issuer_site.url


def test_a_key_that_was_taken_away_opens_nothing_although_its_tokens_were_verified(
    start_gateway: StartGateway, issuer_site: KeySetServer
) -> None:
    gateway = start_gateway({"JWT_PUBLIC_KEY": None, "JWT_JWKS_URL": issuer_site.url})
    old = token(A, "a")
    assert [ask(gateway, old), ask(gateway, old)] == [OK, OK]

    issuer_site.publish(b=B)
    assert ask(gateway, token(B, "b")) == OK

    assert ask(gateway, old) == UNKNOWN
    assert gateway.wait_for_event("request.done", lambda it: it["status"] == 401)["cause"] == "unknown-key"


def test_without_any_set_the_gateway_runs_and_finds_the_issuer_when_it_is_sound(start_gateway: StartGateway) -> None:
    with KeySetServer(b"<html>moved</html>") as site:
        gateway = start_gateway({"JWT_PUBLIC_KEY": None, "JWT_JWKS_URL": site.url})
        good = token(A, "a")
        with gateway.client(good) as client:
            refused = client.get(SALES)
            assert client.get("/health").status_code == 200
        assert code_of(refused) == UNCHECKED
        assert refused.headers["retry-after"] == "5"
        assert site.url not in refused.text
        assert ask(gateway, "garbage") == UNKNOWN
        assert fetches(gateway, "invalid") >= 1

        site.publish(a=A)
        until(lambda: ask(gateway, good) == OK, every_s=0.1)
        gateway.wait_for_event("tokens.keys", lambda event: event.get("kids") == "a")


def test_a_hanging_issuer_holds_up_nobody_whose_key_is_known(
    start_gateway: StartGateway, issuer_site: KeySetServer
) -> None:
    gateway = start_gateway({"JWT_PUBLIC_KEY": None, "JWT_JWKS_URL": issuer_site.url})
    assert ask(gateway, token(A, "a")) == OK

    issuer_site.goes_on.clear()
    with pytest.raises(httpx.TimeoutException):
        ask(gateway, token(C, "c"), 0.3)
    began = time.monotonic()
    for n in range(3):
        assert ask(gateway, token(A, "a", jti=f"{n}")) == OK
    assert time.monotonic() - began < 15.0, "held up"

    # Whoever left took the fetch from nobody else.
    issuer_site.publish(a=A, b=B)
    issuer_site.goes_on.set()
    assert ask(gateway, token(B, "b")) == OK
    assert issuer_site.asked == 2


def test_an_https_issuer_is_believed_by_its_certificate_alone(start_gateway: StartGateway, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with KeySetServer(tls=context) as site:
        site.publish(a=A)
        settings = {"JWT_PUBLIC_KEY": None, "JWT_JWKS_URL": site.url}
        believing = start_gateway({**settings, "UPSTREAM_CA_FILE": str(trusted)})
        doubting = start_gateway(settings)

        assert ask(believing, token(A, "a")) == OK
        assert ask(doubting, token(A, "a")) == UNCHECKED
        assert fetches(doubting, "unreachable") >= 1
        assert site.url not in str(doubting.events("tokens.keys"))


def test_instances_vouch_for_tokens_and_believe_nothing_that_was_altered(
    start_gateway: StartGateway, issuer: Issuer, own_redis: RedisServer
) -> None:
    shared = {
        "REDIS_HOST": own_redis.host,
        "REDIS_PORT": str(own_redis.port),
        "TOKEN_CACHE_SHARED": "true",
        "TOKEN_CACHE_SECRET": SECRET,
    }
    one, other, stranger = (
        start_gateway(shared),
        start_gateway(shared),
        start_gateway({**shared, "TOKEN_CACHE_SECRET": SECRET[::-1]}),
    )
    first, second, forged = issuer.token(), issuer.token(jti="second"), A.token(user_id="root")

    def key(bearer: str) -> str:
        return "bakerygw:token:" + sha256(bearer.encode()).hexdigest()

    assert ask(one, first) == OK
    until(lambda: own_redis.command("EXISTS", key(first)) == b":1")
    sealed = own_redis.command("GETRANGE", key(first), "0", "-1")
    assert len(sealed) == 57
    assert ask(other, first) == OK
    assert (seals(one, "miss"), seals(other, "hit")) == (1, 1)
    assert ask(stranger, first) == OK
    assert seals(stranger, "foreign") == 1

    # Another token's seal, an altered one and junk, in the place of those of a forged and of a good token.
    for written in (sealed, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"junk", b""):
        own_redis.command("SET", key(forged), written)
        assert ask(other, forged) == UNKNOWN
    own_redis.command("SET", key(second), sealed)
    assert ask(other, second) == OK
    assert seals(other, "refused") == 3
    other.wait_for_event("tokens.seal_refused")
    assert len(other.events("tokens.seal_refused")) == 1

    # With Redis gone, or hanging, nobody's token is worse for it.
    own_redis.suspend()
    began = time.monotonic()
    assert ask(other, issuer.token(jti="hanging")) == OK
    assert time.monotonic() - began < 15.0, "held up"
    own_redis.kill()
    assert ask(other, issuer.token(jti="gone")) == OK
    assert seals(other, "unavailable") >= 1
