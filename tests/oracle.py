"""What has to come of a request, by the contract alone: plain Python, sharing no code with the gateway.

Every rule is judged by itself, as if there were no other. `verdict` gives the refusals of all rules by stage of the
pipeline; a request must be refused by one of the first stage that has any, and may reach a service only if none has.
"""

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
WRITES = {"POST", "PUT", "PATCH", "DELETE"}
RANKS = {None: 0, "starter": 1, "professional": 2, "enterprise": 3}
LEEWAY_S = 10
GRACE_S = 7 * 86_400

Refusal = tuple[int, str]


@dataclass(kw_only=True)
class State:
    """What Redis holds, by tenant."""

    parents: dict[str, str] = field(default_factory=dict)
    changed_at: dict[str, float | None] = field(default_factory=dict)
    """Unix seconds; `None` for a value that is no time."""
    on_hold: set[str] = field(default_factory=set)
    demo: set[str] = field(default_factory=set)
    revoked: bool = False
    """The token is."""


@dataclass(kw_only=True)
class Asked:
    """One request."""

    method: str
    path_tenant: str | None
    headers: list[str]
    """The values of `X-Tenant-ID`."""
    min_tier: str | None = None
    pays: bool = False
    """Exempt, so that a customer can sign out and pay."""
    critical: bool = False


@dataclass(kw_only=True)
class Verdict:
    """The refusals of identity and tenancy, of the subscription, of the hold; and what the service is told."""

    stages: list[set[Refusal]]
    told: dict[str, str] = field(default_factory=dict)
    grace: str | None = None

    @property
    def refusals(self) -> set[Refusal]:
        """Those of the first stage that has any; empty if the request must reach the service."""
        return next((stage for stage in self.stages if stage), set())


def verdict(state: State, token: dict[str, Any], sound: bool, asked: Asked, now: float) -> Verdict:
    """What has to come of the request of a token with this payload; `sound`: its signature is the issuer's."""
    identity, paid, hold = stages = [set[Refusal](), set[Refusal](), set[Refusal]()]
    if not sound:
        identity.add((401, "token-invalid"))
    if token["exp"] <= now - LEEWAY_S:
        identity.add((401, "token-expired"))
    if identity:
        return Verdict(stages=stages)
    if state.revoked:
        identity.add((401, "token-revoked"))
    if stale(state, token, token["tenant_id"]):
        identity.add((401, "token-stale"))
    demo = token.get("is_demo", False)
    if demo and asked.critical:
        identity.add((403, "demo-isolation"))
    unknown = {tenant for tenant, at in state.changed_at.items() if at is None}
    if token["tenant_id"] in unknown and asked.method in WRITES:
        identity.add((503, "state-unavailable"))

    names = ([asked.path_tenant] if asked.path_tenant is not None else []) + asked.headers
    if any(not ID.match(name) for name in names):
        identity.add((400, "bad-request"))
    if len(set(names)) > 1:
        identity.add((400, "tenant-ambiguous"))
    if len(set(names)) > 1 or any(not ID.match(name) for name in names):
        return Verdict(stages=stages)
    tenant = names[0] if names else token["tenant_id"]

    access = opened(state, token, tenant)
    if access is None:
        identity.add((403, "demo-isolation" if demo else "tenant-forbidden"))
        return Verdict(stages=stages)
    if tenant in unknown:
        if asked.method in WRITES:
            identity.add((503, "state-unavailable"))
    else:
        if stale(state, token, tenant):
            identity.add((401, "token-stale"))
        if tenant in state.demo and not demo:
            identity.add((403, "demo-isolation"))
        if tenant in state.on_hold and asked.method in WRITES and not asked.pays:
            hold.add((403, "tenant-read-only"))
    grace = None
    grace = None
    if not asked.pays:
        refusal, grace = subscription(access, now)
        paid |= refusal
        if RANKS[access["tier"]] < RANKS[asked.min_tier]:
            paid.add((403, "tier-required"))
    told = {
        "X-User-Id": token["user_id"],
        "X-User-Role": access["role"],
        "X-Tenant-Id": tenant,
        "X-Subscription-Tier": access["tier"],
        "X-Subscription-Status": access["status"],
        "X-Is-Demo": "true" if demo else "false",
    }
    if demo:
        told["X-Demo-Session-Id"] = token["demo_session_id"]
    return Verdict(stages=stages, told=told, grace=grace)


def opened(state: State, token: dict[str, Any], tenant: str) -> dict[str, Any] | None:
    """Role and subscription in this tenant; `None` if the token does not open it."""
    if tenant == token["tenant_id"]:
        return {"role": token["tenant_role"], **token["subscription"]}
    if token.get("is_demo"):
        return None
    entries = {entry["id"]: entry for entry in token["tenant_access"]}
    if tenant in entries:
        return entries[tenant]
    met, above = {tenant}, state.parents.get(tenant)
    for _ in range(8):
        if above is None or above in met or not ID.match(above):
            return None
        if entries.get(above, {}).get("include_children"):
            return entries[above]
        met.add(above)
        above = state.parents.get(above)
    return None


def stale(state: State, token: dict[str, Any], tenant: str) -> bool:
    """Whether the token is older than the last change of this tenant."""
    at = state.changed_at.get(tenant)
    return at is not None and token["iat"] < math.ceil(at)


def subscription(access: dict[str, Any], now: float) -> tuple[set[Refusal], str | None]:
    """What is refused for it, or the end of the grace if it is in grace."""
    if access["status"] not in ("active", "trialing", "past_due"):
        return {(402, "subscription-inactive")}, None
    valid_until = datetime.strptime(access["valid_until"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    if now >= valid_until + GRACE_S:
        return {(402, "subscription-expired")}, None
    if now < valid_until and access["status"] != "past_due":
        return set(), None
    return set(), datetime.fromtimestamp(valid_until + GRACE_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
