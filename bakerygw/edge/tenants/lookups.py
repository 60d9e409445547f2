"""What a token leaves out, looked up before it is judged; and what a critical operation has to have confirmed."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from bakerygw.core.claims import Claims, Subscription, email_from, subscription_from
from bakerygw.core.http import Pairs, RequestHead
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.recent import Recent
from bakerygw.core.routing import Route
from bakerygw.core.tenancy import (
    TenantView,
    check_demo,
    check_fresh,
    check_subscription,
    check_tier,
    check_writable,
    confirmed,
    owed_headers,
    with_email,
    with_subscription,
)
from bakerygw.core.values import value
from bakerygw.edge.admission import Caller, Confirmed, check_in_force, state_unavailable
from bakerygw.edge.policies import Policies
from bakerygw.edge.tenants.facts import Facts
from bakerygw.ports import (
    AdmissionState,
    Enquiries,
    LookupFailed,
    LookupTelemetry,
    RevocationStore,
    SharedFacts,
    StoreUnavailable,
    TenantStore,
)

SUBSCRIPTION_PAUSE_S: Final = 2.0
EMAIL_PAUSE_S: Final = 10.0
RETRY_AFTER_LOOKUP_S: Final = 2
RETRY_AFTER_CRITICAL_S: Final = 5
MAX_SEEN: Final = 10_000
"""Incomplete tokens that are not counted again."""

_OURS: Final = ((b"Accept", b"application/json"), (b"User-Agent", b"bakerygw"))


@value
class Inquiry:
    """One request, as far as questions to other services are about it."""

    head: RequestHead
    route: Route
    claims: Claims
    caller: Caller
    policies: Policies
    trace: Trace


class Lookups:
    """Asks other services on behalf of requests; what they said about tenants and users is remembered for minutes."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        enquiries: Enquiries,
        tenants: TenantStore,
        *,
        revocations: RevocationStore,
        shared: SharedFacts | None,
        telemetry: LookupTelemetry,
        now: Callable[[], float],
    ) -> None:
        """Without `shared` each instance asks for itself. `now` gives Unix seconds."""
        self._enquiries, self._tenants, self._revocations = enquiries, tenants, revocations
        self._telemetry, self._now = telemetry, now
        self._seen: Recent[tuple[str, str], bool] = Recent(MAX_SEEN)
        self._subscriptions: Facts[Subscription] = Facts(
            "subscription",
            read=subscription_from,
            pause_s=SUBSCRIPTION_PAUSE_S,
            shared=shared,
            telemetry=telemetry,
            now=now,
        )
        self._emails: Facts[str | None] = Facts(
            "email",
            read=email_from,
            pause_s=EMAIL_PAUSE_S,
            pause_all=True,
            shared=shared,
            telemetry=telemetry,
            now=now,
        )

    def share(self, shared: SharedFacts | None) -> None:
        """From here on have other instances know what is learnt, and learn from them, by this alone."""
        self._subscriptions.shared = self._emails.shared = shared

    async def complete(self, about: Inquiry, view: TenantView, state: AdmissionState) -> TenantView:
        """The view with what this route needs and the token leaves out.

        Raises `Refused` where the subscription can't be had; requests go on without an e-mail address.
        """
        route = about.route
        if view.subscription is None and route.tenant and not route.subscription_exempt:
            view = await self._with_subscription(about, view, state)
        if about.claims.email is None and route.kind == "proxy" and route.service != "auth":
            view = await self._with_email(about, view)
        return view

    async def confirm(self, about: Inquiry, view: TenantView) -> tuple[TenantView, Confirmed]:
        """The view of a critical operation's tenant as the shared state and the tenant service have it at this moment.

        Nothing remembered is good enough. Raises `Refused`, also where either of them can't be asked.
        """
        await self._check_flags(about, view)
        asked_at = self._now()
        try:
            found = await self._ask_subscription(about, view)
        except LookupFailed as failed:
            self._telemetry.looked_up("critical", failed.kind)
            self._tell("critical", failed, about)
            raise _not_confirmed(failed, bearer=_bearer(about) is not None) from None
        self._telemetry.looked_up("critical", "answered")
        self._subscriptions.learn(_subject(about.claims, view.tenant_id), found, asked_at)
        view = confirmed(view, found)
        if not about.route.subscription_exempt:
            check_subscription(found, self._now(), about.policies.grace_days)
            check_tier(view.subscription.tier if view.subscription else None, about.route.min_tier)
        return view, Confirmed(subscription=found, again=partial(self._ask_subscription, about, view))

    async def _with_subscription(self, about: Inquiry, view: TenantView, state: AdmissionState) -> TenantView:
        self._count("subscription" if view.own else "entry", about)
        flags = state.flags.get(view.tenant_id)
        try:
            found = await self._subscriptions.about(
                _subject(about.claims, view.tenant_id),
                who=about.claims.user_id,
                since=flags.changed_at if flags is not None else None,
                ask=partial(self._ask_subscription, about, view),
            )
        except LookupFailed as failed:
            self._tell("subscription", failed, about)
            raise _not_looked_up(failed, bearer=_bearer(about) is not None) from None
        return with_subscription(view, found)

    async def _with_email(self, about: Inquiry, view: TenantView) -> TenantView:
        if _bearer(about) is None:  # no user, but a machine
            return view
        self._count("email", about)
        claims = about.claims
        try:
            email = await self._emails.about(
                _subject(claims, claims.user_id),
                who=claims.user_id,
                since=None,
                ask=partial(
                    self._enquiries.email,
                    about.policies.upstreams,
                    claims.user_id,
                    demo=claims.is_demo,
                    headers=_headers(about, view),
                ),
            )
        except LookupFailed as failed:
            self._tell("email", failed, about)
            return view
        return view if email is None else with_email(view, email)

    async def _ask_subscription(self, about: Inquiry, view: TenantView) -> Subscription:
        return await self._enquiries.subscription(
            about.policies.upstreams, view.tenant_id, demo=about.claims.is_demo, headers=_headers(about, view)
        )

    async def _check_flags(self, about: Inquiry, view: TenantView) -> None:
        """Judge by what the shared state itself has now of token and tenants, not by what is last known."""
        claims = about.claims
        asked: list[Deferred[Any]] = [  # in one turn, so that one call answers
            Deferred.fromCoroutine(self._revocations.revoked(claims.digest)),
            Deferred.fromCoroutine(self._tenants.flags(claims.tenant_id)),
            Deferred.fromCoroutine(self._tenants.flags(view.tenant_id)),
        ]
        try:
            revoked, own, flags = await gatherResults(asked, consumeErrors=True)
        except FirstError as error:
            error.subFailure.trap(StoreUnavailable)
            raise state_unavailable("critical") from None
        check_in_force(claims, revoked)
        check_fresh(claims.iat, own.changed_at)
        check_fresh(claims.iat, flags.changed_at)
        check_demo(about.claims, flags.demo)
        if not about.route.read_only_exempt:
            check_writable(about.head.method, flags.read_only)

    def _count(self, lacks: str, about: Inquiry) -> None:
        """Count a token once; keys of machines are no tokens."""
        seen = lacks, about.claims.digest
        if _bearer(about) is not None and not self._seen.use(seen):
            self._seen.put(seen, True)
            self._telemetry.incomplete_token(lacks)

    def _tell(self, what: str, failed: LookupFailed, about: Inquiry) -> None:
        """Log each question that failed, not each request that it failed for."""
        if failed.told:
            return
        self._log.warn(
            "lookup.failed",
            what=what,
            kind=failed.kind,
            cause=failed.cause,
            tenant_id=about.trace.tenant_id,
            request_id=about.trace.request_id,
        )


