"""A Redis of one's own, step by step: what it executes, what arrives and when is up to the test.

Instances are the real channel and the real intake, on a clock each; only the connections and the history are played.
"""

import itertools
from collections import deque
from fnmatch import fnmatchcase

import hiredis
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from bakerygw.core.alerts import CHANNEL_PREFIX, Position
from bakerygw.ports import Placed, StoreUnavailable
from bakerygw.realtime.alerts.intake import Intake
from bakerygw.stores.alert_channel import RedisAlertChannel
from bakerygw.stores.redis_line import RedisAccess

TENANT = "t-1"


class SimRedis:
    """Pub/Sub, an era, and the history of what was stored; `moment` counts all that was executed."""

    def __init__(self) -> None:
        self.moment = 0
        self.subscribers: dict[bytes, list[SimConnection]] = {}
        self.by_pattern: dict[bytes, list[SimConnection]] = {}
        self.era, self.era_began = 1, 0
        self.stored: dict[bytes, Position] = {}
        self.published: dict[bytes, int] = {}
        self.up = True
        self.refuses: bytes | None = None
        """What it answers to whoever wants to subscribe."""
        self.silent = False
        """Whether connections lead nowhere once they have asked to subscribe."""

    def execute(self, *words: object) -> object:
        """One command of a data connection."""
        self.moment += 1
        name, *rest = words
        if name == "PUBLISH":
            channel, payload = (it.encode() if isinstance(it, str) else it for it in rest)
            return self.publish(channel, payload)
        if name == "ERA":
            return self.era
        if name == "BEGIN":
            if self.era == rest[0]:
                self.era, self.era_began = self.era + 1, self.moment
            return self.era
        assert name == "APPEND", name
        placed = []
        for alert in rest[0]:
            fresh = alert.payload not in self.stored
            if fresh:
                self.stored[alert.payload] = Position(epoch=self.era, offset=len(self.stored) + 1)
            placed.append(Placed(position=self.stored[alert.payload], fresh=fresh))
        return placed

    def publish(self, channel: bytes, payload: bytes) -> int:
        hearing = list(self.subscribers.get(channel, ()))
        for connection in hearing:
            connection.replies.append(packed(b"message", channel, payload))
        by_pattern = [
            (pattern, connection)
            for pattern, connections in self.by_pattern.items()
            if fnmatchcase(channel, pattern)
            for connection in connections
        ]
        for pattern, connection in by_pattern:
            connection.replies.append(packed(b"pmessage", pattern, channel, payload))
        return len(hearing) + len(by_pattern)

    def alert(self, text: bytes) -> None:
        """A service publishes an alert."""
        self.moment += 1
        payload = b'{"alert_id":"' + text + b'"}'
        self.published[payload] = self.moment
        self.publish((CHANNEL_PREFIX + TENANT).encode(), payload)

    def silently_lost(self, before: int) -> list[bytes]:
        """What was published before this moment, is not stored, and no era tells of."""
        return [
            payload
            for payload, at in self.published.items()
            if at < before and payload not in self.stored and self.era_began < at
        ]


class SimTransport(StringTransport):
    connection: "SimConnection"

    def abortConnection(self) -> None:
        self.connection.cut()


