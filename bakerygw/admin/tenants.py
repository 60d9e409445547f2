"""Operators' calls on one tenant: its flags, its hold, and the change of its subscription."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import ClassVar, Final

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from bakerygw.admin.audited import audited
from bakerygw.admin.calls import Call, Table
from bakerygw.admin.fields import bad_field, read_object, text_of, time_of, unread
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.core.times import iso_time
from bakerygw.edge.pages.common import json_reply
from bakerygw.ports import Audit, Signals, StoreUnavailable, TenantStore

MAX_REASON_CHARS: Final = 500
MAX_BY_CHARS: Final = 200
FLAGS: Final = ("read_only", "subscription_changed_at", "demo")
"""Members that tell a tenant's flags."""
AWAY: Final = "The shared state did not answer; ask again."

Section = Callable[[str], Awaitable[object]]
"""What a tenant's page has to tell besides its flags, as JSON types; may raise `StoreUnavailable`."""


class TenantCalls:
    """The calls under `/api/tenants/{id}`; each changes the shared state, is audited, and answers with the new state.

    `now` is Unix seconds. Every call raises `Refused`: bad-request, or state-unavailable if the store does not answer.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        *,
        tenants: TenantStore,
        now: Callable[[], float],
        audit: Audit,
        signals: Signals,
        cut: Callable[[str], int],
        sections: Mapping[str, Section],
    ) -> None:
        """`cut` ends what is open for a tenant on this instance and tells how much that was; `sections` are further
        members of a tenant's page."""
        self._tenants, self._now, self._audit = tenants, now, audit
        self._signals, self._cut, self._sections = signals, cut, sections

    def table(self) -> Table:
        """These calls, for `AdminApp`."""
        return {
            "/api/tenants/{id}": {
                "GET": Call(says="A tenant: its flags, and what happened to it here.", handler=self.show)
            },
            "/api/tenants/{id}/read-only": {
                "PUT": Call(says='Put on hold: {"reason", "until", "by"}, each optional.', handler=self.hold),
                "DELETE": Call(says="End the hold.", handler=self.release),
            },
            "/api/tenants/{id}/subscription-changed": {
                "POST": Call(says="Make all tokens issued so far stale.", handler=self.subscription_changed),
            },
            "/api/tenants/{id}/disconnect": {
                "POST": Call(says="End its streams and requests, on all instances.", handler=self.disconnect),
            },
        }

    async def show(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """The tenant's flags and all sections; what cannot be told says so in its own place."""
        try:
            document = _document(tenant_id, await self._tenants.flags(tenant_id))
        except StoreUnavailable as error:
            why = unread(error, AWAY).problem.detail
            document = {"tenant_id": tenant_id, **{name: {"unavailable": why} for name in FLAGS}}
        for name, section in self._sections.items():
            document[name] = await self._section(name, section, tenant_id)
        return json_reply(document)

    async def _section(self, name: str, section: Section, tenant_id: str) -> object:
        try:
            return await section(tenant_id)
        except CancelledError:
            raise
        except StoreUnavailable:
            return {"unavailable": AWAY}
        except Exception:
            self._log.failure("admin.section_failed", section=name)
            return {"unavailable": "This could not be told; the log says why."}

    async def hold(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """Make the tenant read-only. A hold that replaces another keeps its `since`."""
        wanted = self._parse_hold(body)
        before = await self._flags(tenant_id)
        since = before.read_only.since if before.read_only else None
        read_only = replace(wanted, since=since or iso_time(self._now()))
        after = replace(before, read_only=read_only)
        change = self._tenants.set_read_only(tenant_id, read_only)
        return await self._change(
            "admin.tenant.read_only.set", head, tenant_id, before=before, after=after, change=change
        )

    async def release(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """End the tenant's hold; nothing to end is no error."""
        read_object(body, ())
        before = await self._flags(tenant_id)
        change = self._tenants.clear_read_only(tenant_id)
        after = replace(before, read_only=None)
        return await self._change(
            "admin.tenant.read_only.cleared", head, tenant_id, before=before, after=after, change=change
        )

    async def subscription_changed(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """Make every token of the tenant that was issued until this moment stale."""
        read_object(body, ())
        before = await self._flags(tenant_id)
        at = self._now()
        change = self._tenants.subscription_changed(tenant_id, at)
        after = replace(before, changed_at=at)
        return await self._change(
            "admin.tenant.subscription_changed", head, tenant_id, before=before, after=after, change=change
        )

    async def disconnect(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """End the tenant's open streams and requests, here and on every instance that listens."""
        read_object(body, ())
        ended, instances = self._cut(tenant_id), 0
        with audited(
            self._audit,
            "admin.tenant.disconnected",
            head,
            self._now,
            unconfirmed=f"{ended} ended on this instance; the others could not be told. Repeat the call.",
            tenant_id=tenant_id,
            before={"open": ended},
            after={"open": 0},
            instances=instances,
        ) as told:
            told["instances"] = instances = await self._signals.send("disconnect", tenant_id)
        return json_reply({"tenant_id": tenant_id, "ended": ended, "instances": instances}, status=202)

    async def _flags(self, tenant_id: str) -> TenantFlags:
        try:
            return await self._tenants.flags(tenant_id)
        except StoreUnavailable as error:
            raise unread(error, "The tenant's flags could not be read, and nothing was changed.") from error

    async def _change(
        self,
        event: str,
        head: RequestHead,
        tenant_id: str,
        *,
        before: TenantFlags,
        after: TenantFlags,
        change: Awaitable[None],
    ) -> Reply:
        """Carry out one change and audit it."""
        told_before, told_after = _flags_document(before), _flags_document(after)
        with audited(self._audit, event, head, self._now, tenant_id=tenant_id, before=told_before, after=told_after):
            await change
        return json_reply(_document(tenant_id, after))

    def _parse_hold(self, body: bytes) -> ReadOnly:
        members = read_object(body, ("reason", "until", "by"))
        return ReadOnly(
            reason=text_of(members, "reason", MAX_REASON_CHARS),
            until=self._until(members),
            by=text_of(members, "by", MAX_BY_CHARS) or "admin",
        )

    def _until(self, members: dict[str, object]) -> str | None:
        until = time_of(members, "until")
        if until is None:
            return None
        if until.timestamp() <= self._now():
            bad_field("until", "must lie in the future")
        return until.isoformat().replace("+00:00", "Z")


def _flags_document(flags: TenantFlags) -> dict[str, object]:
    return {
        "read_only": asdict(flags.read_only) if flags.read_only else None,
        "subscription_changed_at": iso_time(flags.changed_at),
        "demo": flags.demo,
    }


def _document(tenant_id: str, flags: TenantFlags) -> dict[str, object]:
    return {"tenant_id": tenant_id, **_flags_document(flags)}
