"""Operators' calls on what a tenant may ask for: its limit for a time, and how all its limits stand."""

from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Final

from bakerygw.admin.audited import audited
from bakerygw.admin.calls import Call, Table
from bakerygw.admin.fields import bad_field, read_object, text_of, time_of, unread, whole_number
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.limits import (
    MAX_REQUESTS,
    MAX_WINDOW_S,
    Bucket,
    Level,
    LimitRule,
    TenantLimit,
    tenant_rule,
    tenant_subject,
)
from bakerygw.core.times import iso_time
from bakerygw.edge.limits.budgets import limit_row
from bakerygw.edge.limits.crowd import Crowd
from bakerygw.edge.pages.common import json_reply
from bakerygw.edge.policies import Policies
from bakerygw.ports import AdmissionAsk, AdmissionStore, Audit, StoreUnavailable, TenantLimits

MAX_DAYS: Final = 90
MAX_SECONDS: Final = MAX_DAYS * 86_400
MAX_REASON_CHARS: Final = 200
MAX_BY_CHARS: Final = 100


class Standing:
    """How a tenant's limits stand on this instance, looked at without cost."""

    def __init__(
        self, *, store: AdmissionStore, limits: TenantLimits, policies: Callable[[], Policies], crowd: Crowd
    ) -> None:
        self._store, self._limits, self._policies, self._crowd = store, limits, policies, crowd

    async def of(self, tenant_id: str) -> dict[str, object]:
        """Its limit for a time, the stacked limits by tenant, and its requests under way. Raises `StoreUnavailable`."""
        limit, policies = await self._limits.limit(tenant_id), self._policies()
        stacked = {its.rule.name: its for stack in policies.stacks.values() for its in stack if its.rule.by == "tenant"}
        rules = [policy.rule for policy in stacked.values()]
        demo = (await self._look(tenant_id, (), demo=False))[1]
        levels, _ = await self._look(tenant_id, rules, demo=demo)
        rows = [
            {**limit_row(level, "tenant"), "tier": policy.tier, "prefix": policy.prefix, "shadow": policy.rule.shadow}
            for level, policy in zip(levels, stacked.values(), strict=False)
        ]
        shown = _document(limit)
        if shown is not None and len(levels) > len(rules):
            left = limit_row(levels[-1], "tenant")
            shown |= {name: left[name] for name in ("remaining", "reset_seconds")}
        return {
            "for_a_time": shown,
            "stacked": rows,
            "under_way": {"limit": policies.max_concurrent, "now": self._crowd.of(tenant_id)},
        }

    async def _look(self, tenant_id: str, rules: Sequence[LimitRule], *, demo: bool) -> tuple[tuple[Level, ...], bool]:
        """How the buckets stand, the one of the limit for a time last, and whether the tenant is a demo tenant."""
        subject = tenant_subject(tenant_id, demo=demo)
        ask = AdmissionAsk(
            buckets=tuple(Bucket(key=f"{rule.name}:{subject}", rule=rule) for rule in rules),
            tenants=(tenant_id,),
            limit_of=tenant_id,
            demo=demo,
            peek=True,
        )
        state = await self._store.admit(ask)
        flags = state.flags[tenant_id]
        return state.levels, flags is not None and flags.demo


class TenantLimitCalls:
    """The calls under `/api/tenants/{id}/limits`; each change is audited, and answered with the new state.

    `now` is Unix seconds. Every call raises `Refused`: bad-request, or state-unavailable if the store does not answer.
    """

    def __init__(self, *, limits: TenantLimits, standing: Standing, now: Callable[[], float], audit: Audit) -> None:
        self._limits, self._standing, self._now, self._audit = limits, standing, now, audit

    def table(self) -> Table:
        """These calls, for `AdminApp`."""
        wanted = '{"requests", "window_seconds", "until" or "for_seconds", "shadow", "reason", "by"}'
        return {
            "/api/tenants/{id}/limits": {
                "GET": Call(says="A tenant's limits and what is left of them.", handler=self.show),
                "PUT": Call(says=f"Limit all its requests together for a time: {wanted}.", handler=self.limit),
                "DELETE": Call(says="End the limit for a time.", handler=self.release),
            },
        }

    async def show(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """How the tenant's limits stand."""
        try:
            return json_reply({"tenant_id": tenant_id, **await self._standing.of(tenant_id)})
        except StoreUnavailable as error:
            raise unread(error, "The tenant's limits could not be read.") from error

    async def limit(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """Put the tenant under a limit for a time, replacing an earlier one."""
        wanted = self._parse(body)
        before = await self._now_in_force(tenant_id)
        change = self._limits.set_limit(tenant_id, wanted)
        return await self._change("admin.tenant.limit.set", head, tenant_id, before=before, after=wanted, change=change)

    async def release(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """End the limit for a time; nothing to end is no error."""
        read_object(body, ())
        before = await self._now_in_force(tenant_id)
        change = self._limits.clear_limit(tenant_id)
        return await self._change(
            "admin.tenant.limit.cleared", head, tenant_id, before=before, after=None, change=change
        )

    async def _now_in_force(self, tenant_id: str) -> TenantLimit | None:
        try:
            return await self._limits.limit(tenant_id)
        except StoreUnavailable as error:
            raise unread(error, "The tenant's limit could not be read, and nothing was changed.") from error

    async def _change(
        self,
        event: str,
        head: RequestHead,
        tenant_id: str,
        *,
        before: TenantLimit | None,
        after: TenantLimit | None,
        change: Awaitable[None],
    ) -> Reply:
        """Carry out one change and audit it."""
        told_before, told_after = _document(before), _document(after)
        with audited(self._audit, event, head, self._now, tenant_id=tenant_id, before=told_before, after=told_after):
            await change
        return json_reply({"tenant_id": tenant_id, "for_a_time": _document(after)})

    def _parse(self, body: bytes) -> TenantLimit:
        known = ("requests", "window_seconds", "until", "for_seconds", "shadow", "reason", "by")
        members = read_object(body, known)
        shadow = members.get("shadow", False)
        if not isinstance(shadow, bool):
            bad_field("shadow", "must be true or false")
        rule = tenant_rule(
            whole_number(members.get("requests"), "requests", 1, MAX_REQUESTS),
            whole_number(members.get("window_seconds"), "window_seconds", 1, MAX_WINDOW_S),
            shadow=shadow,
            until=self._until(members),
        )
        return TenantLimit(
            rule=rule,
            reason=text_of(members, "reason", MAX_REASON_CHARS),
            since=iso_time(self._now()),
            by=text_of(members, "by", MAX_BY_CHARS) or "admin",
        )

    def _until(self, members: dict[str, object]) -> float:
        """The end, a whole second, as it is stored."""
        now, until = self._now(), time_of(members, "until")
        if (until is None) == (members.get("for_seconds") is None):
            bad_field("until", f"or for_seconds, one of them, must say when the limit ends, in at most {MAX_DAYS} days")
        if until is None:
            return float(ceil(now + whole_number(members.get("for_seconds"), "for_seconds", 1, MAX_SECONDS)))
        ends = float(ceil(until.timestamp()))
        if not now < ends <= now + MAX_SECONDS + 1:
            bad_field("until", f"must lie in the future, at most {MAX_DAYS} days ahead")
        return ends


def _document(limit: TenantLimit | None) -> dict[str, object] | None:
    if limit is None:
        return None
    rule = limit.rule
    return {
        "requests": rule.requests,
        "window_seconds": rule.window_s,
        "shadow": rule.shadow,
        "until": iso_time(rule.until),
        "since": limit.since,
        "by": limit.by,
        "reason": limit.reason,
    }
