"""Which tenant a request is for, and what that tenant may do now. Values in, decision out."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from math import ceil, inf
from typing import Final
from urllib.parse import quote

from bakerygw.core.claims import MAX_UNIX_S, TIERS, Claims, Subscription, TenantAccess, is_id
from bakerygw.core.http import WRITING_METHODS, Pairs
from bakerygw.core.limits import TenantLimit
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.values import value

GRACE_HEADER: Final = b"X-Subscription-Grace"
DAY_S: Final = 86_400
CARRYING: Final = ("active", "trialing", "past_due")
"""Statuses of a subscription that let requests pass, for a time."""

# Visible ASCII but "%", so that what was escaped can be told from what was sent so.
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnly:
    """Why, since when, until when and by whom a tenant is on hold; all optional, ISO 8601 where times."""

    reason: str | None = None
    since: str | None = None
    until: str | None = None
    by: str | None = None


@value
class TenantFlags:
    """What the shared state says about one tenant."""

    changed_at: float | None = None
    """Unix seconds at which its subscription last changed."""
    read_only: ReadOnly | None = None
    demo: bool = False
    limit: TenantLimit | None = None
    """What all its requests together are limited to for a time."""


@value
class TenantView:
    """The tenant that a request is for, as its user may see it."""

    tenant_id: str
    role: str | None
    """The user's role in this tenant."""
    subscription: Subscription | None
    """This tenant's; `None` where the token does not tell it whole, until it has been looked up."""
    own: bool
    """It is the token's own tenant, not one of `tenant_access`."""
    entry_tier: str | None = None
    """The tier that the entry of `tenant_access` gives, whatever is looked up."""
    looked_up: bool = False
    """The subscription is what the tenant service said, not what the token says."""
    email: str | None = None
    """The user's, where it was looked up because the token has none."""


def effective_tenant(claims: Claims, path_tenant: str | None, header_values: tuple[bytes, ...]) -> TenantView:
    """The tenant named by the path, else by `X-Tenant-ID`, else the token's own, if the token opens it.

    `path_tenant` is the raw path segment, `header_values` every value of the field (and of anything read like it).
    Raises `Refused`: bad-request (not an id), tenant-ambiguous (two that differ), demo-isolation (a demo token
    outside its own tenant), tenant-forbidden. For the token's own tenant the token's own claims hold, even if
    `tenant_access` names it too.
    """
    tenant_id = _named(path_tenant, header_values) if header_values or path_tenant is not None else claims.tenant_id
    if tenant_id == claims.tenant_id:
        return TenantView(tenant_id=tenant_id, role=claims.role, subscription=claims.subscription, own=True)
    if claims.is_demo:
        detail = "A demo session reaches only its own demo bakery; sign in with an account to reach others."
        raise refuse("demo-isolation", detail, reason="demo-token-elsewhere")
    for entry in claims.tenant_access:
        if entry.tenant_id == tenant_id:
            return TenantView(
                tenant_id=tenant_id,
                role=entry.role,
                subscription=_entry_subscription(entry),
                own=False,
                entry_tier=entry.tier,
            )
    if claims.key is not None:
        raise refuse("tenant-forbidden", "This API key is for another tenant; have an operator create one for this.")
    detail = "This account has no access to that tenant; ask its owner for access, then sign in again."
    raise refuse("tenant-forbidden", detail)


def with_subscription(view: TenantView, found: Subscription) -> TenantView:
    """The view with a subscription that was looked up; the tier that an entry of the token gives stays in force."""
    if view.entry_tier is not None and view.entry_tier != found.tier:
        found = Subscription(tier=view.entry_tier, status=found.status, valid_until=found.valid_until)
    return replace(view, subscription=found, looked_up=True)


def with_email(view: TenantView, email: str) -> TenantView:
    """The view with the user's e-mail address, which the token leaves out."""
    return replace(view, email=email)


def confirmed(view: TenantView, found: Subscription) -> TenantView:
    """The view, once the tenant service has said what the subscription is at this moment.

    What was only looked up gives way to it; what the token says must agree. Raises `Refused` token-stale.
    """
    told = view.subscription
    if told is None or view.looked_up:
        if view.entry_tier is not None and view.entry_tier != found.tier:
            raise _contradicted()
        return with_subscription(view, found)
    if (told.tier, told.status) != (found.tier, found.status):
        raise _contradicted()
    return view


