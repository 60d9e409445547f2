"""What brings the alerts that are heard into the history, in order and in batches, while Redis comes and goes."""

import random
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.alerts import MAX_ALERT_BYTES, Alert, AlertRefused, parse_alert
from bakerygw.ports import AlertTelemetry, EventLog, Placed

MAX_WAITING: Final = 20_000
"""Alerts that wait for the store at most."""
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
MAX_AGE_S: Final = 30.0
"""Older ones are given up: what the history knows a message by is kept for 60 s since another instance stored it, and
it may have been on its way for `stores.alert_channel.LONGEST_SILENCE_S` before it was heard."""
BATCH: Final = 200
BATCH_BYTES: Final = 512 * 1024
"""Of payload in one call, unless a single alert has more."""
LINGER_S: Final = 0.005
"""Calls follow each other by so much, so that of many alerts some go together: each call costs as much as ten more
alerts in it. An alert that comes alone does not wait."""
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 1.0
PATIENCE_S: Final = 1.0
"""Failures to store that last longer are told to the streams."""
LAST_CHANCE_S: Final = 1.0
"""So long what was heard may still be stored when the gateway has stopped, be its time to drain over or not."""
QUIET_S: Final = 10.0
"""Between two log lines about what was published and is no alert."""


class Hub(Protocol):
    """Who brings stored alerts to the streams of this instance. No method raises."""

    def stored(self, tenant_id: str, placed: Placed, payload: bytes) -> None:
        """This alert was heard here, and stands in the history."""

    def degraded(self) -> None:
        """What is published is not heard, or cannot be stored."""

    def restored(self) -> None:
        """All is heard and stored again; something may have been missed here that the history has."""


