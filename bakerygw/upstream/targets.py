"""The URLs of one service: which of them gets a request, and which are spared for a while."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from math import ceil
from random import Random
from typing import ClassVar, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bakerygw.core.breaker import Breaker, BreakerState
from bakerygw.core.retries import RetryBudget
from bakerygw.ports import Onward, UpstreamFailed, UpstreamRequest
from bakerygw.upstream.connection import Blameless
from bakerygw.upstream.pool import Pool

FAILURES: Final = 5
WITHIN_S: Final = 10.0
OPEN_S: Final = 5.0
SHARE: Final = 0.1
"""A breaker opens by five failures in ten seconds, if they are a tenth of what was asked meanwhile: a few requests that
are too slow among thousands of good ones must not take the service from everybody."""

SOCKET_FAILURES: Final = 3
SOCKETS_WITHIN_S: Final = 60.0
SOCKETS_OPEN_S: Final = 10.0
"""Three sockets in a minute that come to nothing, if they are a tenth of all, send others elsewhere for ten seconds."""

LONG_OPEN_S: Final = 30.0
"""After so long without a probe that failed any request may be one: neither a health page that is wrong nor a service
that gets nothing but uploads may keep a good URL out for ever."""

ILL_LOOKS: Final = 2
"""Looks in a row that must find a URL ill before it is avoided."""


class Target:
    """One URL and what is known of it."""

    __slots__ = (
        "ailing", "breaker", "cleared", "error", "failures", "ill_looks", "pool", "probed", "sockets", "told",
        "watched",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.breaker = Breaker(failures=FAILURES, within_s=WITHIN_S, open_s=OPEN_S, share=SHARE)
        self.sockets = Breaker(failures=SOCKET_FAILURES, within_s=SOCKETS_WITHIN_S, open_s=SOCKETS_OPEN_S, share=SHARE)
        """Of those that were accepted. It refuses nothing: while it is open, sockets go to others, if there are any."""
        self.failures = 0
        """Tries without a usable response."""
        self.error = ""
        """The RFC 9209 error type of the latest failure that counted."""
        self.told: BreakerState = "closed"
        """What the log was told last."""
        self.probed = False
        """Whether it was told of a probe since the breaker was closed."""
        self.watched = False
        """Somebody looks at its health."""
        self.ill_looks = 0
        self.ailing = False
        """The latest looks found it ill."""
        self.cleared = True
        """Nobody looks, or a look since the breaker opened found it not ill."""

    def become(self, other: "Target") -> None:
        """Know what the same URL's target of an older configuration knows."""
        self.breaker, self.sockets = deepcopy(other.breaker), deepcopy(other.sockets)
        self.error, self.told, self.probed = other.error, other.told, other.probed
        self.watched, self.cleared = other.watched, other.cleared
        self.ill_looks, self.ailing = other.ill_looks, other.ailing


