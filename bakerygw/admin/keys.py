"""Operators' calls on API keys: make one, list them, give one a new secret, revoke it."""

import secrets
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Final
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.admin.audited import audited
from bakerygw.admin.calls import Call, Table
from bakerygw.admin.fields import bad_field, read_object, state_unavailable, text_of, whole_number
from bakerygw.admin.key_fields import MAX_BY_CHARS, new_record
from bakerygw.core.api_keys import ID_BYTES, SECRET_BYTES, ApiKey, is_key_id, key_id_from, sealed, spelt
from bakerygw.core.claims import is_id
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.problem import refuse
from bakerygw.core.routing import Router
from bakerygw.core.times import iso_time
from bakerygw.edge.pages.common import json_reply
from bakerygw.ports import Audit, KeyStore, KeyUnreadable, RevocationStore, StoreUnavailable, TenantStore
from bakerygw.runtime.shield import shielded

PAGE: Final = 100
"""Keys in one answer, unless fewer are asked for."""
MAX_OVERLAP_S: Final = 7 * 86_400
MAX_SECRETS: Final = 5
"""The newest and those before it, which may hold on for a while; with more, the oldest end at once."""
REVOKED_S: Final = 30 * 86_400.0
"""How long a secret is remembered as revoked, beside what its record says."""
REREAD_S: Final = 60
"""Within so many seconds all instances have read a record again, and know when an overlap ends."""
TRIES: Final = 5
"""To revoke a key that others are changing."""


