"""Hears what is published for tenants, and knows whether anything was missed.

Redis keeps nothing for those who do not listen. So an instance that begins to listen has to find out whether somebody
else has listened all the time until then, and has stored what it heard; else a new era begins, by which readers learn
that something may be missing. Instances speak of that on a channel of their own, which the same connection hears: in
the order of publication, so that whoever hears a question has heard all alerts before it.
"""

import secrets
from collections.abc import Callable
from typing import ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from bakerygw.core.alerts import CHANNEL_PREFIX
from bakerygw.core.claims import is_id
from bakerygw.core.recent import Seldom
from bakerygw.ports import AlertTelemetry, EventLog, Listener, StoreUnavailable
from bakerygw.stores.redis_line import RedisAccess, RedisLine
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Connection, GoneError, LateError, ReplyError, ask
from bakerygw.stores.vouching import LISTENING, Vouching

PATTERN: Final = CHANNEL_PREFIX + "*"
PING_S: Final = 0.3
SILENT_BEATS: Final = 3
"""A connection that has not answered for so many pings' time hears nothing, as far as anybody can tell. Beats are
counted, and not seconds: a process that was stopped finds the answer when it goes on."""
STALE_BEATS: Final = 10
"""Silent for so long while the data connection, which is looked after each second, goes on: it leads nowhere."""
LONGEST_SILENCE_S: Final = 15.0
"""What a connection brings after it may be older than what the history still knows messages by."""
RETRY_MAX_S: Final = 5.0
ANSWER_S: Final = 1.0
TELL_EVERY_S: Final = 600.0
"""What alternates while it lasts, such as silence, a loss and a late answer, is told so often at most."""
CALM_S: Final = 5.0
"""Eras that a lasting flood enforces are so far apart."""

_PREFIX: Final = CHANNEL_PREFIX.encode()
_LISTENING: Final = LISTENING.encode()


class _Claim:
    """That nothing was missed until now, which is to be proven."""

    __slots__ = ("after_loss", "seen")

    def __init__(self, *, after_loss: bool = False) -> None:
        self.after_loss = after_loss
        """What was heard has been lost here, and more may be."""
        self.seen: int | None = None
        """An era that was the present one after this began: any later one tells readers of what was missed before."""


class _Session:
    """One connection, and what is known of it."""

    __slots__ = ("asked_at", "beats", "claim", "connection", "fresh_at", "over", "silent", "subscribed")

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection = connection
        self.claim: _Claim | None = _Claim()
        """`None`: proven."""
        self.subscribed = self.silent = self.over = False
        self.asked_at: float | None = None
        """When the ping that waits for its answer was sent."""
        self.beats = 0
        """Since then."""
        self.fresh_at = now
        """Whatever is heard was published after this moment."""

    @property
    def sure(self) -> bool:
        """All that is published is heard, and what may have been missed before was told."""
        return self.subscribed and not self.silent and not self.over and self.claim is None

    def end(self) -> None:
        """Whatever it brings from here on is not heard."""
        self.over = True
        self.connection.transport.abortConnection()


