"""A channel in memory against random streams, beside an application that reads and answers as it pleases.

`one` plays one case and raises `AssertionError` where the channel breaks a promise: what it takes for requests is what
the reference reads, every answer is HTTP, each connection ends, and nothing of it is left.
"""

import weakref
from random import Random
from typing import Any

from twisted.internet.task import Clock, deferLater

from bakerygw.core.http import BodySource, Reply
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.core.problem import Problem, Refused
from bakerygw.edge.body import collect
from bakerygw.edge.conversation import Conversation
from bakerygw.edge.exchange import Exchange
from tests.collector import no_collector
from tests.edge.edge_fakes import Client, Sink, make_site
from tests.fuzz.reference import Incomplete, ReadAnswer, Reading, read_answer, read_requests
from tests.fuzz.streams import Shape, Stream, cut, stream

ENDS_WITHIN_S = 400
"""After its last byte: no deadline or answer takes longer."""
SHAPE = Shape(targets=lambda number: b"/%d?q=/../" % number)


class Pushed:
    """A reply's body that comes by and by, and breaks off where it is told to."""

    def __init__(self, clock: Clock, pieces: list[bytes], *, length: int | None, breaks: bool) -> None:
        self.length, self._pieces, self._breaks, self._clock = length, pieces, breaks, clock
        self._sink: Any = None
        self._paused = False

    def whole(self) -> bytes | None:
        return None

    def start(self, sink: Any) -> None:
        self._sink = sink
        self._clock.callLater(0.1, self._push)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def stop(self) -> None:
        self._sink = None

    def _push(self) -> None:
        if self._sink is None:
            return
        if self._paused:
            self._clock.callLater(1, self._push)
        elif self._pieces:
            self._clock.callLater(0.1, self._push)
            self._sink.write(self._pieces.pop(0))
        elif self._breaks:
            self._sink.cut("broken")
        else:
            self._sink.done()


class Taken:
    """A request as the application got it."""

    def __init__(self, exchange: Exchange) -> None:
        head = exchange.head
        self.head = (head.method.encode(), head.target, head.headers)
        self.sink: Sink | None = None
        self.collected: bytes | None = None

    @property
    def body(self) -> bytes | None:
        """The body, if the channel gave it as a whole one."""
        return self.sink.data if self.sink is not None and self.sink.end == "done" else self.collected


class Application:
    """Takes requests; reads, waits and answers by chance. The frame around it is the gateway's own."""

    def __init__(self, random: Random, clock: Clock) -> None:
        self._random, self._clock = random, clock
        self.taken: list[Taken] = []
        self.outcomes: list[Outcome] = []
        self.refusals = 0
        self._frame = Conversation(
            self._reply_to, standing=lambda *_: (), ended=self.outcomes.append, clock=self._clock
        )

    def serve(self, exchange: Exchange) -> None:
        self._frame.serve(exchange)

    def unreadable(self, refusal: Refused, peer: str) -> Reply:
        self.refusals += 1
        return self._frame.unreadable(refusal, peer)

    async def _reply_to(self, exchange: Exchange, _: Trace) -> Reply:
        random, body = self._random, exchange.body
        taken = Taken(exchange)
        self.taken.append(taken)
        number = b"%d" % (len(self.taken) - 1)
        if random.random() < 0.2:
            body.cap = 100
        if random.random() < 0.2:
            await deferLater(self._clock, random.choice((0, 0.3, 12)))
        reads = random.choice(("whole", "whole", "sink", "sink", "slow sink", "nothing"))
        if reads == "whole":
            taken.collected = await collect(body, 1 << 20)
        elif reads != "nothing":
            taken.sink = Sink()
            body.start(taken.sink)
        if reads == "slow sink":
            body.pause()
            await deferLater(self._clock, random.choice((0.3, 30)))
            body.resume()
        if random.random() < 0.4:
            await deferLater(self._clock, random.choice((0, 0.01, 1, 20)))
        if body.failure is not None:
            raise Refused(body.failure)
        if random.random() < 0.05:
            raise Refused(Problem(code="not-found", detail="No."))
        status = random.choice((200, 200, 200, 201, 204, 304, 404))
        return Reply(status=status, headers=((b"X-Number", number),), body=self._body(), close=random.random() < 0.1)

    def _body(self) -> bytes | BodySource:
        kind = self._random.random()
        if kind < 0.6:
            return self._random.choice((b"", b"ok", b"x" * 1000, b"y" * 200_000))
        pieces = [b"z" * self._random.choice((1, 100, 70_000)) for _ in range(self._random.randrange(4))]
        length = self._random.choice((None, sum(map(len, pieces))))
        return Pushed(self._clock, pieces, length=length, breaks=self._random.random() < 0.1)


