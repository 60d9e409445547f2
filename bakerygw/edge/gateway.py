"""The public port: the order of every decision about a request, in one function."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from twisted.internet.interfaces import IReactorTime

from bakerygw.core.claims import Claims
from bakerygw.core.heads import ALLOW
from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.limits import limit_headers
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Refused
from bakerygw.core.routing import Action, Match, Route
from bakerygw.edge.admission import PUBLIC, Admission, Caller, Grant, state_unavailable
from bakerygw.edge.conversation import NO_REFERRER, Conversation, standing_headers
from bakerygw.edge.credentials.streams import with_query_tenant
from bakerygw.edge.credentials.tickets import Tickets
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.limits.crowd import Crowd
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.tenants.inheritance import Inheritance
from bakerygw.edge.tenants.lookups import Inquiry, Lookups
from bakerygw.ports import StoreUnavailable, Telemetry

LocalPage = Callable[[RequestHead], Reply]
Handler = Callable[[Exchange, Route, Grant, Policies, Trace], Awaitable[Reply]]
"""Answers a request that was let pass; may raise `Refused`."""

_BY_TOKEN: Final = frozenset(
    {"token-stale", "tenant-forbidden", "tier-required", "subscription-expired", "subscription-inactive"}
)
"""Refusals, all of them before any handler, that another access token of the same user may not meet."""
_OF_THE_SESSION: Final[frozenset[Action]] = frozenset({"session", "logout"})


class Gateway(Conversation):
    """The application of the public site."""

    def __init__(
        self,
        policies: Policies,
        *,
        admission: Admission,
        proxy: Proxy,
        pages: Mapping[str, LocalPage],
        handlers: Mapping[Action, Handler],
        telemetry: Telemetry,
        clock: IReactorTime,
        now: Callable[[], float],
        inheritance: Inheritance,
        lookups: Lookups,
        tickets: Tickets,
    ) -> None:
        """`pages` answers the gateway's own public routes, by their prefix, and `handlers` the routes with an action:
        between them every route that is not proxied. `now` gives Unix seconds."""
        super().__init__(self.reply_to, standing=self._standing_for, ended=telemetry.ended, clock=clock)
        self.policies = policies
        """The policies in force; assign to swap them for requests to come."""
        self.pages, self.handlers = pages, handlers
        self.crowd = Crowd()
        """The requests that are under way now, and may be ended by tenant."""
        self._admission, self._proxy = admission, proxy
        self._telemetry, self._now = telemetry, now
        self._inheritance = inheritance
        self._lookups, self._tickets = lookups, tickets

    async def reply_to(self, exchange: Exchange, trace: Trace, *, again: bool = False) -> Reply:
        """The whole life of a request, in order; a `Refused` at any step is its answer.

        `again`: the request of a session whose tokens were renewed meanwhile, judged by the new ones.
        """
        head, policies, admission = exchange.head, self.policies, self._admission
        match, unroutable = self._match(head, policies)
        if match is not None:
            trace.route = match.route.template
            if match.route.kind == "stream":
                head, trace.private = with_query_tenant(head), True
        if not again:
            self._telemetry.began(trace)
        policies.require_secure(head)
        unlimited = self._unlimited(head, match, policies)
        if unlimited is not None:
            return unlimited
        caller = admission.caller_of(head, match, policies, trace)
        state = await admission.ask(head, match, caller, policies, paid=again)
        owed = limit_headers(state.levels)
        try:
            admission.check_limit(state.levels, caller, trace)
            if unroutable is not None:
                raise unroutable
            match = admission.check_route(head, match)
            grant = PUBLIC
            if match.route.auth:
                claims = caller.known  # its time was checked just now
                if claims is None:
                    caller, head = await self._in_person(caller, head, policies)
                    claims, state = await admission.authenticate(
                        head, match, caller, state, policies=policies, trace=trace
                    )
                child = self._inheritance.child_of(head, match, claims)
                if child is not None:
                    paid = len(state.levels)
                    claims, state = await self._inheritance.extend(
                        child, head, match, claims, state=state, policies=policies
                    )
                    owed = limit_headers(state.levels)
                    admission.check_limit(state.levels[paid:], caller, trace)
                view = admission.tenant_of(head, match, claims, state, trace)
                if view.subscription is None or claims.email is None:
                    about = _inquiry(head, match, claims, caller, policies=policies, trace=trace)
                    view = await self._lookups.complete(about, view, state)
                owed += admission.check_subscription(match.route, view, self._now(), policies)
                admission.check_writable(head, match.route, view, state)
                confirmed = None
                if head.method in match.route.critical:
                    # Under way from here on, so that no tenant has that service answer its questions alone.
                    self.crowd.enter(exchange, Grant(claims=claims, view=view), policies.max_concurrent, trace)
                    about = _inquiry(head, match, claims, caller, policies=policies, trace=trace)
                    view, confirmed = await self._lookups.confirm(about, view)
                grant = Grant(claims=claims, view=view, levels=state.levels, caller=caller, confirmed=confirmed)
            reply = await self._handle(exchange, match.route, grant, policies, trace)
        except Refused as refusal:
            judged = again or refusal.problem.code not in _BY_TOKEN
            final = refusal if judged else await self._final(refusal, caller, match, policies)
            if final is None:
                return await self.reply_to(exchange, trace, again=True)
            reply = self.refused(final, trace)
        return reply.with_headers(owed)

    async def _in_person(self, caller: Caller, head: RequestHead, policies: Policies) -> tuple[Caller, RequestHead]:
        """Whoever a ticket stands for, if the caller presents one, and the head with the tenant that it is for."""
        if caller.scheme != "ticket":
            return caller, head
        try:
            return await self._tickets.redeemed(caller, head, policies)
        except Refused as refusal:
            self._telemetry.auth_attempt(refusal.problem.code)
            raise

    async def _final(self, refusal: Refused, caller: Caller, match: Match | None, policies: Policies) -> Refused | None:
        """The refusal to answer with; `None` if the caller's session has another token by now, known here, to judge by.

        A stale one is renewed for who asks about the session, since a page that was loaded anew can't yet show what a
        write has to, and for who ends it.
        """
        sessions = policies.sessions
        if sessions is None or caller.scheme != "session":
            return refusal
        if caller.known is not None and await sessions.renewed_elsewhere(caller.secret, caller.known):
            return None
        if refusal.problem.code != "token-stale" or match is None or match.route.action not in _OF_THE_SESSION:
            return refusal
        try:
            await sessions.renew(caller.secret)
        except StoreUnavailable:
            return state_unavailable("session")
        except Refused as over:
            return over
        return None

    def _match(self, head: RequestHead, policies: Policies) -> tuple[Match | None, Refused | None]:
        """The route; or why the path can't be routed, to be told once somebody's budget has paid for it."""
        try:
            return (policies.router.match(head.path) if head.path != b"*" else None), None
        except Refused as refusal:
            return None, refusal

    def _unlimited(self, head: RequestHead, match: Match | None, policies: Policies) -> Reply | None:
        """What is answered without spending anybody's budget: preflights, `OPTIONS *` and health."""
        preflight = policies.cors.preflight(head)
        if preflight is not None:
            return preflight
        if head.path == b"*":
            return Reply(status=204, headers=(ALLOW,))
        if match is not None and match.route.unlimited:
            self._admission.check_route(head, match)
            return self.pages[match.route.prefix](head)
        return None

    async def _handle(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The route's handler; among all that are under way the request is counted here."""
        if route.kind != "stream" and (route.auth or route.kind == "proxy"):
            self.crowd.enter(exchange, grant, policies.max_concurrent, trace)
        handler = self.handlers.get(route.action) if route.action is not None else None
        if handler is not None:
            reply = await handler(exchange, route, grant, policies, trace)
            return reply.with_headers(NO_REFERRER) if trace.private else reply
        if route.kind == "proxy":
            return await self._proxy.reply_to(exchange, route, grant, policies, trace)
        return self.pages[route.prefix](exchange.head)

    def _standing_for(self, head: RequestHead, trace: Trace) -> Pairs:
        return (*standing_headers(trace), *self.policies.standing(head))


def _inquiry(
    head: RequestHead, match: Match, claims: Claims, caller: Caller, *, policies: Policies, trace: Trace
) -> Inquiry:
    return Inquiry(head=head, route=match.route, claims=claims, caller=caller, policies=policies, trace=trace)
