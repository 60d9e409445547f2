"""A tour of the refusals: every code that can be provoked from outside, and each reads like help."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from bakerygw.core.problem import PROBLEMS
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, free_ports, raw_request
from tests.e2e.recording import plain
from tests.e2e.stage import NO_LIMITS, Received
from tests.minting import TENANT_ID, Issuer, iso
from tests.redis_server import RedisServer
from tests.test_docs import page, rows

NOT_PROVOKED: Final = frozenset(
    {
        "internal-error",  # takes a defect
        "request-timeout",  # takes ten seconds; tests/edge has it
        "csrf", "upgrade-required", "too-many-streams",
    }
)  # fmt: skip
BASE: Final = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})
TELLS: Final = re.compile(
    r"\b(?:ask|begin|decide|leave|look|mend|name|put|refresh|renew|report|resolve|see|send|sign|speak|spell|start|"
    r"subscribe|try|upgrade|use|wait|must be|have an operator|copy)\b",
    re.IGNORECASE,
)
"""What to do, in a word."""
ACCUSES: Final = re.compile(r"\b(?:illegal|invalid|wrong|bad|must not|forbidden|malformed|violat\w+)\b", re.IGNORECASE)
INTERNAL: Final = re.compile(
    r"\d+\.\d+\.\d+\.\d+|localhost|:\d{4,5}\b|\.py\b|/work|/tmp|/etc|Traceback|redis|twisted|bakerygw\.|(?!ApiKey)\b\w+[a-z][A-Z]\w|0x"
)
"""Addresses, paths, names of classes and of what stands behind."""
OWN_ADDRESS: Final = "from the address 127.0.0.1"
"""The caller's; a key may be bound to others."""
WAITS: Final = frozenset({"rate-limited", "state-unavailable", "critical-check-unavailable"})

ROUTES: Final = """
[[route]]
prefix = "/api/v1/pos"
limit = { requests = 1, window_seconds = 60 }
[[route]]
prefix = "/api/v1/forecasting"
min_tier = "enterprise"
"""


@dataclass(frozen=True, kw_only=True)
class House:
    """A gateway of production in front of services that fail in their own ways."""

    gateway: Gateway
    redis: RedisServer
    issuer: Issuer

    def ask(
        self, target: str = "/api/v1/sales/x", *lines: str, method: str = "GET", secure: bool = True, body: str = "",
        token: str | None = "", **claims: Any,
    ) -> Received:  # fmt: skip
        """The answer to one request, with a good token unless another or none is given, or claims for one."""
        head = [f"{method} {target} HTTP/1.1", "Host: gw.example", *lines, *(["X-Forwarded-Proto: https"] * secure)]
        if token is not None:
            head.append(f"Authorization: Bearer {token or self.issuer.token(**claims)}")
        if body:
            head.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join([*head, "", body]).encode())

    def raw(self, data: bytes) -> Received:
        return Received(self.gateway.raw(data))


