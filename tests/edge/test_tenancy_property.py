"""Random tokens, tenants, hierarchies and flags through the real pipeline, against an oracle of the contract.

The usual run takes other examples each time; `--hypothesis-profile=ci`, and a run with `CI` set, the same ones each
time; `--hypothesis-profile=thorough` fifty times as many.
"""

import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import pytest
import pytest_twisted
import redis
from greenlet import getcurrent, greenlet
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.config.routes import builtin_routes
from bakerygw.core.claims import Subscription, subscription_from
from bakerygw.core.cors import CorsPolicy
from bakerygw.core.limits import LimitRule
from bakerygw.core.routing import Route, Router
from bakerygw.core.tenancy import ReadOnly
from bakerygw.edge.admission import Admission
from bakerygw.edge.credentials.tickets import Tickets
from bakerygw.edge.gateway import Gateway
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.tenants.inheritance import Inheritance
from bakerygw.edge.tenants.lookups import Lookups
from bakerygw.ports import LookupFailed
from bakerygw.stores.hierarchy import MemoryHierarchy, RedisHierarchy
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.records import MemoryRecords
from bakerygw.stores.resilient import ResilientAdmission
from bakerygw.tokens.bearer import BearerTokens
from bakerygw.tokens.keys import PemKey, load_public_key
from bakerygw.tokens.session_seal import SessionSeal
from bakerygw.tokens.verifier import TokenVerifier
from tests.edge.edge_fakes import Answer, Client, answers, request
from tests.edge.port_fakes import Answers, Desk, Notes, Services
from tests.minting import Issuer, iso
from tests.oracle import Asked, State, opened, verdict
from tests.redis_server import RedisServer
from tests.stores.store_fakes import RecordingTelemetry, invalidations_of, link_to, pause, store_over, trusted

NOW = 1_700_000_000.0
DAY_S = 86_400
EXAMPLES = settings.get_profile(settings.get_current_profile_name()).max_examples
MANY = LimitRule(name="default", requests=1_000_000, window_s=1)
GOLD = "/api/v1/gold"
ISSUER = Issuer(algorithm="EdDSA", now=lambda: NOW)
FORGER = Issuer(algorithm="EdDSA", now=lambda: NOW)
IDENTITY = ("x-user-id", "x-user-role", "x-tenant-id", "x-subscription-tier", "x-subscription-status", "x-is-demo")
FORGED = tuple(f"{name}: forged".encode() for name in (*IDENTITY, "x-demo-session-id") if name != "x-tenant-id")

# What is drawn