class Intake:
    """`ports.Listener`: the way from what is published to the history, and on to the streams of this instance."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        log: EventLog,
        hub: Hub,
        clock: IReactorTime,
        telemetry: AlertTelemetry,
        *,
        missed: Callable[[], None],
        jitter: Callable[[], float] = random.random,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`missed` is the source's: called when something that was heard could not be stored."""
        self._history, self._hub, self._clock, self._telemetry = log, hub, clock, telemetry
        self._missed, self._jitter, self._max_waiting = missed, jitter, max_waiting
        self._waiting: deque[tuple[Alert, float]] = deque()
        """With the moment at which each was heard."""
        self._bytes = 0
        self._taken = self._done = 0
        """How many alerts ever came to wait, and how many of them wait no more."""
        self._settling: deque[tuple[int, Deferred[None]]] = deque()
        self._storing: Deferred[None] | None = None
        self._called_at = -LINGER_S
        self._failing_since: float | None = None
        self._failing_told = False
        self._lost = 0
        """Alerts given up since the last log line about it."""
        self._listening = False
        self._told: bool | None = None
        """Whether the hub was last told that all is well; `None`: nothing yet."""
        self._well_from: int | None = None
        """How many alerts had come to wait when all became well again; `None` while it is not."""
        self._refused = 0
        """Messages that were no alerts, since the last log line about it."""
        self._lost_quiet_until = self._refused_quiet_until = 0.0

    def heard(self, tenant_id: str, payload: bytes) -> None:
        """Take what was published, if it is an alert; it is stored in the order of these calls."""
        self._telemetry.heard()
        full = len(self._waiting) >= self._max_waiting or self._bytes + len(payload) > MAX_WAITING_BYTES
        if full and len(payload) <= MAX_ALERT_BYTES:  # what is too large for an alert is none that is lost
            self._give_up(1)
            return
        try:
            alert = parse_alert(tenant_id, payload)
        except AlertRefused as refused:
            self._refuse(tenant_id, refused.reason)
            return
        self._waiting.append((alert, self._clock.seconds()))
        self._bytes += len(payload)
        self._taken += 1
        if self._storing is None:
            self._storing = Deferred.fromCoroutine(self._store())
            self._storing.addErrback(self._crashed)

    def listening(self) -> None:
        """All is heard from here on. The source has reached the store for it, so it may well store, too."""
        self._listening = True
        self._tell_lost()
        if not self._waiting:
            self._serves()
        self._judge()

    def interrupted(self) -> None:
        """Streams are told at once."""
        self._listening = False
        self._judge()

    @property
    def busy(self) -> bool:
        """Nothing is heard at the moment, and some of what was is not stored yet."""
        return not self._listening and bool(self._waiting)

    def settled(self) -> "Deferred[None]":
        """Fires when all that was heard so far is stored, or was given up and told as missed."""
        if self._done >= self._taken:
            return succeed(None)
        settled: Deferred[None] = Deferred()
        self._settling.append((self._taken, settled))
        return settled

    async def close(self) -> None:
        """Give what still waits a last chance, and end; to be called when the source has stopped."""
        try:
            await self.settled().addTimeout(LAST_CHANCE_S, self._clock)
        except TimeoutError:
            self._log.warn("alerts.given_up", alerts=len(self._waiting), reason="the gateway stops")
        finally:
            if self._storing is not None:
                self._storing.cancel()

    async def _store(self) -> None:
        """Store what waits, one call after the other, until nothing does."""
        try:
            attempts = 0
            while self._waiting:
                # A turn of the reactor at least, so that all that arrived together goes in one call.
                await deferLater(self._clock, max(0.0, self._called_at + LINGER_S - self._clock.seconds()))
                if not (batch := self._next_batch()):
                    break
                try:
                    placed = await self._history.append(batch)
                    self._called_at = self._clock.seconds()
                    if len(placed) != len(batch):
                        raise ValueError("the history answered about another number of alerts")
                except CancelledError:
                    raise
                except Exception as error:  # whatever it is: these alerts are not known to be stored
                    attempts += 1
                    self._failed(error)
                    await deferLater(self._clock, self._delay_s(attempts))
                    continue
                attempts = 0
                self._stored(batch, placed)
        except CancelledError:
            return
        finally:
            self._storing = None
            self._judge()

    def _next_batch(self) -> list[Alert]:
        """The alerts that have waited longest and are young enough; they go on waiting."""
        too_old = self._clock.seconds() - MAX_AGE_S
        old = 0
        for _, heard_at in self._waiting:
            if heard_at >= too_old:
                break
            old += 1
        if old:
            self._leave(old)
            self._give_up(old)
            self._settle()
        batch: list[Alert] = []
        size = 0
        for alert, _ in self._waiting:
            size += len(alert.payload)
            if batch and (len(batch) >= BATCH or size > BATCH_BYTES):
                break
            batch.append(alert)
        return batch

    def _stored(self, batch: list[Alert], placed: list[Placed]) -> None:
        self._serves()
        self._leave(len(batch))
        fresh = 0
        for alert, its in zip(batch, placed, strict=True):
            fresh += its.fresh
            try:
                self._hub.stored(alert.tenant_id, its, alert.payload)
            except Exception:  # the next ones are not to suffer for it
                self._log.failure("alerts.hub_failed")
        self._telemetry.placed(fresh, len(batch) - fresh)
        self._settle()
        self._judge()

    def _serves(self) -> None:
        self._failing_since = None
        if self._failing_told:
            self._failing_told = False
            self._log.info("alerts.store", state="storing", reason="")

    def _failed(self, error: Exception) -> None:
        now = self._clock.seconds()
        if self._failing_since is None:
            self._failing_since = now
        if not self._failing_told and now - self._failing_since >= PATIENCE_S:
            self._failing_told = True
            self._log.warn("alerts.store", state="failing", reason=f"{type(error).__name__}: {error}"[:200])
        self._judge()

    def _leave(self, number: int) -> None:
        """So many wait no more."""
        for _ in range(number):
            self._bytes -= len(self._waiting.popleft()[0].payload)
        self._done += number

    def _settle(self) -> None:
        while self._settling and self._settling[0][0] <= self._done:
            _, settled = self._settling.popleft()
            if not settled.called:
                settled.callback(None)

    def _give_up(self, number: int) -> None:
        """So many alerts are lost here: whether another instance has them, the source is to find out."""
        for _ in range(number):
            self._telemetry.dropped("store")
        self._lost += number
        self._missed()
        if self._clock.seconds() >= self._lost_quiet_until:
            self._tell_lost()

    def _tell_lost(self) -> None:
        if self._lost:
            self._log.warn("alerts.given_up", alerts=self._lost, reason="the store did not take them in time")
            self._lost, self._lost_quiet_until = 0, self._clock.seconds() + QUIET_S

    def _refuse(self, tenant_id: str, reason: str) -> None:
        """What it said is nobody's business; how many there were, is told with the next line."""
        self._telemetry.dropped(reason)
        self._refused += 1
        now = self._clock.seconds()
        if now >= self._refused_quiet_until:
            self._log.warn("alerts.refused", tenant_id=tenant_id, reason=reason, messages=self._refused)
            self._refused, self._refused_quiet_until = 0, now + QUIET_S

    def _judge(self) -> None:
        """Tell the hub of changes: what is wrong at once, and that all is well when what waited till then is stored."""
        since = self._failing_since
        if not self._listening or (since is not None and self._clock.seconds() - since >= PATIENCE_S):
            self._well_from = None
            if self._told is not False:
                self._told = False
                self._hub.degraded()
        elif since is None and self._told is not True:
            if self._well_from is None:
                self._well_from = self._taken
            if self._done >= self._well_from:
                self._told = True
                self._hub.restored()

    def _delay_s(self, attempts: int) -> float:
        longest = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(attempts - 1, 10))
        return longest * (0.5 + 0.5 * self._jitter())

    def _crashed(self, failure: Failure) -> None:
        self._log.failure("alerts.intake_failed", failure)
