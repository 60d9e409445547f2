"""A scenario for each rule of docs/tenants.md, by the rule's name: what is set at one instance and asked at both.

To add a rule, write its row there and a scenario here. A scenario is given a `Case` with tenants of its own, prepares
what the row says, and returns the `Ask` that has to be answered as the row says, at both instances; with `away` this
comes after Redis has gone.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.e2e.calling import until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
from tests.e2e.recording import plain
from tests.minting import ABSENT, Issuer, iso
from tests.redis_server import RedisServer

DAY_S = 86_400
STATUS = b"/subscription/status"
ROUTES = """
[[route]]
prefix = "/api/v1/forecasting/gold"
min_tier = "enterprise"
"""
SERVICES = ("AUTH", "SALES", "TENANT", "FORECASTING")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, and what it must bring to the service if it passes."""

    method: str = "GET"
    path: str = "/api/v1/sales/today"
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[tuple[str, str], ...] = ()
    """In place of `headers`, where a name is to be there twice."""
    token: str
    scheme: str = "Bearer"
    sent: Mapping[str, str] = field(default_factory=dict)
    """Header fields that the service receives."""
    answered: Mapping[str, str] = field(default_factory=dict)
    """Header fields of the answer; an empty value stands for any."""
    members: Mapping[str, object] = field(default_factory=dict)
    """Members of the problem."""
    to: str = "real"
    """Or `demo`: which service gets it."""


class World:
    """Two instances on one Redis, with recording services."""

    def __init__(self, server: RedisServer, here: Gateway, there: Gateway, issuer: Issuer, running: ExitStack) -> None:
        self.server, self.gateways, self.issuer = server, (here, there), issuer
        self.program = running.enter_context(redis.Redis(host=server.host, port=server.port, decode_responses=True))
        self.clients = [running.enter_context(gateway.client()) for gateway in self.gateways]
        self.admin = running.enter_context(here.admin())
        self.other_admin = running.enter_context(there.admin())
        self.services: dict[str, RecordingUpstream] = {}
        self.plans: dict[str, Answer] = {}
        """What the tenant service says of a tenant, where it does not say what nearly all tokens say."""

    @property
    def trusted(self) -> bool:
        return all(metric(admin, "gateway_mirror_trusted") == 1 for admin in (self.admin, self.other_admin))

    @contextmanager
    def redis_away(self) -> Iterator[None]:
        """Redis hangs, and both instances have found out."""
        self.server.suspend()
        try:
            until(lambda: all(self._status(client) == "disconnected" for client in self.clients))
            yield
        finally:
            self.server.resume()

    def ask(self, number: int, ask: Ask) -> httpx.Response:
        """The answer of the first (0) or second (1) instance."""
        headers = [*ask.headers.items(), *ask.fields, ("Authorization", f"{ask.scheme} {ask.token}")]
        return self.clients[number].request(ask.method, ask.path, headers=headers)

    def received(self, response: httpx.Response) -> list[tuple[str, Recorded]]:
        """What reached any service of the request that was answered so, with the service's name; not what the gateway
        itself asked."""
        wanted = response.headers["x-request-id"].encode()
        return [
            (name, request)
            for name, service in self.services.items()
            for request in service.requests
            if dict(request.headers).get(b"X-Request-ID") == wanted and not request.target.endswith(STATUS)
        ]

    def tenant_service(self, request: Recorded) -> Answer:
        """How the tenant service answers."""
        tenant = request.target.removesuffix(STATUS).rpartition(b"/")[2].decode()
        its = self.plans.get(tenant) if request.target.endswith(STATUS) else None
        return its or subscription_as_in_the_token(request)

    @staticmethod
    def _status(client: httpx.Client) -> str:
        status: str = client.get("/health").json()["redis"]
        return status


