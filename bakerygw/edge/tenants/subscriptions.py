"""The handler of a tenant's subscription: proxied, and whoever holds an older token hears of the change."""

from typing import Final

from twisted.internet.defer import CancelledError

from bakerygw.core.http import WRITING_METHODS, Reply
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Refused
from bakerygw.core.routing import Route
from bakerygw.edge.admission import Grant
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.tenants.changes import SubscriptionChanges
from bakerygw.ports import Audit

_UNKNOWN: Final = frozenset({"upstream-timeout", "upstream-unreachable", "upstream-invalid"})
"""Failures after which the service may have done what was asked."""


class SubscriptionHandler:
    """Handles the routes with the action `subscription`."""

    def __init__(self, proxy: Proxy, changes: SubscriptionChanges, audit: Audit) -> None:
        self._proxy, self._changes, self._audit = proxy, changes, audit

    async def reply_to(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The service's answer, streamed; a 2xx to a write only once older tokens are stale, or that was tried.

        The answer's head decides: whatever becomes of its body, the service has done what was asked.
        """
        view, claims = grant.view, grant.claims
        if exchange.head.method not in WRITING_METHODS or view is None or claims is None:
            return await self._proxy.reply_to(exchange, route, grant, policies, trace)
        try:
            reply = await self._proxy.reply_to(exchange, route, grant, policies, trace)
        except CancelledError:
            self._doubt(view.tenant_id, grant)
            raise
        except Refused as refusal:
            if refusal.problem.code in _UNKNOWN:
                self._doubt(view.tenant_id, grant)
            raise
        if 200 <= reply.status < 300:
            await self._changed(view.tenant_id, claims.user_id, reply, trace)
        return reply

    async def _changed(self, tenant_id: str, user_id: str, reply: Reply, trace: Trace) -> None:
        done = False
        try:
            done = await self._changes.changed(tenant_id)
        except CancelledError:
            body = reply.body
            if not isinstance(body, bytes):
                body.stop()
            raise
        finally:
            self._audit(
                "subscription.changed",
                who=user_id,
                user_id=user_id,
                tenant_id=tenant_id,
                client=trace.client,
                request_id=trace.request_id,
                outcome="done" if done else "pending",
            )

    def _doubt(self, tenant_id: str, grant: Grant) -> None:
        if grant.confirmed is not None:
            self._changes.doubted(tenant_id, grant.confirmed)
