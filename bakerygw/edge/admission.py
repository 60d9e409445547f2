"""The steps between a request's head and its handler, each one decision; `Gateway` puts them in order."""

from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.heads import client_subject
from bakerygw.core.http import WRITING_METHODS, Pairs, RequestHead
from bakerygw.core.limits import Bucket, Level, refusing, whole_seconds
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.routing import Match, Route
from bakerygw.core.tenancy import (
    GRACE_HEADER,
    TenantView,
    check_demo,
    check_fresh,
    check_subscription,
    check_tier,
    check_writable,
    effective_tenant,
)
from bakerygw.core.values import value
from bakerygw.edge.credentials import presented
from bakerygw.edge.policies import Policies
from bakerygw.ports import (
    AdmissionAsk,
    AdmissionState,
    AdmissionStore,
    Scheme,
    StoreUnavailable,
    Telemetry,
    TokenRefused,
)

RETRY_AFTER_STATE_S: Final = 2


@value
class Caller:
    """Who seems to ask, before anything is decided."""

    scheme: Scheme | None
    """`None` if nothing acceptable in form was presented."""
    secret: bytes
    """What was presented."""
    known: Claims | None
    """Claims that this instance has verified before."""
    said: Claims | None
    """The same, or what an unverified token says of itself: fit for choosing what to read, nothing else."""


@value
class Grant:
    """A request that may go to its handler."""

    claims: Claims | None
    """`None` on public routes."""
    view: TenantView | None
    """`None` where the route is not about a tenant."""
    levels: tuple[Level, ...] = ()
    """How the caller's limits stand."""
    caller: Caller | None = None
    """How the caller has identified itself; `None` on public routes."""


NOBODY: Final = Caller(scheme=None, secret=b"", known=None, said=None)
PUBLIC: Final = Grant(claims=None, view=None)


class Admission:
    """The policy steps over the ports. One `Admission` serves all requests."""

    def __init__(self, store: AdmissionStore, telemetry: Telemetry) -> None:
        self._store, self._telemetry = store, telemetry

    def caller_of(self, head: RequestHead, match: Match | None, policies: Policies, trace: Trace) -> Caller:
        """Look at the token, if this route reads it. No decision is taken, so a bad one is `NOBODY` here."""
        if match is not None and not match.route.auth:
            return NOBODY
        try:
            scheme, secret = presented(head, policies.credentials)
        except Refused:
            return NOBODY
        credentials = policies.credentials[scheme]
        known = credentials.known(secret)
        self._telemetry.token_cache(known is not None)
        if known is not None:
            trace.user_id, trace.tenant_id = known.user_id, known.tenant_id
        return Caller(scheme=scheme, secret=secret, known=known, said=known or credentials.peek(secret))

    async def ask(self, head: RequestHead, match: Match | None, caller: Caller, policies: Policies) -> AdmissionState:
        """Everything that this request needs of the shared state, in its one round trip."""
        try:
            return await self._store.admit(
                AdmissionAsk(
                    buckets=_buckets(head, match, caller, policies),
                    tenants=_tenants(head, match, caller.said),
                    digests=(caller.said.digest,) if caller.said is not None and match is not None else (),
                    verified=caller.known is not None,
                )
            )
        except StoreUnavailable:
            raise state_unavailable("limits-closed") from None

    def check_limit(self, levels: tuple[Level, ...], trace: Trace) -> None:
        """Refuse when a bucket is empty; a shadow policy is only noted."""
        for level in levels:
            if not level.allowed:
                trace.limited = level.rule.name
        refused = refusing(levels)
        if refused is not None:
            retry_s = whole_seconds(refused.retry_us)
            rule = refused.rule
            raise Refused(
                Problem(
                    code="rate-limited",
                    detail=f"At most {rule.requests} requests in {rule.window_s} seconds; wait {retry_s} seconds.",
                    members={"policy": rule.name, "limit": rule.requests, "window_seconds": rule.window_s},
                    retry_after_s=retry_s,
                )
            )

    def check_route(self, head: RequestHead, match: Match | None) -> Match:
        """The match, if there is one and its route takes this method."""
        if match is None:
            raise refuse("not-found", "No service is reached by this path; see /docs for those that are.")
        route = match.route
        if route.methods is not None and head.method not in route.methods:
            allow = ", ".join(sorted(route.methods)).encode("ascii")
            detail = f"This path takes {allow.decode('ascii')}."
            raise Refused(Problem(code="method-not-allowed", detail=detail, headers=((b"Allow", allow),)))
        return match

    async def authenticate(
        self,
        head: RequestHead,
        match: Match,
        caller: Caller,
        state: AdmissionState,
        *,
        policies: Policies,
        trace: Trace,
    ) -> tuple[Claims, AdmissionState]:
        """Claims that hold, of a caller not known yet, and the state with all that is to be known about them.

        Counts the attempt if it fails; else `tenant_of` does, which finds out whether the token is stale.
        """
        try:
            scheme, secret = (caller.scheme, caller.secret) if caller.scheme else presented(head, policies.credentials)
            claims = await policies.credentials[scheme].verify(secret)
        except TokenRefused as refused:
            self._telemetry.auth_attempt(refused.code)
            raise refuse(refused.code, _TOKEN_DETAILS[refused.code], reason=refused.reason) from None
        except StoreUnavailable:
            raise state_unavailable("credential") from None
        except Refused as refusal:
            self._telemetry.auth_attempt(refusal.problem.code)
            raise
        trace.user_id, trace.tenant_id = claims.user_id, claims.tenant_id
        return claims, state if caller.said is not None else await self._about(head, match, claims, state)

    async def _about(self, head: RequestHead, match: Match, claims: Claims, state: AdmissionState) -> AdmissionState:
        """The state with what could not be asked for before it was known who asks."""
        tenants = _tenants(head, match, claims)
        try:
            more = await self._store.admit(AdmissionAsk(tenants=tenants, digests=(claims.digest,), verified=True))
        except StoreUnavailable:
            raise state_unavailable("flags") from None
        return AdmissionState(levels=state.levels, flags=more.flags, revoked=more.revoked)

    def tenant_of(
        self, head: RequestHead, match: Match, claims: Claims, state: AdmissionState, trace: Trace
    ) -> TenantView:
        """The tenant that the request is for: open to this user, not across the demo border, with a token in force.

        Counts the attempt to authenticate: any refusal but that of the token is of somebody who is known.
        """
        try:
            _check_in_force(claims, state)
            view = _tenant_of(head, match, claims, state, trace)
        except Refused as refusal:
            code = refusal.problem.code
            self._telemetry.auth_attempt(code if code in ("token-stale", "token-revoked") else "ok")
            raise
        self._telemetry.auth_attempt("ok")
        return view

    def check_subscription(self, route: Route, view: TenantView, now: float, policies: Policies) -> Pairs:
        """Whether the tenant has paid for this; the end of its grace, if it is in grace, for the answer."""
        if not route.tenant or route.subscription_exempt:
            return ()
        grace_until = check_subscription(view.subscription, now, policies.grace_days)
        check_tier(view.subscription.tier if view.subscription else None, route.min_tier)
        return () if grace_until is None else ((GRACE_HEADER, grace_until.encode("ascii")),)

    def check_writable(self, head: RequestHead, route: Route, view: TenantView, state: AdmissionState) -> None:
        """Refuse writes while the tenant is on hold."""
        flags = state.flags.get(view.tenant_id)
        if flags is not None and route.tenant and not route.read_only_exempt:
            check_writable(head.method, flags.read_only)