class Case:
    """What one scenario may use: tenants and a user of its own, and ways to change their state."""

    def __init__(self, world: World, rule: str) -> None:
        self.world, self.rule = world, rule
        self.tenant, self.other, self.user = f"own.{rule}", f"other.{rule}", f"user.{rule}"

    def token(self, **claims: Any) -> str:
        return self.world.issuer.token(**{"user_id": self.user, "tenant_id": self.tenant, **claims})

    def entry(self, tenant_id: str = "", **members: Any) -> dict[str, Any]:
        """An entry of `tenant_access` that is paid for."""
        paid = {"status": "active", "valid_until": iso(time.time() + 30 * DAY_S)}
        return {"id": tenant_id or self.other, "role": "viewer", "tier": "starter", **paid, **members}

    def flag(self, name: str, value: str | None, tenant_id: str = "") -> None:
        """Written by another program."""
        key = f"tenant:{tenant_id or self.tenant}:{name}"
        self.world.program.delete(key) if value is None else self.world.program.set(key, value)

    def parents(self, *chain: str) -> None:
        """Make each tenant part of the next."""
        for child, parent in pairwise(chain):
            self.flag("parent", parent, child)

    def hold(self, tenant_id: str = "", **body: str) -> None:
        """Put on hold by an operator, at the first instance."""
        path = f"/api/tenants/{tenant_id or self.tenant}/read-only"
        assert self.world.admin.put(path, json={"reason": "stock-taking", **body}).status_code == 200

    def change(self, tenant_id: str = "") -> None:
        """Its subscription changes, says an operator at the first instance."""
        path = f"/api/tenants/{tenant_id or self.tenant}/subscription-changed"
        assert self.world.admin.post(path).status_code == 200

    def plan(self, status: int = 200, **members: str) -> None:
        """What the tenant service says of the own tenant."""
        document = {**subscription(), **members}
        self.world.plans[self.tenant] = answer(status, json.dumps(document).encode())

    def key(self, **terms: Any) -> dict[str, str]:
        """A new API key for the own tenant."""
        made = self.world.admin.post(
            "/api/keys", json={"tenant_id": self.tenant, "name": "Till", "role": "pos", **terms}
        )
        assert made.is_success, made.text
        document: dict[str, str] = made.json()
        return document

    def known(self, ask: Ask) -> None:
        """Have both instances know caller and tenant, so that they answer from what they remember."""
        for number in (0, 1):
            for _ in range(2):
                assert self.world.ask(number, ask).is_success


Scenario = Callable[[Case], Ask]
SCENARIOS: dict[str, Scenario] = {}
AWAY: dict[str, Scenario] = {}
"""Those whose requests come while Redis is away."""


def scenario(rule: str, *, away: bool = False) -> Callable[[Scenario], Scenario]:
    """Register the scenario of the rule with this name."""

    def register(of_rule: Scenario) -> Scenario:
        assert rule not in {**SCENARIOS, **AWAY}, rule
        (AWAY if away else SCENARIOS)[rule] = of_rule
        return of_rule

    return register


@contextmanager
def two_instances(server: RedisServer, issuer: Issuer, folder: Path) -> Iterator[World]:
    """Two gateways on this Redis, with all services and, for sales alone, a demo service."""
    routes = folder / "routes.toml"
    routes.write_text(ROUTES)
    with ExitStack() as running:
        recorders = {name: running.enter_context(RecordingUpstream()) for name in (*SERVICES, "DEMO_SALES")}
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "ROUTES_FILE": str(routes),
            "RATE_LIMIT_REQUESTS": "1000000",
            "REDIS_HOST": server.host,
            "REDIS_PORT": str(server.port),
            **{f"{name}_SERVICE_URL": recorder.url for name, recorder in recorders.items()},
        }
        here, there = (running.enter_context(Gateway(settings)) for _ in range(2))
        world = World(server, here, there, issuer, running)
        world.services = recorders
        recorders["TENANT"].always(world.tenant_service)
        until(lambda: world.trusted)
        yield world


def subscription_as_in_the_token(request: Recorded) -> Answer:
    """The tenant service: a subscription as nearly all tokens here tell it; elsewhere any answer."""
    if not request.target.endswith(STATUS):
        return plain(request)
    valid_until = iso(time.time() + 30 * DAY_S)
    return answer(200, f'{{"tier":"professional","status":"active","valid_until":"{valid_until}"}}'.encode())


def metric(admin: httpx.Client, name: str) -> float:
    lines = admin.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])


