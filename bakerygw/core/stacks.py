"""Limits stacked upon the general one: which of them a request to a route is under."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.limits import LimitRule
from bakerygw.core.routing import Route

UNROUTED: Final = ""
"""In place of a prefix: paths that no route has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy:
    """A rule and those whom it is for."""

    rule: LimitRule
    tier: str | None = None
    """Only tenants of this tier."""
    prefix: str | None = None
    """Only this prefix of routes and what is below."""


Stacks = Mapping[str, tuple[LimitPolicy, ...]]
"""By the prefix of a route, or `UNROUTED`, the policies that hold there; routes without any are left out."""


def stacks_of(policies: Collection[LimitPolicy], routes: Iterable[Route]) -> Stacks:
    """Which of these policies hold on each of these routes, found out once."""
    if not policies:
        return {}
    found = {
        route.prefix: tuple(policy for policy in policies if holds_below(policy.prefix, route.prefix))
        for route in routes
        if not route.unlimited
    }
    found[UNROUTED] = tuple(policy for policy in policies if policy.prefix is None)
    return {prefix: stack for prefix, stack in found.items() if stack}


def holds_below(prefix: str | None, path: str) -> bool:
    """Whether `path` is `prefix` or below it, by whole segments; `None` covers everything."""
    return prefix is None or path == prefix or path.startswith(prefix + "/")


def tier_in(claims: Claims, tenant_id: str) -> str | None:
    """The tier that these claims tell for a tenant which they open; `None` where they tell none, as API keys do."""
    if tenant_id == claims.tenant_id:
        return claims.subscription.tier if claims.subscription is not None else None
    for entry in claims.tenant_access:
        if entry.tenant_id == tenant_id:
            return entry.tier
    return None
