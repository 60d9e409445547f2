"""The issuer's key set, fetched by URL: kept fresh in the background, and asked for when a key is missing."""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.ports import CredentialsUnavailable, TokenTelemetry
from bakerygw.tokens.fetching import Fetched, FetchFailed
from bakerygw.tokens.jwks import KeySet, KeySetError, parse_key_set
from bakerygw.tokens.keys import VerificationKey

REFRESH_S: Final = 300.0
"""Between two fetches, where the issuer does not say for how long its set holds."""
MIN_REFRESH_S: Final = 60.0
MAX_REFRESH_S: Final = 3600.0
"""So long at most a key that the issuer has taken away is believed, whatever `max-age` says."""
FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0
ASK_EVERY_S: Final = 10.0
"""Tokens that name unknown keys cause one fetch in this time at most, however many there are."""
SHOWN_KIDS: Final = 10
"""In a line of the log."""
JITTER: Final = 0.1
"""Of each wait, so that instances which were started together do not ask together."""


class RemoteKeys:
    """A `KeySource` of what one URL publishes. The last good set stays in use until a good one replaces it."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Fetched]],
        *,
        algorithm: str,
        clock: IReactorTime,
        random: Callable[[], float],
        telemetry: TokenTelemetry,
    ) -> None:
        """`random` gives numbers from 0 to 1. `fetch` has a deadline of its own and raises `FetchFailed`."""
        self.fetch = fetch
        """Assign another way to the same document; what was fetched stays."""
        self._algorithm = algorithm
        self._clock, self._random, self._telemetry = clock, random, telemetry
        self.changed: Callable[[frozenset[bytes]], None] | None = None
        """Called with the thumbprints of all keys when they are others than before."""
        self._set: KeySet | None = None
        self._fetched_at = self._asked_at = float("-inf")
        self._failures = 0
        self._running = False
        self._fetching: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._waiting: dict[Deferred[None], None] = {}
        self._told: object = None

    def key_for(self, kid: str | None) -> VerificationKey | None:
        """The key by this id; without one, the only key of a set that has a single one."""
        return None if self._set is None else self._set.key_for(kid)

    @property
    def thumbprints(self) -> frozenset[bytes] | None:
        """Those of the last good set; `None` if there was none yet."""
        return None if self._set is None else self._set.thumbprints

    @property
    def age_s(self) -> float | None:
        """Seconds since a good set was fetched for the last time; `None` if none ever was."""
        return None if self._set is None else self._clock.seconds() - self._fetched_at

    def start(self) -> None:
        """Fetch at once, then again and again; nothing if that is under way."""
        if not self._running:
            self._running = True
            self._begin()

    def stop(self) -> None:
        """Fetch no more; whoever waits is told that there is nothing new."""
        self._running = False
        self._cancel_timer()
        if self._fetching is not None:
            self._fetching.cancel()

    async def look_again(self) -> None:
        """Have the set fetched, for a key is missing: together with all who wait for the same, and not again within
        `ASK_EVERY_S`. Returns when there is nothing to wait for; raises `CredentialsUnavailable` without any set.

        Cancelling ends the wait, not the fetch.
        """
        now = self._clock.seconds()
        if self._running and self._fetching is None and now - self._asked_at >= ASK_EVERY_S:
            self._asked_at = now
            self._begin()
        if self._fetching is not None:
            await self._its_end()
        if self._set is None:
            raise CredentialsUnavailable("no key set")

    async def _its_end(self) -> None:
        turn = Deferred[None]()
        self._waiting[turn] = None
        try:
            await turn
        finally:
            self._waiting.pop(turn, None)

    def _begin(self) -> None:
        self._cancel_timer()
        fetching = self._fetching = Deferred.fromCoroutine(self._renew())
        fetching.addErrback(self._broke)
        fetching.addCallback(self._ended)

    async def _renew(self) -> float:
        """Fetch once; the seconds until it should be done again."""
        try:
            fetched = await self.fetch()
            found = parse_key_set(fetched.body, self._algorithm)
        except FetchFailed as failure:
            return self._failed(failure.result, str(failure))
        except KeySetError as error:
            return self._failed("invalid", str(error))
        self._take(found)
        wanted = REFRESH_S if fetched.max_age_s is None else float(fetched.max_age_s)
        return min(max(wanted, MIN_REFRESH_S), MAX_REFRESH_S)

    def _take(self, found: KeySet) -> None:
        self._telemetry.key_set("ok")
        old = frozenset() if self._set is None else self._set.thumbprints
        self._set, self._fetched_at, self._failures = found, self._clock.seconds(), 0
        if found.thumbprints != old and self.changed is not None:
            self.changed(found.thumbprints)
        if self._is_news(("fetched", found)):
            kids = ", ".join(sorted(found.by_kid)[:SHOWN_KIDS])
            self._log.info("tokens.keys", state="fetched", kids=kids, keys=len(found.thumbprints))
            for key in found.ignored:
                tell = self._log.error if key.is_secret else self._log.warn
                tell("tokens.key_ignored", kid=key.kid, reason=key.why)

    def _failed(self, result: str, reason: str) -> float:
        """Note a fetch that brought no good set; seconds until the next."""
        self._telemetry.key_set(result)
        if self._is_news(("failing", reason)):
            kept = "none" if self._set is None else "last good"
            self._log.error("tokens.keys", state="failing", result=result, reason=reason, using=kept)
        wait_s: float = min(FIRST_RETRY_S * 2.0 ** min(self._failures, 10), MAX_RETRY_S)
        self._failures += 1
        return wait_s

    def _broke(self, failure: Failure) -> float:
        """The last resort: whatever a library comes up with, the next fetch must come."""
        if failure.check(CancelledError) is None:
            self._log.failure("tokens.keys_failed", failure)
        return MAX_RETRY_S

    def _ended(self, wait_s: float) -> None:
        self._fetching = None
        if self._running:
            self._timer = self._clock.callLater(wait_s * (1 - JITTER * self._random()), self._begin)
        for turn in tuple(self._waiting):
            turn.callback(None)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _is_news(self, state: object) -> bool:
        """Whether the log was told something else last."""
        news, self._told = state != self._told, state
        return news
