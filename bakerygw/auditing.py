"""The composition root's part for the audit trail, anonymous log lines, and what is noted of tenants."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from twisted.internet.defer import Deferred, maybeDeferred

from bakerygw.config.settings import Settings
from bakerygw.core.outcome import Outcome
from bakerygw.ports import AuditStore
from bakerygw.state import SharedState, Uncounted, redis_access
from bakerygw.stores.audit_file import FileAudit
from bakerygw.stores.audit_stream import RedisAudit
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.signals import RedisSignals
from bakerygw.telemetry.anonymous import Anonymous
from bakerygw.telemetry.audit import AuditTrail
from bakerygw.telemetry.entries import document_of
from bakerygw.telemetry.logs import LogSystem
from bakerygw.telemetry.metrics import Metrics
from bakerygw.telemetry.subjects import Subjects
from bakerygw.telemetry.tenant_notes import TenantNotes

FILE: Final = "bakerygw-audit.jsonl"
TIMEOUT_S: Final = 1.0
"""Of a call of the trail's own connection: no request waits for it, and a page of entries takes Redis a while."""
LOOKED_THROUGH: Final = 300
"""Entries of each ledger that are looked through for those about a tenant."""
SHOWN: Final = 20


def audit_path(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Where the trail of a single instance is."""
    if settings.audit_file is not None:
        return Path(settings.audit_file).absolute()
    return (Path(environ.get("XDG_STATE_HOME") or ".") / FILE).absolute()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTrail:
    """The store of the trail, and how it is opened and closed."""

    store: AuditStore
    open: Callable[[], "Deferred[None]"]
    """Fires when the first attempt to reach it has ended, well or not."""
    close: Callable[[], "Deferred[None]"]


def kept_trail(
    settings: Settings,
    reactor: Any,
    *,
    erased: Callable[[str], object],
    environ: Mapping[str, str],
    doubted: Callable[[], None] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> KeptTrail:
    """Where the settings want the trail to be; nothing is opened.

    `erased` is told of keys that others erase, `doubted` that keys may have gone unseen: there is a new
    connection.
    """
    if settings.redis_host is None:
        files = FileAudit(audit_path(settings, environ), days=settings.audit_days, clock=reactor, erased=erased)

        return KeptTrail(store=files, open=lambda: maybeDeferred(files.open), close=lambda: maybeDeferred(files.close))
    access = redis_access(settings, reactor)
    link = RedisLink(access, timeout_s=timeout_s, telemetry=Uncounted(), event="audit.link")
    if doubted is not None:
        link.watch(lambda connection: doubted() if connection is not None else None)
    store = RedisAudit(link, RedisSignals(link), days=settings.audit_days)
    return KeptTrail(store=store, open=link.start, close=link.stop)


class Auditing:
    """The trail with all that hangs on it. Opens nothing before `open`."""

    def __init__(self, settings: Settings, reactor: Any, state: SharedState, logs: LogSystem, metrics: Metrics) -> None:
        self._kept = kept_trail(settings, reactor, erased=self._erased, environ=os.environ, doubted=self._doubted)
        self._subjects = Subjects(self._kept.store, reactor)
        self._logs = logs
        self.anonymous = Anonymous(self._subjects, reactor) if settings.log_anonymize else None
        """`None`: log lines name users and addresses."""
        self.trail = AuditTrail(
            self._kept.store,
            self._subjects,
            clock=reactor,
            stamp=logs.writer.stamp,
            redactor=logs.redactor,
            line=logs.logger("bakerygw.audit").info,
            told=metrics.audited,
        )
        self.notes = TenantNotes(logs.writer.stamp, shown=self._shown, redact=logs.redactor.text)
        state.signals.on("erased", self._erased)

    def open(self) -> None:
        """Begin to write."""
        if self.anonymous is not None:
            self._logs.disguise = self.anonymous.record
        self._kept.open()
        self.trail.start()

    async def close(self) -> None:
        """Write what is left, and leave."""
        await self.trail.close()
        if self.anonymous is not None:
            self.anonymous.close()
        await self._kept.close()

    def unwell(self, outcome: Outcome) -> None:
        """Note what was refused or went wrong."""
        self.trail.refused(outcome)
        self.notes.ended(outcome)

    async def about(self, tenant_id: str) -> object:
        """The last entries about a tenant, newest first, among the youngest of each ledger. `StoreUnavailable`."""
        wanted = b'"tenant_id":' + orjson.dumps(tenant_id)
        found = [
            document
            for lines in (
                await self._kept.store.latest("events", LOOKED_THROUGH),
                await self._kept.store.latest("refusals", LOOKED_THROUGH),
            )
            for line in lines
            if wanted in line and (document := document_of(line)) is not None
        ]
        for document in found:
            document.pop("sealed", None)
        return sorted(found, key=lambda entry: str(entry.get("when")), reverse=True)[:SHOWN]

    async def _shown(self, user_ids: Collection[str]) -> Mapping[str, str]:
        """Users as the log names them. Raises `StoreUnavailable`."""
        if self.anonymous is None:
            return {user_id: user_id for user_id in user_ids}
        subjects = await self._subjects.of(user_ids)
        return {user_id: subject.pseudonym for user_id, subject in subjects.items()}

    def _doubted(self) -> None:
        self._subjects.doubt()

    def _erased(self, name: str) -> None:
        self.trail.forget(name)
        self.notes.forget(name)