def revoked_key(token: str) -> str:
    """Where it stands that this token is out of force."""
    return "bakerygw:revoked:" + sha256(token.rpartition(".")[0].encode()).hexdigest()


def subscription(status: str = "active", *, days: float = 30, tier: str = "professional") -> dict[str, Any]:
    return {"tier": tier, "status": status, "valid_until": iso(time.time() + days * DAY_S)}


# Which tenant


@scenario("tenant-of-token")
def _(case: Case) -> Ask:
    return Ask(token=case.token(), sent={"X-Tenant-Id": case.tenant, "X-User-Role": "owner"})


@scenario("tenant-in-path")
def _(case: Case) -> Ask:
    return Ask(path=f"/api/v1/tenants/{case.tenant}/x", token=case.token(), sent={"X-Tenant-Id": case.tenant})


@scenario("tenant-in-header")
def _(case: Case) -> Ask:
    return Ask(headers={"X-Tenant-ID": case.tenant}, token=case.token(), sent={"X-Tenant-Id": case.tenant})


@scenario("tenant-named-twice")
def _(case: Case) -> Ask:
    path, token = f"/api/v1/tenants/{case.other}/x", case.token(tenant_access=[case.entry()])
    return Ask(path=path, headers={"X-Tenant-ID": case.other}, token=token, sent={"X-Tenant-Id": case.other})


@scenario("tenant-ambiguous")
def _(case: Case) -> Ask:
    token = case.token(tenant_access=[case.entry()])
    return Ask(path=f"/api/v1/tenants/{case.tenant}/x", headers={"X-Tenant-ID": case.other}, token=token)


@scenario("tenant-not-an-id")
def _(case: Case) -> Ask:
    return Ask(headers={"X-Tenant-ID": f"{case.tenant}, {case.other}"}, token=case.token())


@scenario("tenant-entry")
def _(case: Case) -> Ask:
    token = case.token(tenant_access=[case.entry(role="baker")])
    told = {"X-Tenant-Id": case.other, "X-User-Role": "baker", "X-Subscription-Tier": "starter"}
    return Ask(headers={"X-Tenant-ID": case.other, "X-User-Role": "owner"}, token=token, sent=told)


@scenario("tenant-forbidden")
def _(case: Case) -> Ask:
    return Ask(headers={"X-Tenant-ID": case.other}, token=case.token(tenant_access=[case.entry("another")]))


# Hierarchy


def below(case: Case, **entry: Any) -> Ask:
    """A request for the other tenant with an entry for `chain.<rule>`."""
    token = case.token(tenant_access=[case.entry(f"chain.{case.rule}", **{"include_children": True, **entry})])
    return Ask(headers={"X-Tenant-ID": case.other}, token=token, sent={"X-Tenant-Id": case.other})


@scenario("child-of-entry")
def _(case: Case) -> Ask:
    case.parents(case.other, f"region.{case.rule}", f"chain.{case.rule}")
    ask = below(case, role="area", tier="enterprise")
    return Ask(
        path=f"/api/v1/tenants/{case.other}/x",
        token=ask.token,
        sent={"X-Tenant-Id": case.other, "X-User-Role": "area", "X-Subscription-Tier": "enterprise"},
    )


@scenario("child-nearest-entry")
def _(case: Case) -> Ask:
    case.parents(case.other, "region.nearest", "chain.nearest")
    entries = [case.entry(f"{name}.nearest", role=name, include_children=True) for name in ("chain", "region")]
    token = case.token(tenant_access=entries)
    return Ask(headers={"X-Tenant-ID": case.other}, token=token, sent={"X-User-Role": "region"})


def steps(case: Case, count: int) -> None:
    case.parents(case.other, *(f"{number}.{case.rule}" for number in range(1, count)), f"chain.{case.rule}")


@scenario("child-eighth-parent")
def _(case: Case) -> Ask:
    steps(case, 8)
    return below(case)


@scenario("child-ninth-parent")
def _(case: Case) -> Ask:
    steps(case, 9)
    return below(case)


@scenario("child-in-a-circle")
def _(case: Case) -> Ask:
    case.parents(case.other, "one.circle", "two.circle", case.other)
    return below(case)


