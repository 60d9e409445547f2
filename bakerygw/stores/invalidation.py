"""What keeps the mirror true: Redis itself, telling on a connection of its own which keys have changed.

Redis' "server-assisted client-side caching" in its form for RESP2: a subscriber connection hears
`__redis__:invalidate`, and the data connection asks that every change under our prefixes be told there (BCAST). That
holds as long as both connections do; both are asked again and again whether they live.
"""

from collections.abc import Callable
from typing import ClassVar, Final, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from bakerygw.stores.mirror import PREFIXES, REVOKED_PREFIX, Mirror
from bakerygw.stores.mirror_table import TRUST_S, Epoch
from bakerygw.stores.redis_line import RedisAccess, RedisLine
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Connection, GoneError, LateError, ReplyError, ask
from bakerygw.stores.signals import SIGNALS

PING_S: Final = 0.3
RETRY_SOON_S: Final = 2.0
"""Attempts after what may pass by itself, such as a Redis that is full or loading, come at least so often."""
RETRY_SELDOM_S: Final = 60.0
"""Attempts with a Redis that cannot or may not tell, or a proxy that hangs up over it, come ever slower up to this."""
CHANNEL: Final = "__redis__:invalidate"
CANARY_MS: Final = 1000

_LASTING: Final = ("noperm", "err unknown ", "err wrong number of arguments", "err syntax error")
"""How errors begin that do not pass by themselves, in small letters; old servers say "Unknown subcommand or …"."""

_SIGNALS_BYTES: Final = SIGNALS.encode()
_PREFIX_WORDS: Final = tuple(word for prefix in PREFIXES for word in ("PREFIX", prefix))