class KeyCalls:
    """The calls under `/api/keys`; each change is audited.

    `router` gives the routes and `pepper` the pepper in force, `clock` does what is to be done later, `now` is Unix
    seconds, and `random` gives so many bytes that nobody can guess. Every call raises `Refused`: bad-request,
    not-found, or state-unavailable if the store does not answer.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        *,
        keys: KeyStore,
        revocations: RevocationStore,
        tenants: TenantStore,
        router: Callable[[], Router],
        pepper: Callable[[], bytes],
        clock: IReactorTime,
        now: Callable[[], float],
        audit: Audit,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._keys, self._revocations, self._tenants = keys, revocations, tenants
        self._pepper = pepper
        self._router, self._clock, self._now, self._audit, self._random = router, clock, now, audit, random

    def table(self) -> Table:
        """These calls, for `AdminApp`."""
        return {
            "/api/keys": {
                "POST": Call(says="Make an API key; its secret is shown this once.", handler=self.create),
                "GET": Call(says="The API keys: ?tenant_id=, ?limit=, ?after=.", handler=self.show_all),
            },
            "/api/keys/{id}": {
                "GET": Call(says="An API key.", handler=self.show),
                "DELETE": Call(says="Revoke it, at once and for good.", handler=self.revoke),
            },
            "/api/keys/{id}/rotate": {
                "POST": Call(
                    says='Give it a new secret; {"overlap_seconds"} keeps the old one for a while.', handler=self.rotate
                ),
            },
        }

    async def create(self, head: RequestHead, body: bytes, _: str) -> Reply:
        """Make a key for one tenant. 201, with the key itself."""
        now = self._now()
        key_id = key_id_from(self._random(ID_BYTES))
        record = new_record(body, key_id, self._router(), now)
        key = spelt(key_id, self._random(SECRET_BYTES))
        record = replace(record, secrets=(sealed(record, key, self._pepper(), now),))
        with self._read_state("The tenant could not be looked up, and nothing was made."):
            flags = await self._tenants.flags(record.tenant_id)
        if flags.demo:
            bad_field("tenant_id", "is a demo tenant, which API keys do not open")
        with self._changing("admin.key.created", head, record.created_by, None, record):
            if not await self._keys.create(record):
                raise StoreUnavailable("id taken")
        return json_reply({"key": key.decode("ascii"), **self._shown(record, None)}, status=201)

    async def show_all(self, head: RequestHead, body: bytes, _: str) -> Reply:
        """A page of keys in the order of their ids; `next` is the id to go on `after`, null on the last page."""
        tenant_id, limit, after = _page_wanted(head)
        with self._read_state("The keys could not be read."):
            ids = [key_id for key_id in await self._keys.ids(tenant_id) if key_id > after]
            page = ids[:limit]
            found = [await self._listed(key_id, tenant_id) for key_id in page]
        keys = [document for document in found if document is not None]
        return json_reply({"keys": keys, "next": page[-1] if len(ids) > limit else None})

    async def show(self, head: RequestHead, body: bytes, key_id: str) -> Reply:
        """One key, without its secret."""
        with self._read_state("The key could not be read."):
            record = await self._found(key_id)
            last_used = await self._keys.last_used(key_id)
        return json_reply(self._shown(record, last_used))

    async def rotate(self, head: RequestHead, body: bytes, key_id: str) -> Reply:
        """Give the key a new secret; those before hold on for `overlap_seconds` at most. 200, with the new key."""
        members = read_object(body, ("overlap_seconds", "by"))
        by = text_of(members, "by", MAX_BY_CHARS) or "admin"
        overlap_s = whole_number(members.get("overlap_seconds", 0), "overlap_seconds", 0, MAX_OVERLAP_S)
        with self._read_state("The key could not be read, and nothing was changed."):
            before = await self._found(key_id)
        now = self._now()
        if (status := _status(before, now)) != "active":
            bad_field("id", f"is of a key that is {status}; make another")
        key = spelt(key_id, self._random(SECRET_BYTES))
        until = now + overlap_s
        old = [
            its if its.until is not None and its.until <= until else replace(its, until=until) for its in before.secrets
        ][: MAX_SECRETS - 1]
        after = replace(before, secrets=(sealed(before, key, self._pepper(), now), *old))
        kept = {its.digest for its in old if its.until is None or its.until > now}
        # An operator who hangs up leaves nothing half done.
        await shielded(self._rotate(head, by, before, after, kept=kept, overlap_s=overlap_s))
        return json_reply({"key": key.decode("ascii"), **self._document(after)})

    async def _rotate(
        self, head: RequestHead, by: str, before: ApiKey, after: ApiKey, *, kept: Set[str], overlap_s: int
    ) -> None:
        with self._changing("admin.key.rotated", head, by, before, after):
            if not await self._keys.change(before, after):
                raise StoreUnavailable("changed meanwhile")
            await self._put_out_of_force(before, kept)
        if 0 < overlap_s <= REREAD_S:
            self._clock.callLater(overlap_s, self._end_overlap, before)

    async def revoke(self, head: RequestHead, body: bytes, key_id: str) -> Reply:
        """Revoke the key and every secret of it, on all instances; to repeat it is no error."""
        by = text_of(read_object(body, ("by",)), "by", MAX_BY_CHARS) or "admin"
        with self._read_state("The key could not be read, and nothing was changed."):
            try:
                before = await self._found(key_id)
            except KeyUnreadable:
                return await self._drop(head, by, key_id)
        return json_reply(self._document(await shielded(self._revoke(head, by, before))))

    async def _revoke(self, head: RequestHead, by: str, before: ApiKey) -> ApiKey:
        after = replace(before, revoked_at=before.revoked_at or self._now())
        with self._changing("admin.key.revoked", head, by, before, after):
            for _ in range(TRIES):
                if await self._keys.change(before, after):
                    break
                before = await self._found(before.key_id)
                after = replace(before, revoked_at=before.revoked_at or self._now())
            else:
                raise StoreUnavailable("changed again and again")
            await self._put_out_of_force(before)
        return after

    async def _drop(self, head: RequestHead, by: str, key_id: str) -> Reply:
        """What cannot be read opens nothing, and is forgotten."""
        with self._changing("admin.key.revoked", head, by, None, None, key_id=key_id):
            await self._keys.drop(key_id)
        return json_reply({"id": key_id, "status": "unreadable"})

    def _end_overlap(self, record: ApiKey) -> None:
        Deferred.fromCoroutine(self._put_out_of_force(record)).addErrback(self._not_ended)

    def _not_ended(self, failure: Failure) -> None:
        if not failure.check(StoreUnavailable):  # the record itself says so, and will have been read before long
            self._log.failure("key.overlap_not_ended", failure)

    async def _put_out_of_force(self, record: ApiKey, kept: Set[str] = frozenset()) -> None:
        """Tell all instances, which may have read the record not long ago."""
        until = self._now() + REVOKED_S
        for its in record.secrets:
            if its.digest not in kept:
                await self._revocations.revoke(its.digest, until)

    async def _found(self, key_id: str) -> ApiKey:
        record = await self._keys.find(key_id) if is_key_id(key_id) else None
        if record is None:
            raise refuse("not-found", "There is no such API key; GET /api/keys lists those that there are.")
        return record

    async def _listed(self, key_id: str, tenant_id: str | None) -> dict[str, object] | None:
        try:
            record = await self._keys.find(key_id)
        except KeyUnreadable:
            return {"id": key_id, "status": "unreadable"}
        if record is None:
            await self._keys.unlist(key_id, tenant_id)
            return None
        if tenant_id is not None and record.tenant_id != tenant_id:
            return None
        return self._shown(record, await self._keys.last_used(key_id))

    @contextmanager
    def _read_state(self, detail: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            raise state_unavailable(detail) from error
        except KeyUnreadable as error:
            raise refuse("bad-request", "This key's record is spoilt; revoke the key, and make another.") from error

    @contextmanager
    def _changing(
        self, event: str, head: RequestHead, by: str, before: ApiKey | None, after: ApiKey | None, *, key_id: str = ""
    ) -> Iterator[None]:
        """Audit one change of a key."""
        record = after or before
        with audited(
            self._audit,
            event,
            head,
            self._now,
            unconfirmed="The store did not confirm the change, or somebody else made one; look at the key, then "
            "repeat it.",
            by=by,
            key_id=record.key_id if record else key_id,
            tenant_id=record.tenant_id if record else None,
            before=self._document(before) if before else None,
            after=self._document(after) if after else None,
        ):
            yield

    def _shown(self, record: ApiKey, last_used: float | None) -> dict[str, object]:
        return {**self._document(record), "last_used_at": iso_time(last_used)}

    def _document(self, record: ApiKey) -> dict[str, object]:
        """The record for operators: no secret, and no digest of one."""
        limit = record.limit
        old = [its.until for its in record.secrets[1:] if its.until is not None and its.until > self._now()]
        return {
            "id": record.key_id,
            "status": _status(record, self._now()),
            "tenant_id": record.tenant_id,
            "name": record.name,
            "role": record.role,
            "routes": record.routes,
            "methods": record.methods,
            "addresses": record.addresses,
            "limit": None if limit is None else {"requests": limit[0], "window_seconds": limit[1]},
            "created_at": iso_time(record.created_at),
            "created_by": record.created_by,
            "rotated_at": iso_time(record.secrets[0].since) if record.secrets[0].since != record.created_at else None,
            "overlap_until": iso_time(max(old)) if old else None,
            "expires_at": iso_time(record.expires_at),
            "revoked_at": iso_time(record.revoked_at),
        }


def _status(record: ApiKey, now: float) -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "expired" if record.expires_at is not None and now >= record.expires_at else "active"


def _page_wanted(head: RequestHead) -> tuple[str | None, int, str]:
    """Tenant, number and beginning of the page that the query asks for. Raises `Refused` bad-request."""
    pairs = parse_qsl((head.query or b"").decode("latin-1"), keep_blank_values=True)
    wanted = dict(pairs)
    if len(wanted) != len(pairs):
        raise refuse("bad-request", "Each parameter may stand in the query once only.", field="query")
    for name in wanted:
        if name not in ("tenant_id", "limit", "after"):
            bad_field(name, "is not known here; known: tenant_id, limit, after")
    tenant_id, limit, after = wanted.get("tenant_id"), wanted.get("limit", str(PAGE)), wanted.get("after", "")
    if tenant_id is not None and not is_id(tenant_id):
        bad_field("tenant_id", "must have 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    number = int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 5 else None
    return tenant_id, whole_number(number, "limit", 1, PAGE), after
