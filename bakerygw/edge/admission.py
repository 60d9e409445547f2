"""The steps between a request's head and its handler, each one decision; `Gateway` puts them in order."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from bakerygw.core.claims import Claims, Subscription
from bakerygw.core.http import WRITING_METHODS, Pairs, RequestHead
from bakerygw.core.key_terms import check_terms
from bakerygw.core.limits import Level, refusing
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
from bakerygw.edge.credentials.keys import MISPLACED, KeyDesk, looks_like_key, revoked_key
from bakerygw.edge.credentials.streams import presented_on
from bakerygw.edge.limits.budgets import buckets_of, budgets_of, limit_refusal
from bakerygw.edge.policies import Policies
from bakerygw.ports import (
    AdmissionAsk,
    AdmissionState,
    AdmissionStore,
    CredentialsUnavailable,
    Scheme,
    StoreUnavailable,
    Telemetry,
    TokenRefused,
)

RETRY_AFTER_STATE_S: Final = 2
RETRY_AFTER_KEYS_S: Final = 5
"""The key set is asked for at longer and longer intervals; a few seconds are between the first of them."""


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
class Confirmed:
    """What the tenant service has said about a critical operation's tenant, just before it is done."""

    subscription: Subscription
    again: Callable[[], Coroutine[Any, Any, Subscription]]
    """Asks once more. Raises `LookupFailed`."""


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
    confirmed: Confirmed | None = None
    """For critical operations."""


NOBODY: Final = Caller(scheme=None, secret=b"", known=None, said=None)
PUBLIC: Final = Grant(claims=None, view=None)