class Invalidations:
    """Has Redis tell the mirror of every change, and the mirror, when it can rely on that."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        access: RedisAccess,
        link: RedisLink,
        mirror: Mirror,
        *,
        name: str,
        signals: Callable[[object], None] | None = None,
    ) -> None:
        """`access` leads to the Redis that `link` talks to; no other instance has this `name`, a plain word.

        `signals` is told the payload of each message on the channel `SIGNALS`, which comes by the same connection.
        """
        self._signals = signals
        self._clock, self._mirror = access.reactor, mirror
        self._canary = f"{REVOKED_PREFIX}canary-{name}"
        self._line = RedisLine(access, attend=self._attend, report=self._line_told)
        self._data: Connection | None = None
        self._number: object = None
        """What Redis calls the subscriber connection; `None` before it has subscribed."""
        self._older = False
        """The subscriber connection was there before the data connection, and may be another server's."""
        self._epoch: Epoch | None = None
        self._returned: Deferred[None] | None = None
        self._failures, self._next_try = 0, 0.0
        self._told: tuple[str, str] | None = None
        self._stopping = False
        link.watch(self._data_changed)

    def start(self) -> None:
        """Begin, and go on for ever."""
        self._stopping = False
        self._line.start()

    def stop(self) -> "Deferred[None]":
        """End the subscriber connection; fires when it is gone."""
        self._stopping = True
        return self._line.stop()

    def _data_changed(self, connection: Connection | None) -> None:
        """Whatever the old data connection had asked for, Redis has forgotten with it."""
        self._data, self._older = connection, True
        self._break("data connection lost")

    async def _attend(self, subscriber: Connection) -> None:
        """Keep the mirror true through this connection, until it is gone."""
        subscriber.heard, self._older = self._heard, False
        beat: Deferred[None] | None = None

        def once() -> "Deferred[None]":
            nonlocal beat
            beat = Deferred.fromCoroutine(self._beat_safely(subscriber))
            return beat

        beats = LoopingCall(once)
        beats.clock = self._clock
        beats.start(PING_S)
        await subscriber.gone
        beats.stop()
        if beat is not None:
            beat.cancel()
        self._number = None
        self._break("subscriber connection lost")

    async def _beat_safely(self, subscriber: Connection) -> None:
        try:
            await self._beat(subscriber)
        except CancelledError:
            return
        except Exception:
            self._log.failure("store.invalidation_failed")

    async def _beat(self, subscriber: Connection) -> None:
        """Ask both connections whether they live; what Redis had to tell until now has arrived before the answer."""
        asked_at, epoch, data = self._clock.seconds(), self._epoch, self._data
        try:
            await ask(self._clock, subscriber, ("PING",), TRUST_S)
        except (ReplyError, GoneError, LateError):
            subscriber.transport.abortConnection()
            return
        if data is None:
            return
        if epoch is None:
            if asked_at >= self._next_try:
                await self._try_to_track(subscriber, data)
            return
        try:
            await ask(self._clock, data, ("PING",), TRUST_S)
        except (ReplyError, GoneError, LateError):
            return  # not confirmed, and so not trusted for long
        self._mirror.confirm(epoch, asked_at)

    async def _listen(self, subscriber: Connection) -> None:
        """Also hear of signals. Where that is not allowed the mirror goes on without them. As `_track` else."""
        try:
            await ask(self._clock, subscriber, ("SUBSCRIBE", SIGNALS), TRUST_S)
        except ReplyError as error:
            self._log.warn("store.signals", state="refused", reason=str(error)[:200])
        except LateError:
            subscriber.transport.abortConnection()  # it may answer yet, out of step with what is asked next
            raise

    async def _try_to_track(self, subscriber: Connection, data: Connection) -> None:
        self._failures += 1
        began_at = self._clock.seconds()
        self._next_try = began_at + min(RETRY_SELDOM_S, PING_S * 2.0 ** min(self._failures, 20))
        try:
            await self._track(subscriber, data)
        except (ReplyError, GoneError, LateError) as error:
            may_pass = not _lasting(error)
            self._report("distrusted", str(error)[:200])
        except TimeoutError:
            may_pass = self._data is data
            self._report("distrusted", "a change of our own was not told")
        else:
            self._failures = 0
            self._report("trusted", "")
            return
        if may_pass:
            self._next_try = min(self._next_try, began_at + RETRY_SOON_S)
        if self._older and self._data is data:
            # Where another server has taken over, the old one may live on and keep this connection.
            subscriber.transport.abortConnection()

    async def _track(self, subscriber: Connection, data: Connection) -> None:
        """Have every change told, and see that it is. Raises `ReplyError`, `GoneError`, `LateError`, `TimeoutError`."""

        async def tell(connection: Connection, *command: Argument) -> object:
            return await ask(self._clock, connection, command, TRUST_S)

        if self._number is None:
            number = await tell(subscriber, "CLIENT", "ID")
            try:
                await tell(subscriber, "SUBSCRIBE", CHANNEL)
            except LateError:
                subscriber.transport.abortConnection()  # it may have subscribed, and then takes no CLIENT ID again
                raise
            self._number = number
            if self._signals is not None:
                await self._listen(subscriber)
        # Prefixes can't be given twice, so what this connection may have asked for before has to go first.
        await tell(data, "CLIENT", "TRACKING", "OFF")
        redirect = ("REDIRECT", cast("int", self._number))
        await tell(data, "CLIENT", "TRACKING", "ON", *redirect, "BCAST", *_PREFIX_WORDS)
        began_at = self._clock.seconds()
        # Two connections may end at two servers, or at a proxy: only a change that comes back proves the whole way.
        returned: Deferred[None] = Deferred()
        self._returned = returned
        try:
            await tell(data, "SET", self._canary, "1", "PX", CANARY_MS)
            await returned.addTimeout(TRUST_S, self._clock)
        finally:
            self._returned = None
        if self._data is not data:
            raise GoneError("data connection lost")
        self._epoch = self._mirror.whole(began_at)

    def _heard(self, channel: object, keys: object) -> None:
        if channel == _SIGNALS_BYTES:
            if self._signals is not None:
                self._signals(keys)
            return
        self._mirror.invalidate(keys)
        if self._returned is not None and isinstance(keys, list) and self._canary.encode() in keys:
            returned, self._returned = self._returned, None
            returned.callback(None)

    def _break(self, reason: str) -> None:
        was, self._epoch = self._epoch, None
        self._mirror.broken()
        if was is not None:
            self._report("distrusted", reason)

    def _line_told(self, state: str, reason: str) -> None:
        if state == "unreachable":
            self._report("distrusted", reason)

    def _report(self, state: str, reason: str) -> None:
        """Log what changed, once."""
        if (state, reason) != self._told and not self._stopping:
            self._told = state, reason
            tell = self._log.info if state == "trusted" else self._log.warn
            tell("store.mirror", state=state, reason=reason)


def _lasting(error: Exception) -> bool:
    """Whether it may be the same for ever. A connection that ended may have been ended for what was asked."""
    return isinstance(error, GoneError) or str(error).lower().startswith(_LASTING)