class RedisAlertChannel:
    """`ports.AlertSource` over a connection of its own, which is found again for ever."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        access: RedisAccess,
        link: RedisLink,
        log: EventLog,
        telemetry: AlertTelemetry,
        *,
        nonce: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        """`access` leads to the Redis that `link` talks to, and `log` writes through."""
        self._clock, self._history, self._telemetry = access.reactor, log, telemetry
        self._line = RedisLine(access, attend=self._attend, report=self._line_told)
        self._vouching = Vouching(
            access.reactor, link, nonce=nonce, sure=lambda: self._listening is True, settled=self._settled
        )
        self._listener: Listener | None = None
        self._session: _Session | None = None
        self._listening: bool | None = None
        """What the listener was told last; `None`: nothing yet."""
        self._told = _reasons()
        """Why it is not, as was logged since it was."""
        self._data_since: float | None = None
        """Since when there is this connection for calls; `None`: there is none."""
        self._data_is_new = False
        """It is not known yet whether it leads to the server of the session's."""
        self._stopping = False
        link.watch(self._data_changed)

    def start(self, listener: Listener) -> None:
        """Begin to listen, and go on for ever."""
        self._listener, self._stopping = listener, False
        self._line.start()

    def stop(self) -> "Deferred[None]":
        """End the connection; fires when it is gone."""
        self._stopping = True
        return self._line.stop()

    def missed(self) -> None:
        """What is known of the past is worth nothing any more; the present connection goes on."""
        session = self._session
        if session is not None and not session.over:  # else the next connection proves all of it
            session.claim = _Claim(after_loss=True)
            self._judge(session, "what was heard could not be stored")

    async def _attend(self, connection: Connection) -> None:
        """Listen by this connection until it is gone."""
        session = self._session = _Session(connection, self._clock.seconds())

        def heard(channel: object, payload: object) -> None:
            self._heard(session, channel, payload)

        connection.heard = heard
        beats = LoopingCall(self._beat, session)
        beats.clock = self._clock
        beats.start(PING_S)
        proving = Deferred.fromCoroutine(self._prove_safely(session))
        await connection.gone
        beats.stop()
        proving.cancel()
        session.over, self._session = True, None
        self._judge(session, "connection lost")

    def _beat(self, session: _Session) -> None:
        """See that the connection lives; one that is only late has missed nothing, and is kept for a while."""
        now = self._clock.seconds()
        if session.over:
            return
        if session.asked_at is None:
            session.asked_at, session.beats = now, 0
            session.connection.send(("PING",)).addCallback(self._answered, session)
            return
        session.beats += 1
        goes_on = self._data_since is not None and now - self._data_since >= STALE_BEATS * PING_S
        if session.beats * PING_S >= LONGEST_SILENCE_S or (goes_on and session.beats >= STALE_BEATS):
            session.end()
        elif session.beats >= SILENT_BEATS and not session.silent:
            session.silent = True
            self._judge(session, "no answer")

    def _answered(self, reply: object, session: _Session) -> None:
        if session.over or isinstance(reply, GoneError) or session.asked_at is None:
            return
        # One that is busy with a script lets nobody publish meanwhile, so that nothing is missed.
        if isinstance(reply, Exception) and not str(reply).startswith("BUSY "):
            session.end()
            return
        session.fresh_at, session.asked_at, session.silent = session.asked_at, None, False
        self._judge(session, "")

    def _data_changed(self, connection: Connection | None) -> None:
        """A new data connection may lead to another server than this one."""
        self._data_since = None if connection is None else self._clock.seconds()
        self._data_is_new = connection is not None

    async def _prove_safely(self, session: _Session) -> None:
        """Prove whatever is claimed, until cancelled."""
        failures = 0
        try:
            while not session.over:
                try:
                    await self._prove(session)
                    failures = 0
                except (ReplyError, GoneError, LateError, StoreUnavailable) as error:
                    failures += 1
                    self._judge(session, str(error)[:200])
                await deferLater(self._clock, min(RETRY_MAX_S, PING_S * 2.0 ** min(failures, 10)))
        except CancelledError:
            return
        except Exception:
            self._log.failure("alerts.channel_failed")
            session.end()

    async def _prove(self, session: _Session) -> None:
        """Do what is due. Raises `ReplyError`, `GoneError`, `LateError` or `StoreUnavailable`; it is due again then."""
        if not session.subscribed:
            await self._subscribe(session)
        if session.claim is not None and session.claim.after_loss:
            await self._calm()
        claim = session.claim
        if claim is not None:
            if claim.seen is None:
                claim.seen = await self._history.era()
            if not await self._vouched(session):
                await self._begin_era(claim.seen)
            if session.claim is claim:  # else something was missed meanwhile
                session.claim = None
            self._judge(session, "")
        elif self._data_is_new:
            await self._vouched(session)

    async def _subscribe(self, session: _Session) -> None:
        """Hear alerts, and only then the questions of others: whoever hears those has heard all alerts before."""
        for command in (("PSUBSCRIBE", PATTERN), ("SUBSCRIBE", LISTENING)):
            try:
                await ask(self._clock, session.connection, command, ANSWER_S)
            except LateError:
                session.end()  # when it began to hear would not be known
                raise
            except ReplyError as error:  # which does not say what it is about
                raise ReplyError(f"{' '.join(command)}: {error}") from error
        session.subscribed, session.claim = True, _Claim()

    async def _vouched(self, session: _Session) -> bool:
        """Whether another instance has all that was published until now; and whether both connections lead there."""
        self._data_is_new, found = False, None
        try:
            found = await self._vouching.ask(lambda: session.fresh_at)
        finally:
            self._data_is_new |= found is None or found == "late"
        if found == "elsewhere":
            session.end()
            raise GoneError("the connection leads to another server than that for calls")
        if found == "late":
            raise LateError("the connection brings nothing")
        return found == "vouched"

    async def _begin_era(self, seen: int) -> None:
        era = await self._history.begin_era(seen)
        self._telemetry.era()
        self._log.warn("alerts.era", era=era, reason="no instance is known to have heard all that was published")

    def _heard(self, session: _Session, channel: object, payload: object) -> None:
        """What anybody has published, maybe none of our services."""
        if session.over or not isinstance(channel, bytes) or not isinstance(payload, bytes):
            return
        if self._clock.seconds() - session.fresh_at > LONGEST_SILENCE_S:
            session.end()
        elif channel == _LISTENING:
            self._vouching.heard(payload)
        else:
            tenant_id = channel.removeprefix(_PREFIX).decode("ascii", "replace")
            if not is_id(tenant_id):
                self._telemetry.dropped("invalid")
            elif self._listener is not None:
                self._listener.heard(tenant_id, payload)

    async def _calm(self) -> None:
        """Wait until what was heard is stored or lost, but not for ever: one era then tells of all that was lost."""
        try:
            await Deferred.fromCoroutine(self._settled()).addTimeout(CALM_S, self._clock)
        except TimeoutError:
            return

    async def _settled(self) -> None:
        if self._listener is not None:
            await self._listener.settled()

    def _judge(self, session: _Session | None, reason: str) -> None:
        """Tell what has changed, once. Without a `reason` it can only have become better."""
        sure = session is not None and session.sure
        if sure != (self._listening or False) or (reason and self._listening is None):
            self._listening = sure
            self._telemetry.listening(sure)
            if sure:
                self._told = _reasons()
                self._log.info("alerts.listening")
            if self._listener is not None:
                (self._listener.listening if sure else self._listener.interrupted)()
            if sure:
                self._vouching.answer()
        if not sure and reason:
            self._report(reason)

    def _line_told(self, state: str, reason: str) -> None:
        if state == "unreachable":
            self._judge(None, reason)

    def _report(self, reason: str) -> None:
        """Log why nothing is heard, or nobody can tell, unless it is known already."""
        if not self._stopping and self._told.is_due(reason, self._clock.seconds()):
            self._log.warn("alerts.interrupted", reason=reason)


def _reasons() -> Seldom[str]:
    return Seldom(TELL_EVERY_S, 20)


class RedisAlertPublisher:
    """`ports.AlertPublisher` by PUBLISH."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def publish(self, tenant_id: str, payload: bytes) -> None:
        """Tell all who listen, on every instance. Raises `StoreUnavailable`."""
        await self._link.call("PUBLISH", CHANNEL_PREFIX + tenant_id, payload)