def _subject(claims: Claims, name: str) -> str:
    """Whom an answer is about; demo sessions have answers of their own."""
    return ("demo:" if claims.is_demo else "real:") + name


def _bearer(about: Inquiry) -> bytes | None:
    """The access token of the user who asks, of a session the one behind it; machines have none."""
    return about.caller.secret if about.caller.scheme == "bearer" else about.claims.forwarded


def _headers(about: Inquiry, view: TenantView) -> Pairs:
    """Who asks, as services hear it with any request."""
    return (*_OURS, *owed_headers(about.claims, view, _bearer(about), about.trace))


def _not_looked_up(failed: LookupFailed, *, bearer: bool) -> Refused:
    """The answer to a request whose subscription can't be had."""
    if failed.kind == "unknown":
        detail = "No subscription of this tenant is known; subscribe to a plan, then sign in again."
        return refuse("subscription-inactive", detail, reason="no-subscription-known")
    if bearer and failed.kind in ("unauthorized", "forbidden"):
        return _turned_down(failed)
    if not bearer:
        detail = "The tenant's subscription can't be looked up at the moment; try again shortly."
    else:
        detail = (
            "The access token does not tell the tenant's subscription, and it can't be looked up at the moment; "
            "try again shortly, or sign in again for another token."
        )
    return _unavailable(failed, detail, RETRY_AFTER_LOOKUP_S)


def _not_confirmed(failed: LookupFailed, *, bearer: bool) -> Refused:
    """The answer to a critical operation that was not confirmed."""
    if failed.kind == "unknown":
        return refuse("not-found", "The tenant service does not know it; look at the id.", reason="no-tenant")
    if bearer and failed.kind in ("unauthorized", "forbidden"):
        return _turned_down(failed)
    return _unavailable(
        failed,
        "This is done only once the tenant service has confirmed the subscription, which it does not at the moment; "
        "nothing was changed, try again shortly.",
        RETRY_AFTER_CRITICAL_S,
    )


def _turned_down(failed: LookupFailed) -> Refused:
    """What the tenant service itself has against the caller."""
    if failed.kind == "unauthorized":
        detail = "The tenant service does not take this access token any more; refresh it, or sign in again."
        return refuse("token-stale", detail, reason="tenant-service-401")
    detail = "The tenant service does not let this account ask about the tenant; ask its owner for access."
    return refuse("tenant-forbidden", detail, reason="tenant-service-403")


def _unavailable(failed: LookupFailed, detail: str, retry_s: int) -> Refused:
    return Refused(
        Problem(
            code="critical-check-unavailable",
            detail=detail,
            retry_after_s=max(retry_s, failed.retry_after_s or 0),
            reason=f"lookup-{failed.kind}",
        )
    )
