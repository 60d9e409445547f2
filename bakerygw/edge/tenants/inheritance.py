"""Access to a tenant by way of one that it is part of: asked for when nothing else opens it, and answered for."""

from collections.abc import Callable
from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.hierarchy import covering_entry, possible_child, with_child
from bakerygw.core.http import RequestHead
from bakerygw.core.recent import Seldom
from bakerygw.core.routing import Match
from bakerygw.core.tenancy import is_stale
from bakerygw.edge.admission import state_unavailable
from bakerygw.edge.limits.budgets import tenant_buckets
from bakerygw.edge.policies import Policies
from bakerygw.ports import AdmissionAsk, AdmissionState, AdmissionStore, Audit, Hierarchy, StoreUnavailable

AUDIT_EVERY_S: Final = 60.0
"""So long a further use by the same user, of the same tenant, in the same way, is no news."""
MAX_AUDITED: Final = 10_000
"""Uses that are remembered for it, 3 MB; beyond it the oldest is told again."""


class Inheritance:
    """Adds to a token's claims what an entry with `include_children` opens."""

    def __init__(self, hierarchy: Hierarchy, store: AdmissionStore, audit: Audit, seconds: Callable[[], float]) -> None:
        """`seconds` is a monotonic clock."""
        self._hierarchy, self._store, self._audit, self._seconds = hierarchy, store, audit, seconds
        self._told: Seldom[tuple[str, str, str]] = Seldom(AUDIT_EVERY_S, MAX_AUDITED)

    def child_of(self, head: RequestHead, match: Match, claims: Claims) -> str | None:
        """The tenant that the request names, if it is open by inheritance or not at all; `None` costs 0.3 µs."""
        if not claims.tenant_access or not match.route.tenant:
            return None
        return possible_child(claims, match.tenant_id, head.fields.get(b"x-tenant-id", ()))

    async def extend(
        self, child: str, head: RequestHead, match: Match, claims: Claims, *, state: AdmissionState, policies: Policies
    ) -> tuple[Claims, AdmissionState]:
        """The claims of a verified token with the access that it inherits to `child`, and the state with the flags of
        that tenant and, behind the others, the levels of its limits, of which a token has been taken.

        Both are unchanged where it inherits none, and where the token is refused anyway.

        Raises `Refused` state-unavailable: access that can't be decided is not granted.
        """
        own = state.flags.get(claims.tenant_id)
        if state.revoked.get(claims.digest) or (own is not None and is_stale(claims.iat, own.changed_at)):
            return claims, state
        try:
            entry = covering_entry(claims, await self._hierarchy.ancestors(child))
            if entry is None:
                return claims, state
            extended = with_child(claims, child, entry)
            more = await self._store.admit(
                AdmissionAsk(
                    buckets=tenant_buckets(match.route, extended, policies, child),
                    tenants=(child,),
                    verified=True,
                    limit_of=child,
                    peek=match.route.action == "limits",
                )
            )
        except StoreUnavailable:
            raise state_unavailable("hierarchy") from None
        self._tell(claims, child, entry.tenant_id, head.client)
        levels, flags = (*state.levels, *more.levels), {**state.flags, **more.flags}
        return extended, AdmissionState(levels=levels, flags=flags, revoked=state.revoked)

    def _tell(self, claims: Claims, child: str, via: str, client: str) -> None:
        if self._told.is_due((claims.user_id, child, via), self._seconds()):
            self._audit("tenant.parent_used", user_id=claims.user_id, tenant_id=child, via=via, client=client)
