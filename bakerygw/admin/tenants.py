"""Operators' calls on one tenant: its flags, its hold, and the change of its subscription."""

import json
import unicodedata
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Final, NoReturn

from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.edge.healthpages import iso_time, json_reply
from bakerygw.ports import StoreUnavailable, TenantStore

MAX_REASON_CHARS: Final = 500
MAX_BY_CHARS: Final = 200
RETRY_AFTER_S: Final = 1
UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that have no place in one line of text: controls, lone surrogates, line ends."""

Audit = Callable[..., None]
"""`audit(event, **fields)`: writes one audit event."""


class TenantCalls:
    """The calls under `/api/tenants/{id}`; each changes the shared state, is audited, and answers with the new state.

    `now` is Unix seconds. Every call raises `Refused`: bad-request, or state-unavailable if the store does not answer.
    """

    def __init__(self, *, tenants: TenantStore, now: Callable[[], float], audit: Audit) -> None:
        self._tenants, self._now, self._audit = tenants, now, audit

    async def show(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """The tenant's flags."""
        return json_reply(_document(tenant_id, await self._flags(tenant_id)))

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

    async def _flags(self, tenant_id: str) -> TenantFlags:
        try:
            return await self._tenants.flags(tenant_id)
        except StoreUnavailable as error:
            raise _state_unavailable("The tenant's flags could not be read, and nothing was changed.") from error

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
        """Carry out one change and audit it; one that was not confirmed may have happened, so it is audited too."""
        outcome = "unconfirmed"
        try:
            await change
            outcome = "done"
        except StoreUnavailable as error:
            raise _state_unavailable(
                "The store did not confirm the change; look at the tenant, or repeat it."
            ) from error
        finally:
            self._audit(
                event,
                who="admin",
                client=head.client,
                when=iso_time(self._now()),
                tenant_id=tenant_id,
                before=_flags_document(before),
                after=_flags_document(after),
                outcome=outcome,
            )
        return json_reply(_document(tenant_id, after))

    def _parse_hold(self, body: bytes) -> ReadOnly:
        members = read_object(body, ("reason", "until", "by"))
        return ReadOnly(
            reason=_text(members, "reason", MAX_REASON_CHARS),
            until=self._until(members),
            by=_text(members, "by", MAX_BY_CHARS) or "admin",
        )

    def _until(self, members: dict[str, object]) -> str | None:
        raw = _text(members, "until", 40)
        if raw is None:
            return None
        until = _parse_time(raw)
        if until is None:
            _bad("until", "must be an ISO 8601 time with an offset, e.g. 2030-01-31T18:00:00Z")
        if until.timestamp() <= self._now():
            _bad("until", "must lie in the future")
        return until.isoformat().replace("+00:00", "Z")


def read_object(body: bytes, fields: Collection[str]) -> dict[str, object]:
    """The members of a JSON object (RFC 8259), or none of an empty body. Raises `Refused` bad-request.

    Members not in `fields` and repeated members are refused.
    """
    if not body:
        return {}
    try:
        document = json.loads(body.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise refuse("bad-request", "The body must be one JSON object in UTF-8.", reason="admin-json") from error
    if not isinstance(document, dict):
        raise refuse("bad-request", "The body must be a JSON object.", reason="admin-json")
    for name in document:
        if name not in fields:
            allowed = ", ".join(fields) or "none"
            _bad(name, f"is not known here; known: {allowed}")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated member")
    return members


def _text(members: dict[str, object], name: str, max_chars: int) -> str | None:
    """One line of text; `None` if it is missing, null or empty."""
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        _bad(name, "must be text")
    if len(value) > max_chars:
        _bad(name, f"must have at most {max_chars} characters")
    if any(unicodedata.category(char) in UNPRINTABLE for char in value):
        _bad(name, "must be one line of printable text")
    return value.strip() or None


def _parse_time(text: str) -> datetime | None:
    """ISO 8601 with an offset, in UTC; without one it would mean another moment at every reader."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.utcoffset() is not None else None
    except (ValueError, OverflowError):
        return None


def _bad(field: str, fault: str) -> NoReturn:
    shown = "".join(char if unicodedata.category(char) not in UNPRINTABLE else "?" for char in field[:64])
    raise refuse("bad-request", f"{shown} {fault}.", reason="admin-field", field=shown)


def _state_unavailable(detail: str) -> Refused:
    return Refused(Problem(code="state-unavailable", detail=detail, retry_after_s=RETRY_AFTER_S))


def _flags_document(flags: TenantFlags) -> dict[str, object]:
    return {
        "read_only": asdict(flags.read_only) if flags.read_only else None,
        "subscription_changed_at": iso_time(flags.changed_at),
        "demo": flags.demo,
    }


def _document(tenant_id: str, flags: TenantFlags) -> dict[str, object]:
    return {"tenant_id": tenant_id, **_flags_document(flags)}
