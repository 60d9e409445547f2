"""A connection to a service in memory, against random answers: it believes what the reference reads, or nothing."""

from random import Random

from bakerygw.ports import UpstreamFailed
from tests.fuzz.answers import AnswerStream, answer_stream
from tests.fuzz.reference import Fault, Incomplete, ReadAnswer, read_answer
from tests.upstream.upstream_fakes import Line, RecordingSink

WAITS_S = 100
"""Longer than any deadline of a connection to a service."""


class Played:
    """One exchange: what the connection made of the bytes."""

    def __init__(self, method: str, sent: AnswerStream) -> None:
        self.method, self.sent = method, sent
        self.line = Line()
        self.failure: BaseException | None = None
        self.status: int | None = None
        self.fields: object = None
        self.sink: RecordingSink | None = None
        waiting = self.line.send(method)
        waiting.addCallbacks(self._answered, self._failed)
        self.fed = 0
        """Bytes up to the end of the exchange, or of all."""
        self.freed = False
        for piece in sent.pieces:
            if not self.line.transport.aborted:
                self.fed += len(piece) * (not self.freed)
                self.line.connection.dataReceived(piece)
                self.freed = self.line.owner.heard[:1] == ["freed"]
        self.cleanly = sent.closes and not sent.resets
        self.open = not sent.closes and not self.line.transport.aborted and not self.freed
        if self.open:
            self.line.clock.advance(WAITS_S)
            assert self.line.transport.aborted, "an exchange without end"
        self.heard = tuple(self.line.owner.heard)
        self.line.lose(cleanly=self.cleanly)

    def _answered(self, response: object) -> None:
        self.status = response.status  # type: ignore[attr-defined]
        self.fields = response.headers  # type: ignore[attr-defined]
        self.sink = RecordingSink()
        response.body.start(self.sink)  # type: ignore[attr-defined]

    def _failed(self, failure: object) -> None:
        self.failure = failure.value  # type: ignore[attr-defined]


def check(played: Played) -> None:
    """The answer is the reference's, whole or cut; or it was refused."""
    assert played.line.clock.getDelayedCalls() == []
    assert (played.status is None) == isinstance(played.failure, UpstreamFailed)
    sent = played.sent
    try:
        read: ReadAnswer | None = read_answer(sent.data, to_head=played.method == "HEAD", closed=played.cleanly)
    except (Fault, Incomplete):
        read = None
    if played.sink is None:
        assert not sent.sound, f"a sound answer was refused: {played.failure}"
        return
    assert read is not None, "an answer that is none"
    assert (played.status, played.fields) == (read.status, read.fields)
    assert played.sink.end is not None, "a body without end"
    if played.sink.end == "done":
        assert read.complete, "a cut body looks whole"
        assert played.sink.data == read.body
    else:
        assert read.body.startswith(played.sink.data), "bytes that are not of the body"
        assert not (sent.sound and read.complete)
    if played.freed:
        assert read.complete
        assert not read.until_close
        assert read.end == played.fed, "used again with bytes left over"
        assert ("gone" in played.heard) == (played.fed < len(sent.data))


def one(seed: int, number: int) -> None:
    """Play and check case `number` of `seed`."""
    random = Random(f"{seed}:{number}")
    method = random.choice(("GET", "GET", "GET", "HEAD", "POST"))
    check(Played(method, answer_stream(random, to_head=method == "HEAD")))