_TOKEN_DETAILS: Final = {
    "token-invalid": "The access token is not acceptable; sign in again.",
    "token-expired": "The access token has expired; refresh it or sign in again.",
}


def state_unavailable(reason: str) -> Refused:
    """The refusal for what must not be done without the shared state."""
    return Refused(
        Problem(
            code="state-unavailable",
            detail="This can't be decided while the shared state is away; nothing was changed, try again shortly.",
            retry_after_s=RETRY_AFTER_STATE_S,
            reason=reason,
        )
    )


def _check_in_force(claims: Claims, state: AdmissionState) -> None:
    if state.revoked.get(claims.digest):
        raise refuse("token-revoked", "The access token was put out of force; sign in again.")


def _tenant_of(head: RequestHead, match: Match, claims: Claims, state: AdmissionState, trace: Trace) -> TenantView:
    own_flags = state.flags.get(claims.tenant_id)
    if own_flags is not None:
        check_fresh(claims.iat, own_flags.changed_at)
    if match.route.tenant:
        view = effective_tenant(claims, match.tenant_id, head.fields.get(b"x-tenant-id", ()))
    else:
        view = effective_tenant(claims, None, ())
    trace.tenant_id = view.tenant_id
    if claims.is_demo and head.method in match.route.critical:
        detail = "A demo session may not do this; sign in with an account."
        raise refuse("demo-isolation", detail, reason="critical")
    flags = state.flags.get(view.tenant_id)
    if head.method in WRITING_METHODS:
        if flags is None or own_flags is None:
            raise state_unavailable("flags")
        if state.revoked.get(claims.digest) is None:
            raise state_unavailable("revocation")
    if flags is not None:
        check_fresh(claims.iat, flags.changed_at)
        check_demo(claims, flags.demo)
    return view


def _buckets(head: RequestHead, match: Match | None, caller: Caller, policies: Policies) -> tuple[Bucket, ...]:
    """The buckets to take from: by verified user, else by address, so that nobody spends another's."""
    route = match.route if match is not None else None
    rule = (route.limit if route is not None else None) or policies.general_limit
    known = caller.known
    if known is None:
        subject = "addr:" + client_subject(head.client)
    elif known.is_demo:
        subject = "demo:" + known.user_id
    else:
        subject = "user:" + known.user_id
    general = Bucket(key=f"{rule.name}:{subject}", rule=rule)
    if route is None or not route.auth_limit:
        return (general,)
    strict = policies.auth_limit
    return general, Bucket(key=f"{strict.name}:addr:{client_subject(head.client)}", rule=strict)


def _tenants(head: RequestHead, match: Match | None, said: Claims | None) -> tuple[str, ...]:
    """The tenants whose flags may matter: the token's own and, if it opens that one, the one that the request names.

    Any other named tenant is refused by the token alone, and nobody can have flags read that are not theirs.
    """
    if said is None or match is None:
        return ()
    named = match.tenant_id
    if named is None and match.route.tenant:
        values = head.fields.get(b"x-tenant-id")
        named = values[0].decode("latin-1") if values else None
    if named is None or named == said.tenant_id or all(named != entry.tenant_id for entry in said.tenant_access):
        return (said.tenant_id,)
    return said.tenant_id, named