class SimConnection:
    """A subscriber connection, both ways."""

    def __init__(self, redis: SimRedis, protocol) -> None:
        self.redis, self.protocol = redis, protocol
        self.replies: deque[bytes] = deque()
        self.alive, self.told = True, False
        self.subscribed_at = 0
        self.asked = False
        """Whether it was asked to subscribe."""
        self._reader = hiredis.Reader()
        self.transport = SimTransport()
        self.transport.connection = self

    def serve(self) -> None:
        """Redis executes all that was sent."""
        if not self.alive or (self.redis.silent and self.asked):
            return
        sent = self.transport.value()
        self.transport.clear()
        self._reader.feed(sent)
        while (words := self._reader.gets()) is not False:
            self.redis.moment += 1
            self.asked |= words[0].endswith(b"SUBSCRIBE")
            if self.redis.silent and self.asked:
                return
            if self.redis.refuses and words[0].endswith(b"SUBSCRIBE"):
                self.replies.append(b"-" + self.redis.refuses + b"\r\n")
            elif words[0] in (b"SUBSCRIBE", b"PSUBSCRIBE"):
                if words[0] == b"PSUBSCRIBE":
                    self.subscribed_at = self.redis.moment
                heard = self.redis.by_pattern if words[0] == b"PSUBSCRIBE" else self.redis.subscribers
                heard.setdefault(words[1], []).append(self)
                self.replies.append(packed(words[0].lower(), words[1], 1))
            else:
                assert words == [b"PING"], words
                self.replies.append(packed(b"pong", b"") if self.subscribed_at else b"+PONG\r\n")

    def deliver(self) -> None:
        """One reply or message arrives."""
        if self.alive and self.replies:
            self.protocol.dataReceived(self.replies.popleft())

    def cut(self, *, tell: bool = True) -> None:
        """Both ends see it end; what was under way is lost."""
        if self.alive:
            self.alive = False
            for names in [*self.redis.subscribers.values(), *self.redis.by_pattern.values()]:
                names[:] = [it for it in names if it is not self]
            if tell:
                self.tell()

    def tell(self) -> None:
        """The instance learns that it has ended."""
        if not self.told:
            self.told = True
            self.protocol.connectionLost(Failure(ConnectionAborted()))


class SimLink:
    """The data connection of an instance. Also its history."""

    def __init__(self, redis: SimRedis, clock: Clock) -> None:
        self.redis, self.clock, self.up = redis, clock, True
        self.sent: deque[tuple[tuple, Deferred]] = deque()
        self.answered: deque[tuple[object, Deferred]] = deque()
        self.watchers = []

    def watch(self, watcher) -> None:
        self.watchers.append(watcher)

    async def call(self, *words):
        if not self.up:
            raise StoreUnavailable("not connected")
        reply: Deferred = Deferred(lambda _: None)
        self.sent.append((words, reply))
        return await reply

    async def era(self):
        return await self.call("ERA")

    async def begin_era(self, seen):
        return await self.call("BEGIN", seen)

    async def append(self, alerts):
        return await self.call("APPEND", list(alerts))

    def serve(self) -> None:
        """Redis executes one command."""
        if self.sent:
            words, reply = self.sent.popleft()
            self.answered.append((self.redis.execute(*words), reply))

    def deliver(self) -> None:
        """One answer arrives."""
        if self.answered:
            value, reply = self.answered.popleft()
            if not reply.called:
                reply.callback(value)

    def time_out(self) -> None:
        """The caller of the oldest command gives up; it may be executed all the same."""
        for _, reply in itertools.chain(self.answered, self.sent):
            if not reply.called:
                reply.errback(StoreUnavailable("no answer in time"))
                return

    def set_up(self, up: bool) -> None:
        if up == self.up:
            return
        self.up = up
        if not up:
            waiting = [reply for _, reply in (*self.answered, *self.sent)]
            self.sent.clear()
            self.answered.clear()
            for reply in waiting:
                if not reply.called:
                    reply.errback(StoreUnavailable("connection lost"))
        for watcher in self.watchers:
            watcher(self if up else None)


class Hub:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stored_ = []
        self.told = []

    def stored(self, tenant_id, placed, payload) -> None:
        self.stored_.append((tenant_id, placed, payload))

    def degraded(self) -> None:
        self.told.append("degraded")

    def restored(self) -> None:
        self.told.append("restored")