@scenario("child-parent-unreadable")
def _(case: Case) -> Ask:
    case.flag("parent", "region of the north", case.other)
    return below(case)


@scenario("child-of-plain-entry")
def _(case: Case) -> Ask:
    case.parents(case.other, f"chain.{case.rule}")
    return below(case, include_children=False)


@scenario("child-of-own-tenant")
def _(case: Case) -> Ask:
    case.parents(case.other, case.tenant)
    return below(case)


@scenario("child-moved-away")
def _(case: Case) -> Ask:
    case.parents(case.other, "region.moved", f"chain.{case.rule}")
    ask = below(case)
    case.known(ask)
    case.flag("parent", None, "region.moved")
    return ask


@scenario("child-own-flags")
def _(case: Case) -> Ask:
    case.parents(case.other, f"chain.{case.rule}")
    ask = below(case)
    case.known(ask)
    case.hold(case.other)
    return Ask(method="POST", headers=ask.headers, token=ask.token)


@scenario("child-parents-unknown", away=True)
def _(case: Case) -> Ask:
    case.parents(case.other, f"chain.{case.rule}")
    ask = below(case)
    case.known(Ask(token=ask.token))
    return ask


@scenario("child-limit")
def _(case: Case) -> Ask:
    case.parents(case.other, f"chain.{case.rule}")
    ask = below(case)
    case.known(ask)
    limit = {"requests": 1, "window_seconds": 3600, "for_seconds": 60}
    assert case.world.admin.put(f"/api/tenants/{case.other}/limits", json=limit).status_code == 200
    return Ask(headers=ask.headers, token=ask.token, members={"policy": "tenant", "scope": "tenant"})


# Freshness


@scenario("fresh-own")
def _(case: Case) -> Ask:
    ask = Ask(token=case.token())
    case.known(ask)
    case.change()
    return ask


@scenario("fresh-effective")
def _(case: Case) -> Ask:
    ask = Ask(headers={"X-Tenant-ID": case.other}, token=case.token(tenant_access=[case.entry()]))
    case.known(ask)
    case.change(case.other)
    return ask


@scenario("fresh-other")
def _(case: Case) -> Ask:
    case.change(case.other)
    return Ask(token=case.token(tenant_access=[case.entry()]))


@scenario("fresh-newer-token")
def _(case: Case) -> Ask:
    case.flag("subscription_changed_at", str(int(time.time()) - 5))
    return Ask(token=case.token())


@scenario("revoked")
def _(case: Case) -> Ask:
    ask = Ask(token=case.token())
    case.known(ask)
    case.world.program.set(revoked_key(ask.token), "1", ex=60)
    return ask


@scenario("revoked-by-logout")
def _(case: Case) -> Ask:
    ask = Ask(token=case.token())
    case.known(ask)
    assert case.world.ask(0, Ask(method="POST", path="/api/v1/auth/logout", token=ask.token)).is_success
    return ask


# Subscription


@scenario("subscription-active")
def _(case: Case) -> Ask:
    told = {"X-Subscription-Tier": "professional", "X-Subscription-Status": "trialing"}
    return Ask(token=case.token(subscription=subscription("trialing")), sent=told)


@scenario("subscription-grace")
def _(case: Case) -> Ask:
    ends = iso(time.time() + 5 * DAY_S)[:13]
    token = case.token(subscription=subscription(days=-2))
    return Ask(token=token, answered={"X-Subscription-Grace": ends})


@scenario("subscription-past-due")
def _(case: Case) -> Ask:
    return Ask(token=case.token(subscription=subscription("past_due")), answered={"X-Subscription-Grace": ""})


@scenario("subscription-expired")
def _(case: Case) -> Ask:
    token = case.token(subscription=subscription("past_due", days=-8))
    return Ask(token=token, members={"subscription_status": "past_due", "tier": "professional"})


@scenario("subscription-inactive")
def _(case: Case) -> Ask:
    return Ask(token=case.token(subscription=subscription("cancelled")), members={"subscription_status": "cancelled"})


@scenario("subscription-without-end")
def _(case: Case) -> Ask:
    return Ask(token=case.token(subscription={"tier": "starter", "status": "active"}))


