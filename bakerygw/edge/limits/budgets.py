"""Whose budgets a request spends, and what callers are told of them."""

from collections.abc import Sequence
from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.heads import client_subject
from bakerygw.core.hierarchy import possible_child
from bakerygw.core.http import RequestHead
from bakerygw.core.limits import Bucket, Level, LimitRule, tenant_subject, whole_seconds
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.routing import Match, Route
from bakerygw.core.stacks import UNROUTED, LimitPolicy, tier_in
from bakerygw.core.times import iso_time
from bakerygw.edge.policies import Policies

_WHOSE: Final = {
    "user": "You may send {n} requests in {w} seconds here",
    "tenant": "All users of this tenant together may send {n} requests in {w} seconds",
    "address": "All requests from your network address together may be {n} in {w} seconds",
}


def buckets_of(
    head: RequestHead, match: Match | None, known: Claims | None, policies: Policies, tenant_id: str | None
) -> tuple[Bucket, ...]:
    """The buckets to take from: by verified user, else by address, so that nobody spends another's.

    `known` are claims that this instance has verified; `tenant_id` is a tenant that they open. The stacked policies
    by user and by tenant hold for callers with both alone.
    """
    route = match.route if match is not None else None
    plain = route is not None and route.limit is None and not route.auth_limit and not policies.stacks
    if plain and known is not None and known.key is None:  # nearly every request
        rule = policies.general_limit
        return (Bucket(key=f"{rule.name}:{_subject(head, known)}", rule=rule),)
    # The one rule of its own that a request is under; the others, one that is only tried too, are stacked upon it.
    rule, tried = policies.general_limit, None
    if route is not None and route.limit is not None:
        if route.limit.shadow:
            tried = route.limit
        else:
            rule = route.limit
    subject = _subject(head, known)
    buckets: tuple[Bucket, ...] = (Bucket(key=f"{rule.name}:{subject}", rule=rule),)
    if known is not None and known.key is not None and known.key.limit is not None:
        # A key's own limit stands for the general one, never for that of a route.
        own = Bucket(key=f"key:{known.key.key_id}", rule=known.key.limit)
        buckets = (own,) if rule is policies.general_limit else (own, *buckets)
    if tried is not None:
        buckets = (*buckets, Bucket(key=f"{tried.name}:{subject}", rule=tried))
    if route is not None and route.auth_limit:
        strict = policies.auth_limit
        buckets = (*buckets, Bucket(key=f"{strict.name}:addr:{client_subject(head.client)}", rule=strict))
    if policies.stacks:
        stack = policies.stacks.get(route.prefix if route is not None else UNROUTED)
        if stack is not None:
            buckets = (*buckets, *_stacked(head, stack, known, tenant_id))
    return buckets


def budgets_of(
    head: RequestHead, match: Match | None, known: Claims, policies: Policies, tenant_id: str | None
) -> tuple[tuple[Bucket, ...], str | None]:
    """The buckets of a verified caller, and the tenant whose limit for a time holds; `tenant_id` as for `buckets_of`.

    Where another tenant is named that may be open by inheritance, none of the token's own tenant: those of the tenant
    itself are taken from once it turns out to be open.
    """
    buckets = buckets_of(head, match, known, policies, tenant_id)
    if not known.tenant_access or tenant_id != known.tenant_id or match is None or not match.route.tenant:
        return buckets, tenant_id
    if possible_child(known, match.tenant_id, head.fields.get(b"x-tenant-id", ())) is None:
        return buckets, tenant_id
    return tuple(bucket for bucket in buckets if bucket.rule.by != "tenant"), None


def tenant_buckets(route: Route, known: Claims, policies: Policies, tenant_id: str) -> tuple[Bucket, ...]:
    """The buckets that all users of a tenant have in common on this route; it is certain that `known` opens it."""
    stack = policies.stacks.get(route.prefix, ()) if policies.stacks else ()
    tier = tier_in(known, tenant_id)
    return tuple(
        Bucket(key=f"{policy.rule.name}:{tenant_subject(tenant_id, demo=known.is_demo)}", rule=policy.rule)
        for policy in stack
        if policy.rule.by == "tenant" and policy.tier in (None, tier)
    )


def _subject(head: RequestHead, known: Claims | None) -> str:
    if known is None:
        return "addr:" + client_subject(head.client)
    if known.key is not None:
        return "key:" + known.key.key_id
    return ("demo:" if known.is_demo else "user:") + known.user_id


def _stacked(
    head: RequestHead, stack: Sequence[LimitPolicy], known: Claims | None, tenant_id: str | None
) -> list[Bucket]:
    """The buckets of further policies; demo sessions have their own of each."""
    demo = "demo-" if known is not None and known.is_demo else ""
    buckets = []
    for policy in stack:
        rule = policy.rule
        if policy.tier is not None and (known is None or policy.tier != tier_in(known, tenant_id or known.tenant_id)):
            continue
        if rule.by == "address":
            subject = f"{demo}addr:{client_subject(head.client)}"
        elif known is None:
            continue  # it is not certain who asks, and nobody may spend another's
        elif rule.by == "tenant":
            subject = tenant_subject(tenant_id or known.tenant_id, demo=known.is_demo)
        else:
            subject = ("demo:" if known.is_demo else "user:") + known.user_id
        buckets.append(Bucket(key=f"{rule.name}:{subject}", rule=rule))
    return buckets


def scope_of(rule: LimitRule, known: bool) -> str:
    """Whose requests this rule counts together: user, tenant or address."""
    return "address" if rule.by == "user" and not known else rule.by


def limit_refusal(level: Level, known: bool) -> Refused:
    """The refusal of a request whose bucket is empty; `known`: its user had been verified."""
    rule, retry_s = level.rule, whole_seconds(level.retry_us)
    scope = scope_of(rule, known)
    said = _WHOSE[scope].format(n=rule.requests, w=rule.window_s)
    members: dict[str, object] = {
        "policy": rule.name,
        "scope": scope,
        "limit": rule.requests,
        "window_seconds": rule.window_s,
    }
    ends = ""
    if rule.until is not None:
        members["until"] = iso_time(rule.until)
        ends = f" This limit holds until {members['until']}."
    wait = "1 second" if retry_s == 1 else f"{retry_s} seconds"
    detail = f"{said} (limit '{rule.name}'); wait {wait}, then repeat the request.{ends}"
    return Refused(Problem(code="rate-limited", detail=detail, members=members, retry_after_s=retry_s))


def limit_row(level: Level, scope: str) -> dict[str, object]:
    """How a limit stands, as JSON types; times in whole seconds."""
    rule = level.rule
    row: dict[str, object] = {
        "policy": rule.name,
        "scope": scope,
        "limit": rule.requests,
        "window_seconds": rule.window_s,
        "remaining": level.remaining,
        "reset_seconds": whole_seconds(level.reset_us),
    }
    if level.retry_us:
        row["retry_after"] = whole_seconds(level.retry_us)
    if rule.until is not None:
        row["until"] = iso_time(rule.until)
    return row