@pytest.fixture(scope="module")
def house(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    routes = tmp_path_factory.mktemp("tour") / "routes.toml"
    routes.write_text(ROUTES)
    with RecordingUpstream() as service, RedisServer() as redis:
        service.always(behave)
        env = {
            "ENVIRONMENT": "prod",
            "TRUSTED_PROXIES": "127.0.0.1/32",
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "REDIS_HOST": redis.host,
            "REDIS_PORT": str(redis.port),
            "ROUTES_FILE": str(routes),
            "MAX_REQUEST_BODY_BYTES": "1000",
            "UPSTREAM_FIRST_BYTE_TIMEOUT": "2",
            "ORDERS_SERVICE_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
            **{f"{name}_SERVICE_URL": service.url for name in ("SALES", "POS", "FORECASTING", "TENANT")},
            **NO_LIMITS,
        }
        redis.command("SET", "tenant:stale:subscription_changed_at", str(time.time() + 60))
        redis.command("SET", "tenant:held:read_only", json.dumps({"reason": "Stock-taking", "until": iso(2e9)}))
        redis.command("SET", "tenant:shown:demo", "1")
        with Gateway(env) as gateway:
            yield House(gateway=gateway, redis=redis, issuer=issuer)


def behave(request: Recorded) -> Answer:
    if b"slow" in request.target:
        return Answer(never=True)
    return Answer(pieces=(b"220 smtp\r\n\r\n",), close=True) if b"garbage" in request.target else plain(request)


def revoked(house: House) -> Received:
    token = house.issuer.token(jti="revoked")
    digest = hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()
    house.redis.command("SET", f"bakerygw:revoked:{digest}", "1")
    return house.ask(token=token)


def limited(house: House) -> Received:
    token = house.issuer.token(user_id="spender")
    for _ in range(3):  # the first, of a token not known yet, is the address's
        answer = house.ask("/api/v1/pos", token=token)
    return answer


def with_key(house: House, target: str, *, method: str = "GET", **terms: Any) -> Received:
    """The answer to a request with an API key of these terms."""
    with house.gateway.admin() as admin:
        made = admin.post("/api/keys", json={"tenant_id": TENANT_ID, "name": "till", "role": "till", **terms})
    assert made.status_code == 201, made.text
    return house.ask(target, f"Authorization: ApiKey {made.json()['key']}", method=method, token=None)


def foreign_origin(house: House) -> Received:
    request = b"GET /api/services HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    return Received(raw_request("127.0.0.1", house.gateway.admin_port, request))


def without_redis(house: House) -> Received:
    house.redis.kill()
    return house.ask(method="POST", body="{}", tenant_id="never-seen")


def ended(status: str = "active", days: int = 40) -> dict[str, Any]:
    subscription = {"tier": "starter", "status": status, "valid_until": iso(time.time() - days * 86_400)}
    return {"subscription": subscription}


Provoke = Callable[[House], Received]

TOUR: Final[list[tuple[str, Provoke]]] = [
    ("bad-request", lambda house: house.ask("/api/v1/sales//x")),
    ("bad-request", lambda house: house.ask("/api/v1/sales/%2e%2e/x")),
    ("bad-request", lambda house: house.ask("/api/v1/sales/a%252Fb")),
    ("bad-request", lambda house: house.ask("/api/v1/sales/a%zz")),
    ("bad-request", lambda house: house.ask("/api/v1/sales/a#b")),
    ("bad-request", lambda house: house.ask("/api/v1/%73ales/a")),
    ("bad-request", lambda house: house.ask("http://gw.example/")),
    ("bad-request", lambda house: house.ask("/", "Host: two")),
    ("bad-request", lambda house: house.ask("/", "Content-Length: 1", "Transfer-Encoding: chunked")),
    ("bad-request", lambda house: house.ask("/", "Content-Length: x")),
    ("bad-request", lambda house: house.ask("/", "Bad Name: x")),
    ("bad-request", lambda house: house.raw(b"\x16\x03\x01 hello\r\n\r\n")),
    ("bad-request", lambda house: house.ask(f"/api/v1/tenants/{'x' * 70}/y")),
    ("bad-request", lambda house: house.ask("/api/v1/sales", "X-Tenant-ID: not an id")),
    ("bad-request", lambda house: house.ask("/api/v1/geocode", method="POST", body='{"query":"x","q":1}')),
    ("bad-request", lambda house: house.ask("/api/v1/geocode", method="POST", body='{"query":"x","limit":99}')),
    ("bad-request", lambda house: house.ask("/api/v1/geocode", method="POST", body="query=x")),
    ("tenant-ambiguous", lambda house: house.ask(f"/api/v1/tenants/{TENANT_ID}/x", "X-Tenant-ID: another")),
    ("token-missing", lambda house: house.ask(token=None)),
    ("token-invalid", lambda house: house.ask(token="rubbish")),
    ("token-invalid", lambda house: house.ask(token="two words")),
    ("token-invalid", lambda house: house.ask("/api/v1/sales", "Authorization: Bearer two")),
    ("token-invalid", lambda house: house.ask("/api/v1/sales", "Authorization: Basic eDp5", token=None)),
    ("token-invalid", lambda house: house.ask(token="x" * 8193)),
    ("token-invalid", lambda house: house.ask(token=Issuer().token())),
    ("token-invalid", lambda house: house.ask("/api/v1/sales", "Authorization: ApiKey rubbish", token=None)),
    ("tenant-forbidden", lambda house: with_key(house, "/api/v1/pos", routes=["/api/v1/sales"])),
    ("tenant-forbidden", lambda house: with_key(house, "/api/v1/sales", methods=["POST"])),
    ("tenant-forbidden", lambda house: with_key(house, "/api/v1/sales", addresses=["192.0.2.0/24"])),
    ("tenant-forbidden", lambda house: with_key(house, f"/api/v1/tenants/{TENANT_ID}", method="DELETE")),
    ("critical-check-unavailable", lambda house: house.ask(f"/api/v1/tenants/{TENANT_ID}", method="DELETE")),
    ("token-expired", lambda house: house.ask(exp=int(time.time()) - 100, iat=int(time.time()) - 900)),
    ("token-stale", lambda house: house.ask(tenant_id="stale")),
    ("token-revoked", revoked),
    ("subscription-expired", lambda house: house.ask(**ended())),
    ("subscription-inactive", lambda house: house.ask(**ended("cancelled"))),
    ("tier-required", lambda house: house.ask("/api/v1/forecasting/x")),
    ("tenant-forbidden", lambda house: house.ask("/api/v1/sales", "X-Tenant-ID: another")),
    ("tenant-read-only", lambda house: house.ask(method="POST", body="{}", tenant_id="held")),
    ("demo-isolation", lambda house: house.ask(tenant_id="shown")),
    ("demo-isolation", lambda house: house.ask("/api/v1/sales", "X-Tenant-ID: x", is_demo=True, demo_session_id="d")),
    ("insecure-transport", lambda house: house.ask(secure=False)),
    ("origin-forbidden", foreign_origin),
    ("not-found", lambda house: house.ask("/api/v1/cakes")),
    ("not-found", lambda house: house.ask("/docs/cakes")),
    ("method-not-allowed", lambda house: house.ask("/api/v1/geocode")),
    ("method-not-allowed", lambda house: house.ask("/health", method="DELETE")),
    ("method-not-allowed", lambda house: house.ask("/", method="TRACE")),
    ("body-too-large", lambda house: house.ask(method="POST", body="x" * 1001)),
    ("uri-too-long", lambda house: house.ask("/api/v1/sales/" + "x" * 9000)),
    ("expectation-failed", lambda house: house.ask("/api/v1/sales", "Expect: miracles")),
    ("rate-limited", limited),
    ("headers-too-large", lambda house: house.ask("/api/v1/sales", *[f"X-{number}: y" for number in range(110)])),
    ("method-not-implemented", lambda house: house.ask(method="BREW")),
    ("upstream-unreachable", lambda house: house.ask("/api/v1/orders/x")),
    ("upstream-invalid", lambda house: house.ask("/api/v1/sales/garbage", method="PATCH", body="{}")),
    ("upstream-timeout", lambda house: house.ask("/api/v1/sales/slow", method="POST", body="{}")),
    ("service-unavailable", lambda house: house.ask("/api/v1/inventory/x")),
    ("service-unavailable", lambda house: house.ask("/api/v1/geocode", method="POST", body='{"query":"x"}')),
    ("state-unavailable", without_redis),
]


@pytest.fixture(scope="module")
def documented() -> dict[str, set[str]]:
    """What each code tells beside what all do, by the table of the page."""
    section = page("docs/clients.md").partition("\n### What a refusal tells\n")[2].partition("\n## ")[0]
    return {cells[0]: set(re.findall(r"`([a-z_]+)`", cells[1])) for cells in rows(section) if cells[0] in PROBLEMS}


@pytest.fixture(scope="module")
def answers(house: House) -> list[Received]:
    """The whole tour, once."""
    return [provoke(house) for _, provoke in TOUR]


@pytest.mark.parametrize("stop", range(len(TOUR)), ids=[f"{code}-{at}" for at, (code, _) in enumerate(TOUR)])
def test_a_refusal_reads_like_help(answers: list[Received], documented: dict[str, set[str]], stop: int) -> None:
    code, answer = TOUR[stop][0], answers[stop]
    problem = json.loads(answer.raw_body)
    headers = {name.lower(): value.decode() for name, value in answer.headers}
    detail = problem["detail"]

    assert problem["code"] == code
    assert answer.status == problem["status"] == PROBLEMS[code][0]
    assert headers[b"content-type"] == "application/problem+json"
    assert problem["title"]
    assert len(detail) >= 20
    assert detail.endswith(".")
    assert TELLS.search(detail), f"does not tell what to do: {detail}"
    assert not ACCUSES.search(detail), f"accuses: {detail}"
    assert not INTERNAL.search(detail.replace(OWN_ADDRESS, "")), f"leaks: {detail}"
    assert problem["request_id"] == headers[b"x-request-id"]
    assert set(problem) - BASE <= documented.get(code, set()), "docs/clients.md does not tell of a member"
    assert ("retry_after" in problem) == (b"retry-after" in headers)
    if code in WAITS:
        assert int(headers[b"retry-after"]) == problem["retry_after"] > 0


@pytest.mark.usefixtures("answers")
def test_operators_hear_that_addresses_are_not_looked_up(house: House) -> None:
    assert "NOMINATIM_USER_AGENT" in house.gateway.wait_for_event("geocoding.off")["reason"]


def test_instance_is_the_path(house: House) -> None:
    assert json.loads(house.ask("/api/v1/cakes?token=secret").raw_body)["instance"] == "/api/v1/cakes"


def test_what_ends_by_itself_says_when(answers: list[Received]) -> None:
    told = {code: json.loads(answer.raw_body) for (code, _), answer in zip(TOUR, answers, strict=True)}

    assert told["tenant-read-only"]["read_only_until"] in told["tenant-read-only"]["detail"]
    assert told["subscription-expired"]["grace_until"] > told["subscription-expired"]["valid_until"]
    assert f"{told['rate-limited']['retry_after']} seconds" in told["rate-limited"]["detail"]
    assert told["tier-required"]["required_tier"] in told["tier-required"]["detail"]


def test_the_tour_visits_every_code_that_can_be_provoked() -> None:
    assert {code for code, _ in TOUR} | NOT_PROVOKED == set(PROBLEMS)
    assert not {code for code, _ in TOUR} & NOT_PROVOKED