class Play:
    """One connection: the stream goes in as the transport would let it, until the client leaves or all is over."""

    def __init__(self, random: Random, sent: Stream) -> None:
        self._random, self.sent = random, sent
        self.clock = Clock()
        self.app = Application(random, self.clock)
        self.dawdles = random.random() < 0.2
        site = make_site(self.app, self.clock)
        self.client = Client(self.app, site=site, stalled=random.random() < 0.2)  # type: ignore[arg-type]
        self.wire = self.client.wire
        self._waiting = [*sent.pieces]
        self.delivered = b""
        self._leaves_at = random.randrange(len(sent.pieces) + 1) if random.random() < 0.15 else None
        self._left = False
        self._drains = random.random() < 0.8

    def run(self) -> None:
        """All of it, to the end of the connection."""
        number = 0
        while self._waiting and not self._over():
            if number == self._leaves_at:
                self._left = True
                self.client.leave()
                break
            if self.wire.reading:
                self._deliver()
                number += 1
            else:
                self._wait(0.5)
            self._wait(self._random.choice((0, 0.5, 5)) if self.dawdles else 0)
        self._to_the_end()

    @property
    def ended_early(self) -> bool:
        """By a reset of the gateway's, by the client, or because it took nothing."""
        return self.wire.aborted or self._left or self.wire.paused

    def _deliver(self) -> None:
        piece = self._waiting.pop(0)
        self.delivered += piece
        self.client.send(piece)

    def _over(self) -> bool:
        return self.wire.closed or self.wire.aborted or self.client.channel.gone

    def _wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if seconds:
            self.client.channel.sweep(self.clock.seconds())
        if self._drains and self.wire.paused:
            self.wire.drain()

    def _to_the_end(self) -> None:
        for _ in range(ENDS_WITHIN_S * 2):
            if self._over():
                break
            if self._waiting and self.wire.reading:
                self._deliver()
            self._wait(0.5)
        assert self._over(), "the connection does not end"
        if not self.client.channel.gone:
            self.client.leave()
        for _ in range(100):
            self.clock.advance(1)


def check(play: Play) -> None:
    """What holds of every connection."""
    reading = read_requests(play.sent.data)
    taken, begun = play.app.taken, reading.begun
    assert len(taken) <= len(begun), f"a request that is none: {taken[len(begun)].head}"
    for got, read in zip(taken, begun, strict=False):
        assert got.head == (read.method, read.target, read.fields)
        assert got.body is None or (read.complete and got.body == read.body), "a body that is none, or another"
    assert len(play.app.outcomes) == len(taken) + play.app.refusals, "each request is told of once"
    if play.sent.sound and not play.dawdles:
        assert play.app.refusals == 0
    _check_answers(play, reading)
    assert play.client.site._channels == set()
    assert play.clock.getDelayedCalls() == []


def _check_answers(play: Play, reading: Reading) -> None:
    """Strict HTTP, in the order of the requests, no more than there were requests; then perhaps a refusal."""
    data, at, number, whole = play.wire.written, 0, 0, not play.ended_early
    begun, taken = reading.begun, play.app.taken
    finals: list[ReadAnswer] = []
    while at < len(data):
        to_head = number < len(taken) and begun[number].method == b"HEAD"
        try:
            answer = read_answer(data, at, to_head=to_head, closed=play.wire.closed)
        except Incomplete:
            # An interim answer whose final one never came
            assert not whole
            assert data[at:] == b"HTTP/1.1 100 Continue\r\n\r\n"
            break
        assert len(answer.values(b"date")) == 1
        if answer.values(b"x-number"):
            assert answer.values(b"x-number") == [b"%d" % number]
        finals.append(answer)
        at, number = answer.end, number + 1
        assert answer.complete or at == len(data)
        to_unread_head = number > len(taken) and not answer.body  # refused after its method was understood: HEAD
        assert answer.complete or to_unread_head or not whole, "an answer cut short on a connection that was not"
        if b"close" in answer.values(b"connection"):
            assert at == len(data), "more behind the last answer"
            break
    assert len(finals) <= len(taken) + play.app.refusals
    if whole:
        assert len(finals) == len(taken) + play.app.refusals


def one(seed: int, number: int, data: bytes | None = None) -> None:
    """Play and check case `number` of `seed`; `data` instead of its stream where given."""
    random = Random(f"{seed}:{number}")
    sent = stream(random, SHAPE) if data is None else Stream(data=data, pieces=cut(random, data), sound=False)
    with no_collector():
        play = Play(random, sent)
        play.run()
        check(play)
        ended = weakref.ref(play.client.channel)
        del play
        assert ended() is None, "the channel outlives its connection, until cycles are collected"
