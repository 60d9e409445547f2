"""What other services said, remembered for some minutes: asked once for all who want it at the same time."""

from collections.abc import Callable, Coroutine
from functools import partial
from hashlib import sha256
from math import ceil
from typing import Any, ClassVar, Final, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.claims import ClaimsError, Subscription
from bakerygw.core.facts import read_fact, write_fact
from bakerygw.core.recent import Recent
from bakerygw.ports import LookupFailed, LookupTelemetry, SharedFacts

TTL_S: Final = 300.0
"""How long an answer is used."""
CLOCKS_S: Final = 1.0
"""What the clocks of instances, services and operators may differ by."""
MAX_FACTS: Final = 20_000
"""Remembered at most, the least recently used going first; 8 MB."""
MAX_PAUSES: Final = 10_000
ROUNDS: Final = 3
"""Answers to others' questions that one request waits for, if they turn out to be of no use to it."""

T = TypeVar("T", bound=Subscription | str | None)

_Known = tuple[T, float]
"""A value, and when it was asked for in Unix seconds."""


class _Flight(Generic[T]):
    """One question under way, and everybody who waits for its answer."""

    def __init__(self) -> None:
        self.run: Deferred[_Known[T] | LookupFailed] | None = None
        self.waiting: list[Deferred[_Known[T] | LookupFailed]] = []