class Admission:
    """The policy steps over the ports. One `Admission` serves all requests."""

    def __init__(self, store: AdmissionStore, telemetry: Telemetry, keys: KeyDesk) -> None:
        self._store, self._telemetry, self._keys = store, telemetry, keys

    def caller_of(self, head: RequestHead, match: Match | None, policies: Policies, trace: Trace) -> Caller:
        """Look at the token, if this route reads it. No decision is taken, so a bad one is `NOBODY` here."""
        if match is not None and not match.route.auth:
            return NOBODY
        values = head.fields.get(b"authorization", ())
        if len(values) == 1 and values[0][:7] == b"Bearer " and (match is None or match.route.kind != "stream"):
            # Nearly every request: what is known was sound in its form when it was verified.
            token = values[0][7:]
            claims = policies.credentials["bearer"].known(token)
            if claims is not None:
                self._telemetry.token_cache(True)
                trace.user_id, trace.tenant_id = claims.user_id, claims.tenant_id
                return Caller(scheme="bearer", secret=token, known=claims, said=claims)
        try:
            scheme, secret = presented_on(head, match, policies)
        except Refused:
            return NOBODY
        if scheme == "ticket":
            return Caller(scheme=scheme, secret=secret, known=None, said=None)
        credentials = policies.credentials[scheme]
        known = credentials.known(secret)
        said = known or credentials.peek(secret)
        if said is not None and said.key is not None and not said.key.admits(head.client):
            known = said = None  # nobody who has found a key spends what its machine has left
        self._telemetry.token_cache(known is not None)
        if known is not None:
            trace.user_id, trace.tenant_id = known.user_id, known.tenant_id
        return Caller(scheme=scheme, secret=secret, known=known, said=said)

    async def ask(
        self, head: RequestHead, match: Match | None, caller: Caller, policies: Policies, *, paid: bool = False
    ) -> AdmissionState:
        """Everything that this request needs of the shared state, in its one round trip; `paid`: but for tokens."""
        known, said = _spender(caller), caller.said
        tenants = _tenants(head, match, said)
        digests = (said.digest,) if said is not None and match is not None else ()
        if known is None:
            buckets = buckets_of(head, match, None, policies, None)
            ask = AdmissionAsk(buckets=buckets, tenants=tenants, digests=digests)
        else:
            effective = tenants[-1] if tenants else None
            if known.tenant_access:
                buckets, effective = budgets_of(head, match, known, policies, effective)
            else:
                buckets = buckets_of(head, match, known, policies, effective)
            if known.is_demo or paid or (match is not None and match.route.action == "limits"):
                ask = AdmissionAsk(
                    buckets=buckets,
                    tenants=tenants,
                    digests=digests,
                    verified=True,
                    limit_of=effective,
                    demo=known.is_demo,
                    peek=paid or (match is not None and match.route.action == "limits"),
                )
            else:  # nearly every request; each argument counts here
                ask = AdmissionAsk(buckets=buckets, tenants=tenants, digests=digests, verified=True, limit_of=effective)
        try:
            return await self._store.admit(ask)
        except StoreUnavailable:
            raise state_unavailable("limits-closed") from None

    def check_limit(self, levels: tuple[Level, ...], caller: Caller, trace: Trace) -> None:
        """Refuse when a bucket is empty; a shadow policy is only noted."""
        for level in levels:
            if not level.allowed:
                trace.exceed(level.rule.name, level.rule.shadow)
        refused = refusing(levels)
        if refused is not None:
            raise limit_refusal(refused, _spender(caller) is not None)

    def check_route(self, head: RequestHead, match: Match | None) -> Match:
        """The match, if there is one and its route takes this method."""
        if match is None:
            raise refuse("not-found", "No service is reached by this path; see /docs for those that are.")
        route = match.route
        if route.methods is not None and head.method not in route.methods:
            allow = ", ".join(sorted(route.methods)).encode("ascii")
            detail = f"Use another method here: {allow.decode('ascii')}."
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
        scheme, secret = caller.scheme, caller.secret
        try:
            if scheme is None:
                scheme, secret = presented_on(head, match, policies)
            claims = await policies.credentials[scheme].verify(secret)
        except TokenRefused as refused:
            self._telemetry.auth_attempt(refused.code)
            if scheme == "key":
                raise self._keys.refused(refused, secret, head) from None
            detail = MISPLACED if looks_like_key(secret) else _TOKEN_DETAILS[refused.code]
            raise refuse(refused.code, detail, reason=refused.reason) from None
        except StoreUnavailable:
            raise state_unavailable("credential") from None
        except CredentialsUnavailable:
            raise _credentials_unavailable() from None
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
            check_in_force(claims, state.revoked.get(claims.digest))
            if claims.key is not None:
                check_terms(claims.key, head, match.route)
            view = _tenant_of(head, match, claims, state, trace)
        except Refused as refusal:
            code = refusal.problem.code
            self._telemetry.auth_attempt(code if code in ("token-stale", "token-revoked") else "ok")
            if claims.key is not None:
                self._keys.turned_away(claims, claims.key, head, refusal.problem)
            raise
        if claims.key is not None:
            self._keys.used(claims, claims.key, head)
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


def _credentials_unavailable() -> Refused:
    """The refusal for a token that may be good, while there is nothing to check it with."""
    return Refused(
        Problem(
            code="state-unavailable",
            detail="Access tokens can't be checked at the moment. Yours may be good: keep it, and try again shortly.",
            retry_after_s=RETRY_AFTER_KEYS_S,
            reason="keys",
        )
    )


def _spender(caller: Caller) -> Claims | None:
    """Whose budget a request spends; `None`: its address's.

    What is said of a key was read when it was good here, so many machines behind one address need not share that's
    budget only because their records are read again.
    """
    return caller.said if caller.known is None and caller.scheme == "key" else caller.known


def check_in_force(claims: Claims, revoked: bool | None) -> None:
    """Refuse what was put out of force. Raises `Refused` token-revoked."""
    if revoked:
        if claims.key is not None:
            raise revoked_key()
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


def _tenants(head: RequestHead, match: Match | None, said: Claims | None) -> tuple[str, ...]:
    """The tenants whose flags may matter: the token's own and, last, the one that the request names, if opened.

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
