"""The audit trail: who was refused what, and who changed what, kept where it can be found for one person and erased."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from bakerygw.core.outcome import Outcome
from bakerygw.core.privacy import truncated
from bakerygw.ports import AuditStore, Ledger, StoreUnavailable
from bakerygw.telemetry.entries import Entry, entry_of, sealed
from bakerygw.telemetry.redaction import Redactor
from bakerygw.telemetry.repeats import Key, Repeats
from bakerygw.telemetry.subjects import Subjects, name_of

TICK_S: Final = 1.0
"""How often what is queued is written."""
BATCH: Final = 200
MAX_QUEUED: Final = 5_000
"""Of each ledger, about 5 MB, while the store is away; further entries are dropped and counted."""
MAX_ADDRESSES: Final = 10_000
"""Of which the network is remembered, for working it out takes some microseconds."""
RETRY_S: Final = 2.0
TRIM_S: Final = 3600.0
"""How often what is too old is let go of; for the first time after a minute, for a process may be young for ever."""
FIRST_TRIM_S: Final = 60.0
LOGIN_ROUTE: Final = "/api/v1/auth/login"
REFUSED: Final = frozenset({401, 402, 403, 429})
"""Statuses of refusals by policy; the others say that something was not there or went wrong."""
LEDGERS: Final[tuple[Ledger, ...]] = ("events", "refusals")
DROPPED: Final = "audit.dropped"


class Told(Protocol):
    """Where it is counted what became of entries."""

    def __call__(self, result: str, number: int) -> None:
        """`result`: written or dropped."""


@dataclass(slots=True, kw_only=True)
class Lost:
    """What a ledger will never hold."""

    since: str
    when: str = ""
    count: int = 0

    def entry(self, ledger: Ledger) -> Entry:
        """The entry that stands for it."""
        fields: dict[str, object] = {"count": self.count, "since": self.since}
        return Entry(ledger=ledger, when=self.when, event=DROPPED, user_id=None, personal={}, fields=fields)


class AuditTrail:
    """`ports.Audit`: a line in the log at once, and an entry in the store soon. Never raises, never waits."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        store: AuditStore,
        subjects: Subjects,
        *,
        clock: IReactorTime,
        stamp: Callable[[], str],
        redactor: Redactor,
        line: Callable[..., object],
        told: Told,
    ) -> None:
        """`stamp` tells the time as ISO 8601; `line(event, **fields)` writes a line of the log."""
        self._store, self._subjects, self._clock = store, subjects, clock
        self._stamp, self._redactor, self._line, self._told = stamp, redactor, line, told
        self._repeats = Repeats(clock.seconds)
        self._queues: dict[Ledger, deque[Entry]] = {ledger: deque() for ledger in LEDGERS}
        self._lost: dict[Ledger, Lost] = {}
        """Of which ledgers the trail itself does not tell yet that entries are missing."""
        self._untold = 0
        """Entries dropped of which the log does not tell yet."""
        self._writing: list[Entry] = []
        self._networks: dict[str, str] = {}
        self._work: Deferred[None] | None = None
        self._retry_at = self._trim_at = 0.0
        self._failing = self._closing = False
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock

    def __call__(self, event: str, **fields: object) -> None:
        """Tell of one event."""
        self._line(event, **fields)
        self._note(event, fields)

    def refused(self, outcome: Outcome) -> None:
        """Note a request that a policy refused, or a sign-in that failed; of any other outcome nothing."""
        if outcome.status not in REFUSED:
            return
        trace = outcome.trace
        if trace.reason is not None:
            event = "demo.crossing" if trace.reason == "demo-isolation" else "request.refused"
        elif trace.route == LOGIN_ROUTE:
            event = "login.failed"
        else:
            return
        code, user_id, tenant_id, method, route = (
            trace.reason,
            trace.user_id,
            trace.tenant_id,
            trace.method,
            trace.route,
        )
        client = trace.client if user_id is not None else self._network(trace.client)
        key = event, user_id, tenant_id, client, method, route, code, outcome.status, trace.cause
        # A flood must not cost more than it has to: what follows takes a hundred times as long.
        if self._repeats.again(key, code=code, route=route, known=user_id is not None, stamp=self._stamp):
            return
        fields: dict[str, object] = {
            "user_id": user_id,
            "tenant_id": tenant_id,
            "client": client,
            "request_id": trace.request_id,
            "method": method,
            "route": route,
            "code": code,
            "status": outcome.status,
            "cause": trace.cause,
        }
        self._note(event, fields, key)

    def forget(self, name: str) -> None:
        """The key with this name was erased: what is not written yet is about nobody, too."""
        self._subjects.forget(name)
        for entry in self._repeats.of(name):
            self._put(entry)
        for entry in (*self._queues["events"], *self._queues["refusals"], *self._writing):
            if entry.user_id is not None and name_of(entry.user_id) == name:
                entry.forget()

    def start(self) -> None:
        """Begin to write."""
        if not self._ticks.running:
            self._closing = False
            self._trim_at = self._clock.seconds() + FIRST_TRIM_S
            self._ticks.start(TICK_S, now=False)

    async def close(self) -> None:
        """Write what is left, as far as the store takes it at once."""
        if self._ticks.running:
            self._ticks.stop()
        for entry in self._repeats.all():
            self._put(entry)
        if self._work is not None:
            await self._work
        self._retry_at, self._closing = 0.0, True
        await self._write_safely()
        for ledger, queue in self._queues.items():
            self._drop(ledger, len(queue))
            queue.clear()
        if self._untold:
            self._log.warn(DROPPED, entries=self._untold)

    def _network(self, address: str) -> str:
        found = self._networks.get(address)
        if found is None:
            if len(self._networks) >= MAX_ADDRESSES:
                self._networks.clear()
            found = self._networks[address] = truncated(address)
        return found

    def _note(self, event: str, fields: Mapping[str, object], key: Key | None = None) -> None:
        try:
            entry = entry_of(event, fields, when=self._stamp(), redactor=self._redactor)
            if "after" in fields or self._repeats.first(entry, key):
                self._put(entry)
        except Exception:
            self._log.failure("audit.entry_failed")

    def _put(self, entry: Entry) -> None:
        queue = self._queues[entry.ledger]
        if len(queue) >= MAX_QUEUED:
            self._drop(entry.ledger, 1)
        else:
            queue.append(entry)

    def _tick(self) -> None:
        for entry in self._repeats.over():
            self._put(entry)
        if self._work is None:
            self._work = Deferred.fromCoroutine(self._write_safely())
            if self._work.called:
                self._work = None
            else:
                self._work.addBoth(self._worked)

    def _worked(self, _: object) -> None:
        self._work = None

    async def _write_safely(self) -> None:
        """Write all there is, unless the store has failed just now. A ledger that fails does not hold up the other.

        What is too old goes first: that may be what makes room.
        """
        now = self._clock.seconds()
        if now < self._retry_at:
            return
        failed: StoreUnavailable | None = None
        try:
            for ledger in LEDGERS:
                try:
                    if now >= self._trim_at:
                        await self._store.trim(ledger)
                    await self._write_all(ledger)
                except StoreUnavailable as error:
                    failed, self._retry_at = error, self._clock.seconds() + RETRY_S
            if now >= self._trim_at:
                self._trim_at = now + TRIM_S
            self._report(failed)
        except CancelledError:
            raise
        except Exception:
            self._log.failure("audit.failed")

    async def _write_all(self, ledger: Ledger) -> None:
        queue = self._queues[ledger]
        while queue or ledger in self._lost:
            if not queue:
                queue.append(self._lost.pop(ledger).entry(ledger))
            await self._write_batch(ledger, queue)
            if queue and not self._closing:
                await deferLater(self._clock, 0)  # a batch takes some milliseconds, and others wait for their turn

    async def _write_batch(self, ledger: Ledger, queue: deque[Entry]) -> None:
        """One batch; if the store is away it waits at its place again. Raises `StoreUnavailable`."""
        self._writing = batch = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
        try:
            subjects = await self._subjects.of({entry.user_id for entry in batch if entry.user_id is not None})
            # whom it is about is looked at now: they may have been erased while the keys were read
            lines = [sealed(entry, subjects.get(entry.user_id or "")) for entry in batch]
            await self._store.append(ledger, lines)
            self._told("written", len(lines))
            batch = []
        except StoreUnavailable:
            queue.extendleft(reversed(batch))
            batch = []
            raise
        finally:
            self._drop(ledger, len(batch))
            self._writing = []

    def _drop(self, ledger: Ledger, number: int) -> None:
        if not number:
            return
        self._told("dropped", number)
        self._untold += number
        now = self._stamp()
        lost = self._lost.setdefault(ledger, Lost(since=now))
        lost.count, lost.when = lost.count + number, now

    def _report(self, error: StoreUnavailable | None) -> None:
        """Log what changed, once."""
        if self._failing != (error is not None):
            self._failing = error is not None
            if error is None:
                self._log.info("audit.store", state="writing", dropped=self._untold)
                self._untold = 0
            else:
                self._log.warn("audit.store", state="failing", reason=str(error)[:200])
