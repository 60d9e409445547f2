"""Random users open streams of random tenants in every way there is: who sees which tenant's alerts, by an oracle."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from deferreds import success_of
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from test_tenancy_property import (
    DAY_S,
    EXAMPLES,
    HEADERS,
    ISSUER,
    NAMES,
    NEAR,
    NOW,
    STATES,
    TENANTS,
    TOKENS,
    Drawn,
    Pipeline,
    in_memory,
    plans,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.alerts import parse_alert
from bakerygw.realtime.alerts.handler import AlertStreams
from bakerygw.realtime.alerts.hub import Hub
from bakerygw.realtime.guard import StreamGuard
from bakerygw.realtime.quotas import Quota, Quotas
from bakerygw.realtime.rechecks import ROUND_S
from bakerygw.stores.memory_events import MemoryEventLog
from tests.edge.edge_fakes import Client, answers, request
from tests.minting import iso
from tests.oracle import Asked, State, opened, verdict
from tests.realtime.stream_fakes import Told

STREAM = b"/api/v1/alerts/stream"
TICKET = b"/api/v1/alerts/ticket"
MANY = Quota(per_user=1000, per_tenant=1000, in_all=1000)


@dataclass(kw_only=True)
class Attempt:
    """One user, and how they open a stream."""

    payload: dict[str, Any]
    way: str
    fetched_for: list[str]
    """`X-Tenant-ID` with which a ticket is fetched."""
    headers: list[str]
    query: list[str]


@st.composite
def attempts(draw: Callable[[Any], Any], state: State) -> Attempt:
    """Mostly with what the token opens, so that most of what may be open is, and in all ways."""
    payload = {**draw(TOKENS), "tenant_id": draw(NEAR)}
    own, entries = payload["tenant_id"], [entry["id"] for entry in payload["tenant_access"]]
    parts = [name for name in NAMES if name not in (own, *entries) and opened(state, payload, name) is not None]
    its = st.sampled_from([own]) | st.sampled_from(entries or [own]) | st.sampled_from(parts or entries or [own])
    named: st.SearchStrategy[list[str]] = st.just([]) | its.map(lambda name: [name])
    if draw(st.booleans()):
        named = st.just([draw(its)])
    wild = draw(st.integers(0, 4)) == 0
    return Attempt(
        payload=payload,
        way=draw(st.sampled_from(["header", "token", "ticket", "ticket"])),
        fetched_for=draw(HEADERS if wild else named),
        headers=draw(st.just([]) | HEADERS if wild else named),
        query=draw(st.just([]) | st.lists(its | NEAR | TENANTS, min_size=1, max_size=1) if wild else named),
    )


@dataclass(kw_only=True)
class Change:
    """What somebody does while streams are open."""

    kind: str
    tenant: str
    parent: str | None
    number: int
    """Of the attempt whose token is meant."""


@st.composite
def scenes(draw: Callable[[Any], Any]) -> tuple[State, list[Attempt], Change]:
    """What holds, who comes, and what changes then, mostly for a tenant that is named or above one that is."""
    state = draw(STATES)
    comers = draw(st.lists(attempts(state), min_size=1, max_size=5))
    met = [name for it in comers for name in [it.payload["tenant_id"], *it.fetched_for, *it.headers, *it.query]]
    met = sorted({*met, *(state.parents.get(name, name) for name in met)} & set(NAMES))
    parts = [name for name in met if name in state.parents]
    kind = draw(st.sampled_from(["stale", "demo", "revoked", "moved"]))
    changing = Change(
        kind=kind,
        tenant=draw(st.sampled_from((parts if kind == "moved" else met) or NAMES) | TENANTS),
        parent=draw(st.none() | TENANTS),
        number=draw(st.integers(0, 4)),
    )
    return state, comers, changing


def everybody() -> list[Attempt]:
    """One user in every way: to t0, which is their own, to t1 by an entry, and to t2, which is part of t1."""
    paid = {"tier": "enterprise", "status": "active", "valid_until": iso(NOW + 30 * DAY_S)}
    payload = {
        "user_id": "user-1",
        "tenant_id": "t0",
        "tenant_role": "owner",
        "subscription": paid,
        "tenant_access": [{"id": "t1", "role": "admin", "include_children": True, **paid}],
        "exp": NOW + 900,
        "iat": NOW - 100,
        "is_demo": False,
        "demo_session_id": "session-1",
    }
    return [
        Attempt(
            payload=payload,
            way=way,
            fetched_for=named if way == "ticket" else [],
            headers=named if way == "header" else [],
            query=named if way == "token" else [],
        )
        for way in ("header", "token", "ticket")
        for named in ([], ["t1"], ["t2"])
    ]


def scene_of(kind: str, tenant: str, parent: str | None = None) -> tuple[State, list[Attempt], Change]:
    """Everybody is there when this changes."""
    changing = Change(kind=kind, tenant=tenant, parent=parent, number=0)
    return State(parents={"t2": "t1"}), everybody(), changing


class Rig:
    """The pipeline with a hub and a guard over the embedded stores."""

    def __init__(self, state: State) -> None:
        self.clock = Clock()
        self.pipeline: Pipeline = in_memory(Drawn(state=state, payload={}, sound=True, kind="sales", asked=_get([])))
        self.store: Any = self.pipeline.store
        self.log = MemoryEventLog(lambda: NOW, history_events=100, history_s=1000)
        self.hub = Hub(
            self.log, clock=self.clock, heartbeat_s=15.0, history_s=86_400.0, telemetry=Told(), random=Random(1)
        )
        self.hub.restored()
        quotas = Quotas(
            {"stream": MANY, "socket": MANY}, new_per_second=1000, seconds=self.clock.seconds, jitter=Random(1).random
        )
        guard = StreamGuard(
            quotas,
            store=self.store,
            hierarchy=self.pipeline.hierarchy,
            watch=self.store,
            trusted=lambda: True,
            signers=lambda: None,
            grace_days=lambda: 7.0,
            clock=self.clock,
            now=lambda: NOW,
            random=Random(1),
        )
        self.pipeline.gateway.handlers = {
            "alerts": AlertStreams(self.hub, guard).open,
            "ticket": self.pipeline.tickets.reply_to,
        }

    def client(self, method: bytes, target: bytes, token: str | None, tenants: list[str]) -> Client:
        lines = [b"X-Tenant-ID: " + tenant.encode() for tenant in tenants]
        if token is not None:
            lines.append(b"Authorization: Bearer " + token.encode())
        app: Any = self.pipeline.gateway
        return Client(app).send(request(method, target, *lines))

    def publish(self, word: str) -> None:
        """One alert to every tenant."""
        for tenant in NAMES:
            payload = json.dumps({word: f"<{tenant}>"}).encode()
            (placed,) = success_of(Deferred.fromCoroutine(self.log.append([parse_alert(tenant, payload)])))
            self.hub.stored(tenant, placed, payload)
        for _ in range(20):
            self.clock.advance(0.05)


def _get(headers: list[str]) -> Asked:
    return Asked(method="GET", path_tenant=None, headers=headers)


def drawn(state: State, attempt: Attempt, asked: Asked) -> Drawn:
    return Drawn(state=state, payload=attempt.payload, sound=True, kind="sales", asked=asked)


def ask(rig: Rig, state: State, attempt: Attempt) -> tuple[Client, str | None]:
    """A stream, or the refusal of one; and the tenant that it is for by the contract, if it may be opened."""
    token, named = ISSUER.token(**attempt.payload), [*attempt.headers, *attempt.query]
    pairs = [f"tenant_id={tenant}" for tenant in attempt.query]
    if attempt.way == "ticket":
        # No ticket's business is whether its tenant is on hold.
        its = drawn(replace(state, on_hold=set()), attempt, replace(_get(attempt.fetched_for), method="POST"))
        rig.pipeline.answers.subscriptions = plans(its)
        told = verdict(its.state, its.payload, True, its.asked, NOW)
        client = rig.client(b"POST", TICKET, token, attempt.fetched_for)
        (answer,) = answers(client.wire.written)
        if told.refusals:
            assert (answer.status, answer.problem()["code"]) in told.refusals
            return client, None
        assert answer.status == 201
        named = [told.told["X-Tenant-Id"], *named]
        pairs.append("ticket=" + json.loads(answer.body)["ticket"])
    elif attempt.way == "token":
        pairs.append(f"token={token}")
    its = drawn(state, attempt, _get(named))
    rig.pipeline.answers.subscriptions = plans(its)
    told = verdict(state, attempt.payload, True, its.asked, NOW)
    target = STREAM + ("?" + "&".join(pairs)).encode() if pairs else STREAM
    client = rig.client(b"GET", target, token if attempt.way == "header" else None, attempt.headers)
    if not told.refusals and attempt.payload["exp"] > NOW:
        return client, told.told["X-Tenant-Id"]
    (answer,) = answers(client.wire.written)
    refusals = told.refusals or {(401, "token-expired")}
    assert (answer.status, answer.problem()["code"]) in refusals
    return client, None


def seen(client: Client, word: str) -> list[str]:
    return [name.decode() for name in re.findall(rf'"{word}": "<(\w+)>"'.encode(), client.wire.written)]


def change(rig: Rig, state: State, attempts: list[Attempt], its: Change) -> tuple[State, dict[str, Any]]:
    """Do it; the state from then on, and the payload of the tokens that are revoked by it."""
    tenant = its.tenant
    if its.kind == "stale":
        success_of(Deferred.fromCoroutine(rig.store.subscription_changed(tenant, NOW + 10)))
        return replace(state, changed_at={**state.changed_at, tenant: NOW + 10}), {}
    if its.kind == "demo":
        success_of(Deferred.fromCoroutine(rig.store.set_demo(tenant, True)))
        return replace(state, demo={*state.demo, tenant}), {}
    if its.kind == "revoked":
        payload = attempts[its.number % len(attempts)].payload
        digest = drawn(state, replace(attempts[0], payload=payload), _get([])).digest
        success_of(Deferred.fromCoroutine(rig.store.revoke(digest, NOW + 900)))
        return state, payload
    success_of(Deferred.fromCoroutine(rig.pipeline.hierarchy.set_parent(tenant, its.parent)))
    for _ in range(math.ceil(ROUND_S) + 2):
        rig.clock.advance(1)  # nobody tells of parents in one process, where only the demo sets them
    parents = {child: parent for child, parent in state.parents.items() if child != tenant}
    return replace(state, parents=parents if its.parent is None else {**parents, tenant: its.parent}), {}


@example(scene_of("stale", "t0"))
@example(scene_of("stale", "t1"))
@example(scene_of("stale", "t2"))
@example(scene_of("demo", "t1"))
@example(scene_of("demo", "t2"))
@example(scene_of("revoked", "t0"))
@example(scene_of("moved", "t2"))
@example(scene_of("moved", "t2", "t3"))
@example(scene_of("moved", "t1", "t0"))
@settings(max_examples=4 * EXAMPLES)
@given(scenes())
def test_everybody_sees_the_alerts_of_the_tenant_that_is_open_to_them_and_no_other(
    scene: tuple[State, list[Attempt], Change],
) -> None:
    state, attempts, changing = scene
    state = replace(state, changed_at={name: at for name, at in state.changed_at.items() if at is not None})
    state.revoked = False
    rig = Rig(state)
    asked = [(attempt, *ask(rig, state, attempt)) for attempt in attempts]
    rig.clock.advance(0)

    rig.publish("first")
    for attempt, client, tenant in asked:
        event(f"{attempt.way}: {'open' if tenant else 'refused'}")
        assert seen(client, "first") == ([] if tenant is None else [tenant])

    after, revoked = change(rig, state, attempts, changing)
    rig.clock.advance(0)
    rig.publish("second")
    for attempt, client, tenant in asked:
        if tenant is None:
            assert seen(client, "second") == []
            continue
        # Claims in another order make another token, whose digest is another.
        is_revoked = json.dumps(attempt.payload) == json.dumps(revoked)
        now = verdict(replace(after, revoked=is_revoked), attempt.payload, True, _get([tenant]), NOW)
        over = bool(now.stages[0])
        event(f"{changing.kind}: {'over' if over else 'goes on'}")
        if changing.kind == "moved" and not over and not seen(client, "second"):
            assert b'"forbidden"' in client.wire.written  # open by another entry now: who comes back is let in
            continue
        assert seen(client, "second") == ([] if over else [tenant])
        codes = {"stale": b'"token-stale"', "demo": b'"forbidden"', "revoked": b'"token-revoked"'}
        assert (codes.get(changing.kind, b'"forbidden"') in client.wire.written) == over