class Telemetry:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heards = self.fresh = self.known = self.eras = 0
        self.drops, self.states = [], []

    def heard(self) -> None:
        self.heards += 1

    def placed(self, fresh, known) -> None:
        self.fresh += fresh
        self.known += known

    def dropped(self, reason) -> None:
        self.drops.append(reason)

    def listening(self, yes) -> None:
        self.states.append(yes)

    def era(self) -> None:
        self.eras += 1


class Instance:
    """One gateway's channel and intake. Is its own `Listener`, to look at each moment when it says that it listens."""

    numbers = itertools.count(1)

    def __init__(self, redis: SimRedis, *, max_waiting: int = 1000) -> None:
        self.redis, self.clock, self.alive = redis, Clock(), True
        self.connections: list[SimConnection] = []
        self.link, self.hub, self.telemetry = SimLink(redis, self.clock), Hub(), Telemetry()
        self.is_listening = False
        self.silently_lost: list[bytes] = []
        self.gave_up_at = 0
        nonces = (f"{next(self.numbers):016x}" for _ in itertools.count())
        access = RedisAccess(reactor=self.clock, endpoint=self, jitter=lambda: 1.0)
        self.channel = RedisAlertChannel(access, self.link, self.link, self.telemetry, nonce=lambda: next(nonces))
        self.intake = Intake(
            self.link, self.hub, self.clock, self.telemetry,
            missed=self._missed, jitter=lambda: 1.0, max_waiting=max_waiting,
        )  # fmt: skip
        for watcher in self.link.watchers:
            watcher(self.link)
        self.channel.start(self)

    def connect(self, factory):
        """As an endpoint."""
        if not self.redis.up:
            return fail(ConnectionRefusedError())
        connection = SimConnection(self.redis, factory.buildProtocol(None))
        self.connections.append(connection)
        connection.protocol.makeConnection(connection.transport)
        return succeed(connection.protocol)

    @property
    def connection(self) -> SimConnection | None:
        return self.connections[-1] if self.connections and self.connections[-1].alive else None

    def _missed(self) -> None:
        self.gave_up_at = self.redis.moment + 1
        self.channel.missed()

    def heard(self, tenant_id, payload) -> None:
        self.intake.heard(tenant_id, payload)

    def listening(self) -> None:
        assert self.connection is not None
        self.is_listening = True
        self.silently_lost += self.redis.silently_lost(max(self.connection.subscribed_at, 0))
        self.intake.listening()

    def interrupted(self) -> None:
        self.is_listening = False
        self.intake.interrupted()

    def settled(self):
        return self.intake.settled()

    def kill(self) -> None:
        """It does nothing any more; Redis sees its connections end."""
        self.alive = self.is_listening = False
        for connection in self.connections:
            connection.cut(tell=False)
        self.link.sent.clear()
        self.link.answered.clear()

    def close(self) -> None:
        """Nothing of it is left running, dead or alive."""
        self.redis = SimRedis()
        self.channel.stop()
        for connection in self.connections:
            connection.alive = False
            connection.tell()
        self.link.set_up(False)
        if self.intake._storing is not None:
            self.intake._storing.cancel()

    def go(self, seconds: float) -> None:
        """Let all that is under way arrive, while time passes."""
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)
            self.flow()

    def flow(self) -> None:
        """All that is under way arrives."""
        while self.flowing():
            pass

    def flowing(self) -> bool:
        link, connection = self.link, self.connection
        moved = False
        if connection is not None:
            connection.serve()
            while connection.alive and connection.replies:
                connection.deliver()
                moved = True
        while link.sent or link.answered:
            link.serve()
            link.deliver()
            moved = True
        return moved


def go(instances, seconds: float) -> None:
    """All run, side by side."""
    for _ in range(round(seconds * 20)):
        for instance in instances:
            if instance.alive:
                instance.clock.advance(0.05)
        while sum(instance.flowing() for instance in instances if instance.alive):
            pass


def packed(*words: bytes | int) -> bytes:
    parts = (b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    return b"*%d\r\n" % len(words) + b"".join(parts)