def check_demo(claims: Claims, flags_demo: bool) -> None:
    """Keep ordinary tokens out of tenants marked as demo. Raises `Refused` demo-isolation."""
    if flags_demo and not claims.is_demo:
        detail = "This is a demo tenant; start a demo session to use it."
        raise refuse("demo-isolation", detail, reason="ordinary-token-in-demo")


def is_stale(iat: float, changed_at: float | None) -> bool:
    """Whether a token was issued before the tenant's subscription last changed; both in Unix seconds.

    The change counts as of the next whole second, because `iat` is commonly cut down to one.
    """
    return changed_at is not None and iat < ceil(changed_at)


def check_fresh(iat: float, changed_at: float | None) -> None:
    """Refuse tokens issued before the tenant's subscription last changed. Raises `Refused` token-stale."""
    if is_stale(iat, changed_at):
        detail = "The tenant's subscription has changed since this token was issued; refresh the token."
        raise refuse("token-stale", detail)


def check_subscription(subscription: Subscription | None, now: float, grace_days: float) -> str | None:
    """Whether the subscription carries a request now: `None`, or when in grace the ISO 8601 end of the grace period.

    `active` and `trialing` pass until `valid_until` and then in grace, `past_due` is in grace throughout.
    `now` in Unix seconds. Raises `Refused`: subscription-expired after the grace period; subscription-inactive for
    any other status, without a subscription, and without `valid_until`, since no end was ever agreed.
    """
    if subscription is None:
        detail = "The access token carries no subscription; subscribe to a plan, then sign in again."
        raise refuse("subscription-inactive", detail, reason="no-subscription-claim")
    if subscription.status not in CARRYING:
        detail = f"The subscription is {subscription.status!r}, which opens nothing; renew it, then sign in again."
        raise _inactive(subscription, detail, "status")
    if subscription.valid_until is None:
        detail = "The subscription does not say until when it is valid; renew it, then sign in again."
        raise _inactive(subscription, detail, "no-valid-until")
    if now < subscription.valid_until and subscription.status != "past_due":
        return None
    grace_until = subscription.valid_until + grace_days * DAY_S
    if now < grace_until:
        return _iso(grace_until)
    ended, grace_ended = _iso(subscription.valid_until), _iso(grace_until)
    raise refuse(
        "subscription-expired",
        f"The subscription ended {ended} and its grace period {grace_ended}; renew it, then sign in again.",
        subscription_status=subscription.status,
        tier=subscription.tier,
        valid_until=ended,
        grace_until=grace_ended,
    )


def carried_until(subscription: Subscription | None, grace_days: float) -> float:
    """Until when `check_subscription` passes a subscription that it passes now, in Unix seconds; infinite for none."""
    if subscription is None or subscription.valid_until is None:
        return inf
    return subscription.valid_until + grace_days * DAY_S


def check_tier(tier: str | None, min_tier: str | None) -> None:
    """Refuse a tier below the route's (starter < professional < enterprise). Raises `Refused` tier-required."""
    if min_tier is None or TIERS.get(tier or "", 0) >= TIERS[min_tier]:
        return
    has = f"the tenant has {tier}" if tier is not None else "the tenant has none"
    higher = "" if TIERS[min_tier] == max(TIERS.values()) else " or a higher one"
    detail = f"This needs the {min_tier} tier{higher}, and {has}; upgrade the subscription, then refresh the token."
    raise refuse("tier-required", detail, required_tier=min_tier, current_tier=tier)


def check_writable(method: str, read_only: ReadOnly | None) -> None:
    """Refuse writing methods while the tenant is on hold. Raises `Refused` tenant-read-only."""
    if read_only is None or method not in WRITING_METHODS:
        return
    told = {
        "read_only_reason": read_only.reason,
        "read_only_since": read_only.since,
        "read_only_until": read_only.until,
    }
    members: dict[str, object] = {name: value for name, value in told.items() if value is not None}
    until = f"after {read_only.until}" if read_only.until else "later"
    detail = f"The tenant is read-only for the time being: reading works, try to write again {until}."
    raise Refused(Problem(code="tenant-read-only", detail=detail, members=members))