NAMES = [f"t{number}" for number in range(12)]
TENANTS = st.sampled_from(NAMES)
NEAR = st.sampled_from(NAMES[:4])
"""Few, so that what is named and what is held meet often."""
TIERS = st.sampled_from(["starter", "professional", "enterprise"])
PAID = {
    "tier": TIERS,
    "status": st.sampled_from(["active"] * 9 + ["trialing", "past_due", "past_due", "cancelled"]),
    "valid_until": st.sampled_from([30] * 8 + [-1, -6, -8]).map(lambda days: iso(NOW + days * DAY_S)),
}
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"id": NEAR | TENANTS, "role": st.sampled_from(["viewer", "admin"]), "include_children": st.booleans(), **PAID}
    ),
    max_size=4,
    unique_by=lambda entry: entry["id"],
)
TOKENS = st.fixed_dictionaries(
    {
        "user_id": st.just("user-1"),
        "tenant_id": st.just("t0"),
        "tenant_role": st.sampled_from(["owner", "baker"]),
        "subscription": st.fixed_dictionaries(PAID),
        "tenant_access": ENTRIES,
        "exp": st.sampled_from([NOW + 900] * 18 + [NOW - 9, NOW - 10]),
        "iat": st.sampled_from([NOW - 100, NOW - 99.5, NOW - 50]),
        "is_demo": st.sampled_from([False, False, False, True]),
        "demo_session_id": st.just("session-1"),
    }
)
CHAIN = dict(itertools.pairwise(reversed(NAMES)))
"""Each is part of the one before it, so t11 has eleven above it."""
PARENTS = st.dictionaries(TENANTS, NEAR | TENANTS | st.just("no id"), max_size=6) | st.builds(
    lambda broken: {child: parent for child, parent in CHAIN.items() if child not in broken},
    st.sets(TENANTS, max_size=1),
)
MOMENTS = st.sampled_from([NOW - 200, NOW - 100, NOW - 99.75, NOW - 50.5, NOW - 50, NOW, None])
STATES = st.builds(
    State,
    parents=PARENTS,
    changed_at=st.just({}) | st.dictionaries(NEAR, MOMENTS, max_size=2),
    on_hold=st.just(set()) | st.sets(NEAR, max_size=2),
    demo=st.just(set()) | st.sets(NEAR, max_size=2),
    revoked=st.sampled_from([False] * 19 + [True]),
)
METHODS = st.sampled_from(["GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
NAMED = st.sampled_from(["sales", "gold", "auth"])
HEADERS = (
    st.just([])
    | st.lists(NEAR, min_size=1, max_size=1)
    | st.lists(NEAR | TENANTS | st.sampled_from(["no id", "x" * 65]), max_size=2)
)


@st.composite
def asks(draw: Callable[[Any], Any]) -> tuple[str, Asked]:
    """A target, and what it means."""
    kind = draw(st.sampled_from(["sales", "gold", "auth", "below", "tenant", "paying"]))
    method, headers = draw(METHODS), draw(HEADERS)
    tenant = draw(NEAR | TENANTS) if kind in ("below", "tenant", "paying") else None
    return kind, Asked(
        method=method,
        path_tenant=tenant,
        headers=headers,
        min_tier="enterprise" if kind == "gold" else None,
        pays=kind in ("auth", "paying"),
        critical=(kind == "tenant" and method == "DELETE")
        or (kind == "paying" and method in ("POST", "PUT", "PATCH", "DELETE")),
    )


def target(kind: str, tenant: str | None) -> str:
    below = f"/api/v1/tenants/{tenant}"
    return {
        "sales": "/api/v1/sales/today",
        "gold": f"{GOLD}/x",
        "auth": "/api/v1/auth/me",
        "below": f"{below}/products",
        "tenant": below,
        "paying": f"{below}/subscription/plan",
    }[kind]


class Pipeline:
    """The real gateway with the real admission and verifier, and services that record."""

    def __init__(self, store: Any, hierarchy: Any, tenants: Any, turn: Callable[[], None]) -> None:
        self.answers = Answers()
        """The tenant service's, which knows what the token says and more."""
        self.services, self._turn = Services(), turn
        self.services.names |= {"demo:sales"}
        clock, notes = Clock(), Notes()
        self.store, self.hierarchy = store, hierarchy
        self.tickets = Tickets(MemoryRecords(lambda: NOW), SessionSeal(), lambda: NOW)
        verifier = TokenVerifier(
            PemKey(load_public_key(ISSUER.public_pem, "EdDSA")),
            algorithm="EdDSA",
            issuer="bakery-auth",
            audience=None,
            leeway_s=10,
            cache_ttl_s=900,
            now=lambda: NOW,
            seconds=lambda: NOW,
        )
        gold = Route(prefix=GOLD, template=f"{GOLD}/**", kind="proxy", service="sales", min_tier="enterprise")
        policies = Policies(
            router=Router((*builtin_routes(), gold)),
            cors=CorsPolicy(origins=frozenset()),
            credentials={"bearer": BearerTokens(verifier)},
            upstreams=self.services,
            general_limit=MANY,
            auth_limit=MANY,
            grace_days=7,
            max_body_bytes=1000,
        )
        self.gateway = Gateway(
            policies,
            admission=Admission(store, notes, Desk().desk),
            proxy=Proxy(clock),
            pages={},
            handlers={},
            telemetry=notes,
            clock=clock,
            now=lambda: NOW,
            inheritance=Inheritance(hierarchy, store, lambda *_, **__: None, lambda: 0.0),
            lookups=Lookups(
                self.answers, tenants, revocations=tenants, shared=None, telemetry=self.answers, now=lambda: NOW
            ),
            tickets=self.tickets,
        )

    def ask(self, token: str, kind: str, asked: Asked) -> tuple[Answer, list[Any]]:
        """The answer, and what reached services."""
        self.services.requests.clear()
        named = (f"X-Tenant-ID: {value}".encode() for value in asked.headers)
        lines = (b"Authorization: Bearer " + token.encode(), *FORGED, *named)
        app: Any = self.gateway
        client = Client(app).send(request(asked.method.encode(), target(kind, asked.path_tenant).encode(), *lines))
        while not client.wire.written:
            self._turn()
        (answer,) = answers(client.wire.written, bodiless=asked.method == "HEAD")
        return answer, list(self.services.requests)


@dataclass(kw_only=True)
class Drawn:
    """One example: what Redis holds, a token, and a request."""

    state: State
    payload: dict[str, Any]
    sound: bool
    kind: str
    asked: Asked

    def __post_init__(self) -> None:
        self.token = (ISSUER if self.sound else FORGER).token(**self.payload)
        self.digest = sha256(self.token.rpartition(".")[0].encode()).hexdigest()


def check(pipeline: Pipeline, its: Drawn) -> None:
    """The gateway does as the oracle says, the first time and from what it remembers."""
    kind, asked = its.kind, its.asked
    told = verdict(its.state, its.payload, its.sound, asked, NOW)
    pipeline.answers.subscriptions = plans(its)
    event("passes" if not told.refusals else "refused")
    for _ in range(3):
        answer, received = pipeline.ask(its.token, kind, asked)
        if told.refusals:
            assert received == []
            assert answer.status in {status for status, _ in told.refusals}
            if asked.method != "HEAD":
                assert (answer.status, answer.problem()["code"]) in told.refusals
            continue
        assert answer.status == 200
        ((service, sent),) = received
        assert service.startswith("demo:") == (its.payload["is_demo"] and kind in ("sales", "gold"))
        pairs = [(name.decode(), value.decode()) for name, value in sent.headers]
        identity = [(name, value) for name, value in pairs if name.lower() in {*IDENTITY, "x-demo-session-id"}]
        assert sorted(identity) == sorted(told.told.items())
        grace = answer.headers.get(b"x-subscription-grace", [None])[0]
        assert (grace.decode() if grace else None) == told.grace


def plans(its: Drawn) -> dict[str, Subscription | LookupFailed | None]:
    """What the tenant service says of the tenant that the request is for."""
    asked = its.asked
    tenant = asked.path_tenant or next(iter(asked.headers), its.payload["tenant_id"])
    access = opened(its.state, its.payload, tenant)
    if access is None:
        return {}
    return {tenant: subscription_from({name: access[name] for name in ("tier", "status", "valid_until")})}


def renamed(value: Any, suffix: str) -> Any:
    """The same with each tenant's name made this example's own."""
    if isinstance(value, Drawn | State | Asked):
        members = {field.name: getattr(value, field.name) for field in fields(value)}
        return type(value)(**{name: renamed(member, suffix) for name, member in members.items()})
    if isinstance(value, str):
        return value + suffix if value in NAMES else value
    if isinstance(value, dict):
        return {renamed(name, suffix): renamed(member, suffix) for name, member in value.items()}
    if isinstance(value, list | set):
        return type(value)(renamed(member, suffix) for member in value)
    return value


DEEP = State(parents=CHAIN)
FAR = {"tier": "starter", "status": "active", "valid_until": iso(NOW + DAY_S)}


def payload_with(*entries: dict[str, Any], **claims: Any) -> dict[str, Any]:
    return {
        "user_id": "user-1",
        "tenant_id": "t0",
        "tenant_role": "owner",
        "subscription": {**FAR, "tier": "professional"},
        "tenant_access": list(entries),
        "exp": NOW + 900,
        "iat": NOW - 100,
        "is_demo": False,
        "demo_session_id": "session-1",
        **claims,
    }


def include(tenant: str) -> dict[str, Any]:
    return {"id": tenant, "role": f"area-{tenant}", "include_children": True, **FAR}


def far(*entries: dict[str, Any], state: State | None = None, tenant: str = "t11", **claims: Any) -> Drawn:
    """A request for the tenant at the end of a long chain, or for another, with these entries."""
    asked = Asked(method="POST", path_tenant=None, headers=[tenant])
    state = state or State(parents=CHAIN)
    return Drawn(state=state, payload=payload_with(*entries, **claims), sound=True, kind="sales", asked=asked)


def rare(test: Callable[..., None]) -> Callable[..., None]:
    """With the examples that chance seldom finds."""
    for drawn in (
        far(include("t3")),
        far(include("t2")),
        far(include("t5"), include("t3"), {**include("t7"), "include_children": False}),
        far(include("t3"), is_demo=True),
        far(include("t3"), state=State(changed_at={"t3": NOW}), tenant="t3"),
        far(include("t3"), state=State(changed_at={"t0": NOW}), tenant="t3"),
        far(state=State(changed_at={"t0": NOW - 99.75}), tenant="t0", iat=NOW - 99.5),
        far(tenant="t0", subscription={**FAR, "status": "past_due"}),
        far(include("t3"), state=State(parents=CHAIN, changed_at={"t4": NOW}, on_hold={"t5"}, demo={"t6"})),
        far(include("t3"), state=State(parents=CHAIN, on_hold={"t11"})),
        far(include("t3"), state=State(parents={**CHAIN, "t5": "t8"})),
    ):
        test = example(drawn)(test)
    return test


DRAWN = st.builds(
    lambda state, payload, sound, ask: Drawn(state=state, payload=payload, sound=sound, kind=ask[0], asked=ask[1]),
    STATES,
    TOKENS,
    st.sampled_from([True] * 19 + [False]),
    asks(),
)


def in_memory(its: Drawn) -> Pipeline:
    """The embedded store in this state."""
    store, tree, state = MemoryStore(lambda: int(NOW * 1e6)), MemoryHierarchy(), its.state

    async def fill() -> None:
        for child, parent in state.parents.items():
            await tree.set_parent(child, parent)
        for tenant, at in state.changed_at.items():
            await store.subscription_changed(tenant, at or 0.0)
        for tenant in state.on_hold:
            await store.set_read_only(tenant, ReadOnly(reason="held"))
        for tenant in state.demo:
            await store.set_demo(tenant, True)
        if state.revoked:
            await store.revoke(its.digest, NOW + 900)

    Deferred.fromCoroutine(fill())
    return Pipeline(store, tree, store, lambda: pytest.fail("the embedded store does not wait"))


@settings(max_examples=4 * EXAMPLES)
@given(DRAWN)
@rare
def test_with_the_embedded_store_a_request_reaches_a_service_only_if_every_rule_allows_it(its: Drawn) -> None:
    readable = {tenant: at for tenant, at in its.state.changed_at.items() if at is not None}
    its.state.changed_at = readable  # this store can't hold anything else
    check(in_memory(its), its)


class InRedis:
    """A pipeline whose state is in Redis, with the mirror in use, and another program's way to write there."""

    def __init__(self, server: RedisServer) -> None:
        from twisted.internet import reactor  # noqa: PLC0415

        self.mirror = Mirror()
        self.link = link_to(server, RecordingTelemetry())
        self.invalidations = invalidations_of(server, self.link, self.mirror)
        plain = store_over(self.link, self.mirror)
        self.store = ResilientAdmission(
            plain,
            on_failure="local",
            local=MemoryStore(lambda: 0),
            mirror=self.mirror,
            clock=reactor,  # type: ignore[arg-type]
            telemetry=RecordingTelemetry(),
        )
        tree = RedisHierarchy(self.link, self.mirror, reactor)  # type: ignore[arg-type]
        self.pipeline = Pipeline(self.store, tree, plain, turn)
        self.program = redis.Redis(host=server.host, port=server.port)
        self._numbers = itertools.count()

    @property
    def suffix(self) -> str:
        """What makes names this example's own, so that nothing of the last one is in the mirror."""
        return f".{next(self._numbers)}"

    async def start(self) -> None:
        await self.link.start()
        self.invalidations.start()
        await trusted(self.mirror)

    async def stop(self) -> None:
        self.program.close()
        await self.invalidations.stop()
        await self.link.stop()

    def fill(self, its: Drawn) -> None:
        state = its.state
        with self.program.pipeline(transaction=False) as pipe:
            for child, parent in state.parents.items():
                pipe.set(f"tenant:{child}:parent", parent)
            for tenant, at in state.changed_at.items():
                pipe.set(f"tenant:{tenant}:subscription_changed_at", "yesterday" if at is None else repr(at))
            for tenant in state.on_hold:
                pipe.set(f"tenant:{tenant}:read_only", json.dumps({"reason": "held"}))
            for tenant in state.demo:
                pipe.set(f"tenant:{tenant}:demo", "1")
            if state.revoked:
                pipe.set(f"bakerygw:revoked:{its.digest}", "1", ex=60)
            pipe.execute()


def turn() -> None:
    """Let the reactor turn once; called out of what `run_beside_the_reactor` runs."""
    getcurrent().parent.switch(pause(0))


async def run_beside_the_reactor(work: Callable[[], None]) -> None:
    """Run what does not know of the reactor, and waits for it with `turn`."""
    worker = greenlet(work)
    waiting = worker.switch()
    while not worker.dead:
        await waiting
        waiting = worker.switch()


@pytest_twisted.async_yield_fixture
async def in_redis(redis_server: RedisServer) -> AsyncIterator[InRedis]:
    its = InRedis(redis_server)
    await its.start()
    yield its
    await its.stop()


@pytest_twisted.ensureDeferred
async def test_with_redis_a_request_reaches_a_service_only_if_every_rule_allows_it(in_redis: InRedis) -> None:
    @settings(max_examples=3 * EXAMPLES)
    @given(DRAWN)
    @rare
    def one(drawn: Drawn) -> None:
        its = renamed(drawn, in_redis.suffix)
        in_redis.fill(its)
        check(in_redis.pipeline, its)

    await run_beside_the_reactor(one)
    assert in_redis.mirror.hits > 0
