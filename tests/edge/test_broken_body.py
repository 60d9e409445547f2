"""A request body that breaks off is never taken for a whole one, whenever its reader begins."""

from bakerygw.core.problem import Problem
from bakerygw.edge.body import RequestBody

BROKEN = Problem(code="bad-request", detail="Malformed chunk.", close=True)


class Connection:
    """A connection that minds nothing."""

    def body_started(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Reader:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def write(self, data: bytes) -> None:
        self.seen.append(("write", data))

    def done(self) -> None:
        self.seen.append(("done", None))

    def cut(self, reason: str) -> None:
        self.seen.append(("cut", reason))


def test_a_body_that_breaks_under_its_reader_is_cut_once() -> None:
    body, reader = RequestBody(Connection(), None), Reader()
    body.start(reader)
    body.push(b"abc")

    body.fail(BROKEN)
    body.fail(BROKEN)
    body.push(b"def")

    assert reader.seen == [("write", b"abc"), ("cut", "bad-request")]
    assert body.failure is BROKEN


def test_a_body_that_broke_before_its_reader_began_is_cut_at_once() -> None:
    body, reader = RequestBody(Connection(), None), Reader()
    body.push(b"abc")
    body.fail(BROKEN)

    assert body.whole() is None
    body.start(reader)
    body.resume()

    assert reader.seen == [("cut", "bad-request")]


def test_what_comes_behind_a_complete_body_does_not_break_it() -> None:
    body = RequestBody(Connection(), None)
    body.push(b"abc")
    body.finish()

    body.fail(BROKEN)

    assert body.failure is None
    assert body.whole() == b"abc"