def identity_headers(claims: Claims, view: TenantView | None) -> Pairs:
    """Who asks and for which tenant, as the services read it; only what is known, always visible ASCII.

    What is not visible ASCII in an e-mail address, and `%`, is percent-encoded (RFC 3986 2.1, UTF-8). With `view`
    None, for routes without a tenant, nothing about a tenant is said.
    """
    pairs = [(b"X-User-Id", claims.user_id.encode())]
    if claims.email is not None:
        pairs.append((b"X-User-Email", _visible(claims.email)))
    elif view is not None and view.email is not None:
        pairs.append((b"X-User-Email", _visible(view.email)))
    if view is not None:
        if view.role is not None:
            pairs.append((b"X-User-Role", view.role.encode()))
        pairs.append((b"X-Tenant-Id", view.tenant_id.encode()))
        if view.subscription is not None:
            pairs.append((b"X-Subscription-Tier", view.subscription.tier.encode()))
            pairs.append((b"X-Subscription-Status", view.subscription.status.encode()))
    pairs.append((b"X-Is-Demo", b"true" if claims.is_demo else b"false"))
    if claims.is_demo and claims.demo_session_id is not None:
        pairs.append((b"X-Demo-Session-Id", claims.demo_session_id.encode()))
    return tuple(pairs)


def owed_headers(claims: Claims | None, view: TenantView | None, bearer: bytes | None, trace: Trace) -> Pairs:
    """All that the gateway itself tells a service about a request: who asks, by which access token, and its ids.

    `bearer` is a token that the client has not sent to the service itself; of `claims` None nothing is known.
    """
    told = ((b"X-Request-ID", trace.request_id.encode("ascii")), (b"traceparent", trace.traceparent))
    if claims is None:
        return told
    who = (*identity_headers(claims, view), *told)
    return who if bearer is None else ((b"Authorization", b"Bearer " + bearer), *who)


@lru_cache(4096)
def _visible(text: str) -> bytes:
    """`text` in visible ASCII, all else and `%` percent-encoded."""
    return quote(text, safe=_VISIBLE).encode()


def _named(path_tenant: str | None, header_values: tuple[bytes, ...]) -> str:
    """The one tenant that path and header name."""
    # Latin-1 so that every byte survives to be refused by the pattern.
    names = [value.decode("latin-1") for value in header_values]
    if path_tenant is not None:
        names.insert(0, path_tenant)
    if not all(map(is_id, names)):
        raise refuse("bad-request", "Send one id, of 1 to 64 letters, digits, '.', '_' or '-'.", reason="tenant-id")
    if len(set(names)) > 1:
        raise refuse(
            "tenant-ambiguous",
            "The request names different tenants; name one only: path, X-Tenant-ID, tenant_id or ticket.",
        )
    return names[0]


def _entry_subscription(entry: TenantAccess) -> Subscription | None:
    """The subscription of a tenant other than the token's own, if its entry tells all of it.

    What is missing is not taken from the token's own tenant: what that has paid for opens nothing elsewhere. A status
    that lets nothing pass is enough by itself.
    """
    if entry.status is not None and entry.status not in CARRYING:
        return Subscription(tier=entry.tier or "starter", status=entry.status, valid_until=entry.valid_until)
    if entry.tier is None or entry.status is None or entry.valid_until is None:
        return None
    return Subscription(tier=entry.tier, status=entry.status, valid_until=entry.valid_until)


def _contradicted() -> Refused:
    detail = (
        "The tenant's subscription is no longer what this access token says, and nothing was changed; "
        "refresh the token, then repeat this."
    )
    return refuse("token-stale", detail, reason="contradicted")


def _inactive(subscription: Subscription, detail: str, reason: str) -> Refused:
    members: dict[str, object] = {"subscription_status": subscription.status, "tier": subscription.tier}
    if subscription.valid_until is not None:
        members["valid_until"] = _iso(subscription.valid_until)
    return Refused(Problem(code="subscription-inactive", detail=detail, reason=reason, members=members))


def _iso(unix_s: float) -> str:
    """UTC to the second, e.g. 2026-01-07T23:59:59Z."""
    moment = datetime.fromtimestamp(min(unix_s, MAX_UNIX_S), UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
