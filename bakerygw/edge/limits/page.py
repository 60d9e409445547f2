"""The handler of the route that tells callers of their limits."""

from bakerygw.core.claims import Claims
from bakerygw.core.http import Reply
from bakerygw.core.limits import Level
from bakerygw.core.outcome import Trace
from bakerygw.core.routing import Match, Route
from bakerygw.core.tenancy import TenantView
from bakerygw.edge.admission import Grant, state_unavailable
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.limits.budgets import buckets_of, limit_row, scope_of
from bakerygw.edge.pages.common import json_reply
from bakerygw.edge.policies import Policies
from bakerygw.ports import AdmissionAsk, AdmissionStore, StoreUnavailable


class LimitsPage:
    """Tells every limit that a request of its caller is under; callers who are known spend nothing by it."""

    def __init__(self, store: AdmissionStore) -> None:
        self._store = store

    async def reply_to(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The limits and what is left of them. Raises `Refused` state-unavailable."""
        claims, view, levels = grant.claims, grant.view, grant.levels
        assert claims is not None and view is not None  # noqa: S101, PT018  as on every route that needs a token
        if grant.caller is None or grant.caller.known is None:
            # What was asked so far is the bucket of the address, as for any token that was not known yet.
            levels = await self._look(exchange, route, claims, view, policies)
        return json_reply(
            {
                "tenant_id": view.tenant_id,
                "limits": [limit_row(level, scope_of(level.rule, True)) for level in levels if not level.rule.shadow],
                "concurrent_requests": policies.max_concurrent,
            }
        )

    async def _look(
        self, exchange: Exchange, route: Route, claims: Claims, view: TenantView, policies: Policies
    ) -> tuple[Level, ...]:
        match, tenant_id = Match(route=route, tenant_id=None), view.tenant_id
        ask = AdmissionAsk(
            buckets=buckets_of(exchange.head, match, claims, policies, tenant_id),
            tenants=(tenant_id,),
            verified=True,
            limit_of=tenant_id,
            demo=claims.is_demo,
            peek=True,
        )
        try:
            return (await self._store.admit(ask)).levels
        except StoreUnavailable:
            raise state_unavailable("limits-closed") from None