class Targets:
    """All URLs of one service, at least one.

    A URL whose breaker is closed is asked; health may move requests to others as long as it leaves at least half of
    all URLs. Where the breakers of all of several URLs are open, each URL still takes one request at a time.

    A breaker's probe is one of the requests, and one that is all here, so that no client can make it last. Where
    there is another URL to ask that is not ailing, the probe also waits until the URL was seen to answer at `/health`,
    so that no request is lost to one that is still dead. Both hold until the breaker has been open for `LONG_OPEN_S`.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, service: str, pools: Sequence[Pool], *, clock: IReactorTime, random: Random) -> None:
        self._service, self._clock, self._random = service, clock, random
        self.all = [Target(pool) for pool in pools]
        self.ready = self.all
        """Those to choose from while all is well; their breakers are closed."""
        self.calm = True
        """Every breaker is closed, so that `less_busy(ready, …)` will do instead of `choose`."""
        self._budget = RetryBudget(clock.seconds())

    # Choosing.

    def less_busy(self, targets: Sequence[Target], upgrade: bytes | None) -> Target:
        """The less busy of two taken at random: nearly as even as asking all, without herding to the least busy.

        What offers an `upgrade` may stay for hours: it looks at who else has stayed. To a request these are no load, or
        a URL that has been away and has none would get all requests until it has as many as the others.
        """
        if len(targets) == 1:
            return targets[0]
        if upgrade is not None:
            return self._for_socket(targets)
        one, other = self._random.sample(targets, 2)
        return one if one.pool.outstanding <= other.pool.outstanding else other

    def choose(self, request: UpstreamRequest) -> Target:
        """The URL for this request, which may be a probe. Raises `UpstreamFailed` while breakers allow none."""
        now, firm = self._clock.seconds(), _is_firm(request)
        for target in self.all:
            if self._is_due(target, now, firm):
                self._tell(target, "half-open")
                return target
        found = self._find(now, request)
        if found is None:
            raise self._spared(now)
        return found

    def _for_socket(self, targets: Sequence[Target]) -> Target:
        """As `less_busy`, among those that serve what they accept; now and then one that did not, to see."""
        now = self._clock.seconds()
        for target in targets:
            if not target.sockets.closed and target.sockets.allow(now):
                return target
        serving = [target for target in targets if target.sockets.closed] or targets
        some = self._random.sample(serving, min(2, len(serving)))
        return min(some, key=_load_of)

    def for_second_try(self, failed: Target, request: UpstreamRequest, *, same: bool) -> Target | None:
        """The URL for this request's second try, counted in the budget then: another one, else, if `same` will do,
        `failed`."""
        same = same and failed.breaker.closed
        if not same and len(self.all) == 1:
            return None
        now = self._clock.seconds()
        if not self._budget.spend(now, sum(target.pool.requests for target in self.all)):
            return None
        return self._find(now, request, failed) or (failed if same else None)

    # What became of a request. `mark`: the breaker's, read just before the request.

    def answered(self, target: Target, mark: int) -> None:
        """A response's head came, whatever its status."""
        breaker = target.breaker
        if breaker.closed:
            breaker.mark += 1
            return
        if breaker.success(mark):
            self._sort()
            self._tell(target, "closed")

    def failed(self, target: Target, mark: int, failure: UpstreamFailed) -> None:
        """No response's head came. It counts unless the client or the gateway itself was the reason."""
        if failure.code == "service-unavailable" or isinstance(failure, Blameless):
            target.breaker.abandon(mark)
            return
        target.error = failure.error
        if target.breaker.failure(self._clock.seconds(), mark):
            target.cleared = not target.watched
            self._sort()
            self._tell(target, "open")
            target.pool.turn_away()

    def went_on(self, target: Target, onward: Onward) -> None:
        """A 101 came: whether it is worth anything is told by who goes on."""
        sockets = target.sockets
        if not sockets.closed:
            sockets.allow(self._clock.seconds(), early=True)  # whatever led here, it will do as the probe
        onward.hear(partial(self._judged, target, sockets.mark))

    def _judged(self, target: Target, mark: int, failure: UpstreamFailed | None) -> None:
        """It says nothing of other requests, which the URL may well serve: for them it must not be spared."""
        sockets = target.sockets
        served = sockets.closed
        if failure is not None:
            target.failures += 1
            sockets.failure(self._clock.seconds(), mark)
        elif served:
            sockets.mark += 1
        else:
            sockets.success(mark)
        if sockets.closed != served:
            state, tell = ("serving", self._log.info) if failure is None else ("failing", self._log.warn)
            cause = "" if failure is None else failure.cause
            tell("upstream.sockets", service=self._service, url=target.pool.url, state=state, cause=cause)

    def looked(self, url: str, ill: bool) -> None:
        """Take in how a look at `/health` found this URL."""
        for target in self.all:
            if target.pool.url != url:
                continue
            target.watched = True
            target.ill_looks = target.ill_looks + 1 if ill else 0
            target.cleared = target.cleared or not ill
            ailing = target.ill_looks >= ILL_LOOKS
            if ailing != target.ailing:
                target.ailing = ailing
                self._sort()
                tell = self._log.warn if ailing else self._log.info
                tell("upstream.health", service=self._service, url=url, state="ailing" if ailing else "well")

    # The whole.

    def state(self) -> BreakerState:
        """Of several breakers' states the best: what a request meets."""
        now = self._clock.seconds()
        states = {target.breaker.state(now) for target in self.all}
        return "closed" if "closed" in states else "half-open" if "half-open" in states else "open"

    def take_over(self, older: "Targets") -> None:
        """Know what the targets of an older configuration know of the URLs that are in both."""
        known = {target.pool.url: target for target in older.all}
        for target in self.all:
            if target.pool.url in known:
                target.become(known[target.pool.url])
        self._sort()

    def _sort(self) -> None:
        closed = [target for target in self.all if target.breaker.closed]
        well = [target for target in closed if not target.ailing]
        self.ready = well if 2 * len(well) >= len(self.all) else closed
        self.calm = len(closed) == len(self.all)

    def _is_due(self, target: Target, now: float, firm: bool) -> bool:
        """Whether the request at hand is this URL's probe, counted as begun then."""
        if target.breaker.closed:
            return False
        doubtful = target.ailing or not target.cleared
        if doubtful and any(not other.ailing for other in self.ready) and not _is_long_open(target, now):
            return False
        return _may_probe(target, now, firm)

    def _find(self, now: float, request: UpstreamRequest, other_than: Target | None = None) -> Target | None:
        ready = [target for target in self.ready if target is not other_than]
        ready = ready or [target for target in self.all if target.breaker.closed and target is not other_than]
        if ready:
            return self.less_busy(ready, request.upgrade)
        if self.ready or len(self.all) == 1:
            return None
        firm = _is_firm(request)
        for target in self._random.sample(self.all, len(self.all)):
            if target is not other_than and _may_probe(target, now, firm, early=True):
                return target
        return None

    def _spared(self, now: float) -> UpstreamFailed:
        wait_s = min(target.breaker.retry_in_s(now) for target in self.all)
        cause = f"breaker open: {self.all[0].error}"
        return UpstreamFailed(
            "service-unavailable", "destination_unavailable", cause, retry_after_s=max(1, ceil(wait_s))
        )

    def _tell(self, target: Target, state: BreakerState) -> None:
        if target.told == state:
            return
        known = target.probed and state != "closed"  # the same outage, seen again every few seconds
        target.told, target.probed = state, known or state == "half-open"
        tell = self._log.debug if known else self._log.warn if state == "open" else self._log.info
        url = target.pool.url
        tell("upstream.breaker", service=self._service, url=url, state=state, cause=target.error)


def _load_of(target: Target) -> int:
    """Requests under way, and connections that go on in another protocol."""
    return target.pool.outstanding + target.pool.sockets


def _is_firm(request: UpstreamRequest) -> bool:
    """Whether only the service and the usual deadlines decide how long the request takes."""
    return request.body is None or request.body.complete


def _is_long_open(target: Target, now: float) -> bool:
    return target.breaker.open_for_s(now) >= LONG_OPEN_S


def _may_probe(target: Target, now: float, firm: bool, *, early: bool = False) -> bool:
    """Whether the request at hand may go to a URL that is not ready, counted as begun then."""
    return (firm or _is_long_open(target, now)) and target.breaker.allow(now, early=early, firm=firm)