@scenario("subscription-of-entry")
def _(case: Case) -> Ask:
    token = case.token(tenant_access=[case.entry(valid_until=iso(time.time() - 9 * DAY_S))])
    return Ask(headers={"X-Tenant-ID": case.other}, token=token)


@scenario("subscription-exempt-auth")
def _(case: Case) -> Ask:
    return Ask(path="/api/v1/auth/me", token=case.token(subscription=subscription(days=-300)))


@scenario("subscription-exempt-paying")
def _(case: Case) -> Ask:
    path = f"/api/v1/tenants/{case.tenant}/subscription/plans"
    return Ask(path=path, token=case.token(subscription=subscription("cancelled", days=-300)))


@scenario("tier-required")
def _(case: Case) -> Ask:
    told = {"required_tier": "enterprise", "current_tier": "professional"}
    return Ask(path="/api/v1/forecasting/gold/x", token=case.token(), members=told)


@scenario("tier-of-entry")
def _(case: Case) -> Ask:
    token = case.token(subscription=subscription(tier="enterprise"), tenant_access=[case.entry(tier="professional")])
    assert case.world.ask(0, Ask(path="/api/v1/forecasting/gold/x", token=token)).is_success
    return Ask(path="/api/v1/forecasting/gold/x", headers={"X-Tenant-ID": case.other}, token=token)


@scenario("subscription-looked-up")
def _(case: Case) -> Ask:
    case.plan(tier="enterprise")
    return Ask(token=case.token(subscription=ABSENT), sent={"X-Subscription-Tier": "enterprise"})


@scenario("subscription-unknown")
def _(case: Case) -> Ask:
    case.plan(404)
    return Ask(token=case.token(subscription=ABSENT))


@scenario("subscription-written")
def _(case: Case) -> Ask:
    ask = Ask(token=case.token())
    case.known(ask)
    write = Ask(method="POST", path=f"/api/v1/tenants/{case.tenant}/subscription/upgrade", token=ask.token)
    assert case.world.ask(0, write).is_success
    return ask


# Critical operations


def removal(case: Case) -> Ask:
    return Ask(method="DELETE", path=f"/api/v1/tenants/{case.tenant}", token=case.token())


@scenario("critical-confirmed")
def _(case: Case) -> Ask:
    return removal(case)


@scenario("critical-changed")
def _(case: Case) -> Ask:
    case.plan(tier="starter")
    return removal(case)


@scenario("critical-unconfirmed")
def _(case: Case) -> Ask:
    case.plan(500)
    return removal(case)


@scenario("critical-on-hold")
def _(case: Case) -> Ask:
    case.hold()
    return removal(case)


@scenario("away-critical", away=True)
def _(case: Case) -> Ask:
    case.known(Ask(method="POST", token=case.token()))
    return removal(case)


# API keys


def with_key(case: Case, key: dict[str, str], **members: Any) -> Ask:
    return Ask(**{"scheme": "ApiKey", "token": key["key"], **members})


@scenario("key-at-home")
def _(case: Case) -> Ask:
    return with_key(case, case.key(), sent={"X-Tenant-Id": case.tenant, "X-User-Role": "pos", "X-Is-Demo": "false"})


@scenario("key-elsewhere")
def _(case: Case) -> Ask:
    case.parents(case.other, case.tenant)
    return with_key(case, case.key(), headers={"X-Tenant-ID": case.other})


@scenario("key-critical")
def _(case: Case) -> Ask:
    return with_key(case, case.key(), method="DELETE", path=f"/api/v1/tenants/{case.tenant}")


@scenario("key-on-hold")
def _(case: Case) -> Ask:
    key = case.key()
    case.known(with_key(case, key))
    case.hold()
    return with_key(case, key, method="POST")


@scenario("key-revoked")
def _(case: Case) -> Ask:
    key = case.key()
    case.known(with_key(case, key))
    assert case.world.admin.delete(f"/api/keys/{key['id']}").is_success
    return with_key(case, key)


# Read-only


@scenario("read-only-write")
def _(case: Case) -> Ask:
    ask = Ask(method="DELETE", token=case.token())
    case.known(ask)
    case.hold(until="2090-01-31T18:00:00Z")
    told = {"read_only_reason": "stock-taking", "read_only_until": "2090-01-31T18:00:00Z"}
    return Ask(method="DELETE", token=ask.token, members=told)