class Facts(Generic[T]):
    """Answers to one kind of question, by subject."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        what: str,
        *,
        read: Callable[[object], T],
        pause_s: float,
        pause_all: bool = False,
        shared: SharedFacts | None,
        telemetry: LookupTelemetry,
        now: Callable[[], float],
        size: int = MAX_FACTS,
    ) -> None:
        """`what` names the kind, in metrics and keys. `read` makes a value of parsed JSON or raises `ClaimsError`.

        After a failure nothing is asked about the subject for `pause_s`; with `pause_all`, after a service that did not
        answer, about no subject on the same side of the demo's border (what stands before its colon). Without `shared`
        each instance asks for itself. `now`: Unix seconds.
        """
        self._what, self._read, self._pause_s, self._pause_all = what, read, pause_s, pause_all
        self._telemetry, self._now = telemetry, now
        self.shared = shared
        """Assign another for answers to come."""
        self._known: Recent[str, _Known[T]] = Recent(size)
        self._pauses: Recent[tuple[str, str], tuple[float, LookupFailed]] = Recent(MAX_PAUSES)
        self._flights: dict[str, _Flight[T]] = {}

    async def about(
        self, subject: str, *, who: str, since: float | None, ask: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """The answer about `subject`, remembered, or asked for on behalf of the user `who`. Raises `LookupFailed`.

        An answer to what was asked before `since` (Unix seconds, if anything has changed) is of no use. Cancelling
        ends the question, if nobody else waits for it.
        """
        known = self._remembered(subject, since)
        if known is not None:
            self._telemetry.looked_up(self._what, "memory")
            return known[0]
        arrived = self._now()
        for _ in range(ROUNDS):
            self._check_pause(subject, who)
            found, own = await self._joined(subject, partial(self._find, subject, who, since, ask))
            if isinstance(found, LookupFailed):
                if own or not _depends_on_caller(found):
                    raise LookupFailed(found.kind, found.cause, retry_after_s=found.retry_after_s, told=not own)
            elif own or found[1] >= arrived or self._is_good(found, since):
                return found[0]
        raise LookupFailed("unavailable", "others' questions were of no use")

    def learn(self, subject: str, value: T, asked_at: float) -> None:
        """Take in what was said about `subject`, asked for at `asked_at` in Unix seconds; older answers give way."""
        older = self._known.get(subject)
        if older is not None and older[1] > asked_at:
            return
        self._known.put(subject, (value, asked_at))
        if self.shared is not None:
            offer = Deferred.fromCoroutine(
                self.shared.put(self._key(subject), write_fact(value, asked_at), ttl_s=TTL_S)
            )
            offer.addErrback(self._broken)

    def _remembered(self, subject: str, since: float | None) -> _Known[T] | None:
        known = self._known.get(subject)
        return self._known.use(subject) if known is not None and self._is_good(known, since) else None

    def _is_good(self, known: _Known[T], since: float | None) -> bool:
        """Whether it is young enough, and was asked for after what has changed since.

        A change that is told in whole seconds may be from the end of its second.
        """
        age_s = self._now() - known[1]
        return -CLOCKS_S <= age_s < TTL_S and (since is None or known[1] > ceil(since) + CLOCKS_S)

    async def _find(
        self, subject: str, who: str, since: float | None, ask: Callable[[], Coroutine[Any, Any, T]]
    ) -> _Known[T] | LookupFailed:
        """What another instance has learnt, else what the service says."""
        shared = await self._offered(subject)
        if shared is not None and self._is_good(shared, since):
            self._known.put(subject, shared)
            self._telemetry.looked_up(self._what, "shared")
            return shared
        asked_at = self._now()
        try:
            value = await ask()
        except LookupFailed as failed:
            self._telemetry.looked_up(self._what, failed.kind)
            self._pause(subject, who, failed)
            return failed
        self._telemetry.looked_up(self._what, "answered")
        self.learn(subject, value, asked_at)
        return value, asked_at

    async def _offered(self, subject: str) -> _Known[T] | None:
        if self.shared is None:
            return None
        data = await self.shared.get(self._key(subject))
        if data is None:
            return None
        try:
            value, asked_at = read_fact(data)
            return self._read(value), asked_at
        except ClaimsError:
            return None

    def _key(self, subject: str) -> str:
        return f"lookup:{self._what}:{sha256(subject.encode()).hexdigest()}"

    # pauses

    def _pause(self, subject: str, who: str, failed: LookupFailed) -> None:
        if _depends_on_caller(failed):
            scope = subject, who
        elif self._pause_all and failed.kind in ("timeout", "unreachable"):
            scope = _side(subject), ""
        else:
            scope = subject, ""
        self._pauses.put(scope, (self._now() + self._pause_s, failed))

    def _check_pause(self, subject: str, who: str) -> None:
        """Ask nothing that has just failed: for anything on its side, for anybody, or for this user."""
        for scope in ((_side(subject), ""), (subject, ""), (subject, who)):
            pause = self._pauses.get(scope)
            if pause is None:
                continue
            until, failed = pause
            if 0 < until - self._now() <= self._pause_s:
                self._telemetry.looked_up(self._what, "paused")
                raise LookupFailed(failed.kind, failed.cause, retry_after_s=failed.retry_after_s, told=True)
            self._pauses.drop(scope)

    # flights

    async def _joined(
        self, subject: str, begin: Callable[[], Coroutine[Any, Any, _Known[T] | LookupFailed]]
    ) -> tuple[_Known[T] | LookupFailed, bool]:
        """The outcome of the question about `subject` that is under way, or is begun here; and whether it was."""
        flight = self._flights.get(subject)
        own = flight is None
        if flight is None:
            flight = self._flights[subject] = _Flight()
        waiter: Deferred[_Known[T] | LookupFailed] = Deferred(partial(self._left, subject, flight))
        flight.waiting.append(waiter)
        if own:
            run = flight.run = Deferred.fromCoroutine(begin())
            run.addBoth(partial(self._landed, subject, flight))
        return await waiter, own

    def _landed(self, subject: str, flight: _Flight[T], result: Any) -> None:
        if self._flights.get(subject) is flight:
            del self._flights[subject]
        waiting, flight.waiting = flight.waiting, []
        if not waiting and isinstance(result, Failure):
            self._broken(result)
        for waiter in waiting:
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)

    def _left(self, subject: str, flight: _Flight[T], waiter: "Deferred[_Known[T] | LookupFailed]") -> None:
        """One of them gave up; with the last, the question ends."""
        if waiter in flight.waiting:
            flight.waiting.remove(waiter)
        if flight.waiting:
            return
        if self._flights.get(subject) is flight:
            del self._flights[subject]
        if flight.run is not None:
            flight.run.cancel()

    def _broken(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("lookup.crashed", failure)


def _side(subject: str) -> str:
    """The services behind it: those of the demo may fail for themselves."""
    return subject.partition(":")[0]


def _depends_on_caller(failed: LookupFailed) -> bool:
    """Whether it may be told to one user and not to another."""
    return failed.kind in ("unauthorized", "forbidden", "unknown")