@scenario("read-only-read")
def _(case: Case) -> Ask:
    case.hold()
    return Ask(token=case.token())


@scenario("read-only-by-other-program")
def _(case: Case) -> Ask:
    ask = Ask(method="PATCH", token=case.token())
    case.known(ask)
    case.flag("read_only", "unpaid")
    return Ask(method="PATCH", token=ask.token, members={"read_only_reason": "unpaid"})


@scenario("read-only-ended")
def _(case: Case) -> Ask:
    case.hold()
    ask = Ask(method="PUT", token=case.token())
    until(lambda: all(case.world.ask(number, ask).status_code == 403 for number in (0, 1)))
    assert case.world.admin.delete(f"/api/tenants/{case.tenant}/read-only").status_code == 200
    return ask


@scenario("read-only-exempt")
def _(case: Case) -> Ask:
    case.hold()
    return Ask(method="POST", path="/api/v1/auth/password", token=case.token())


@scenario("read-only-override")
def _(case: Case) -> Ask:
    case.hold()
    return Ask(method="POST", headers={"X-HTTP-Method-Override": "GET"}, token=case.token())


# Demo


def demo_token(case: Case, **claims: Any) -> str:
    return case.token(is_demo=True, demo_session_id="session-1", **claims)


@scenario("demo-at-home")
def _(case: Case) -> Ask:
    case.flag("demo", "1")
    told = {"X-Is-Demo": "true", "X-Demo-Session-Id": "session-1", "X-Tenant-Id": case.tenant}
    return Ask(token=demo_token(case), sent=told, to="demo")


@scenario("demo-elsewhere")
def _(case: Case) -> Ask:
    return Ask(path=f"/api/v1/tenants/{case.other}/x", token=demo_token(case))


@scenario("demo-entry")
def _(case: Case) -> Ask:
    case.flag("demo", "1", case.other)
    token = demo_token(case, tenant_access=[case.entry(include_children=True)])
    return Ask(headers={"X-Tenant-ID": case.other}, token=token)


@scenario("demo-tenant")
def _(case: Case) -> Ask:
    ask = Ask(token=case.token())
    case.known(ask)
    case.flag("demo", "1")
    return ask


@scenario("demo-tenant-by-entry")
def _(case: Case) -> Ask:
    ask = Ask(headers={"X-Tenant-ID": case.other}, token=case.token(tenant_access=[case.entry()]))
    case.known(ask)
    case.flag("demo", "1", case.other)
    return ask


@scenario("demo-critical")
def _(case: Case) -> Ask:
    case.flag("demo", "1")
    return Ask(method="DELETE", path=f"/api/v1/tenants/{case.tenant}", token=demo_token(case))


# Redis away, or with nonsense in it


@scenario("away-read", away=True)
def _(case: Case) -> Ask:
    return Ask(token=case.token())


@scenario("away-write-known", away=True)
def _(case: Case) -> Ask:
    ask = Ask(method="POST", token=case.token())
    case.known(ask)
    return ask


@scenario("away-write-unknown", away=True)
def _(case: Case) -> Ask:
    return Ask(method="POST", token=case.token(), answered={"Retry-After": "2"})


@scenario("away-hold-known", away=True)
def _(case: Case) -> Ask:
    case.hold()
    ask = Ask(method="POST", token=case.token())
    until(lambda: all(case.world.ask(number, ask).status_code == 403 for number in (0, 1)))
    return ask


@scenario("away-child-known", away=True)
def _(case: Case) -> Ask:
    case.parents(case.other, f"chain.{case.rule}")
    ask = below(case)
    case.known(ask)
    return ask


@scenario("unreadable-time-read")
def _(case: Case) -> Ask:
    case.flag("subscription_changed_at", "yesterday")
    return Ask(token=case.token())


@scenario("unreadable-time-write")
def _(case: Case) -> Ask:
    ask = Ask(method="POST", token=case.token())
    case.known(ask)
    case.flag("subscription_changed_at", "1795433068920")
    return ask
