"""A client that sends more frames than it may is read more slowly: it loses nothing, and is not closed."""

import pytest

from bakerygw.realtime.training.bridge import PING_S, PONG_S
from bakerygw.realtime.training.budget import LEAST_REST_S, FrameBudget
from bakerygw.realtime.training.legs import PIECE_BYTES
from tests.frames import CLOSE, CONTINUATION, PING, PONG, TEXT, closing, frame
from tests.realtime.bridge_fakes import Span

RATE = 1000
OVERDRAWN = round(RATE * LEAST_REST_S) + 1
"""So many more than there may be, and nothing more is read."""
PIECE = PIECE_BYTES // len(frame(TEXT, b"x"))
"""So many frames are read together."""


def numbered(first: int, behind: int) -> bytes:
    return b"".join(frame(TEXT, b"%d" % number) for number in range(first, behind))


def test_the_frames_of_a_second_may_come_at_once() -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(numbered(0, RATE))
    assert len(span.service.hears()) == RATE
    assert span.client.wire.reading


def test_more_are_read_at_the_pace_that_is_allowed_and_none_is_lost() -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(numbered(0, 5000))
    heard = span.service.hears()
    for tenths in range(40):
        assert 0 <= len(heard) - RATE - tenths * RATE // 10 <= PIECE
        assert not span.client.wire.reading
        span.clock.advance(0.1)
        heard += span.service.hears()
    span.clock.advance(0.1)
    assert [int(payload) for _, payload in heard] == list(range(5000))
    assert 3 < span.notes.unread_s <= 4
    assert span.client.wire.reading
    assert span.client.hears() == []


def test_what_is_not_used_counts_for_a_second_and_no_longer() -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(numbered(0, RATE))
    span.clock.advance(20)
    span.client.says(numbered(0, RATE))
    assert span.client.wire.reading
    span.client.says(frame(TEXT, b"x") * OVERDRAWN)
    assert not span.client.wire.reading


@pytest.mark.parametrize(
    "sent", [frame(PING, b"x"), frame(PONG), frame(CONTINUATION, b"x", fin=False)], ids=["ping", "pong", "fragment"]
)
def test_pings_pongs_and_fragments_count(sent: bytes) -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(frame(TEXT, b"", fin=False), sent * (RATE - 1))
    assert span.client.wire.reading
    span.client.says(sent * OVERDRAWN)
    assert not span.client.wire.reading
    span.clock.advance(0.02)
    assert span.client.wire.reading


def test_they_count_behind_a_close_frame_too() -> None:
    span = Span(frames_per_second=RATE)
    span.bridge.end("disconnected")
    span.client.says(frame(TEXT, b"x") * (RATE + OVERDRAWN))
    assert not span.client.wire.reading


def test_a_service_may_send_any_number_and_so_may_clients_without_a_budget() -> None:
    span, other = Span(frames_per_second=RATE), Span()
    span.service.says(frame(TEXT, b"x", masked=False) * 5000)
    other.client.says(frame(TEXT, b"x") * 5000)
    assert (len(span.client.hears()), len(other.service.hears())) == (5000, 5000)
    assert span.notes.unread_s == other.notes.unread_s == 0


@pytest.mark.parametrize("frames", [100, PING_S + PONG_S], ids=["not read", "read again for a second"])
def test_who_is_read_slowly_is_not_taken_for_dead_and_is_asked_all_the_same(frames: float) -> None:
    span = Span(frames_per_second=1)
    span.client.says(frame(TEXT, b"x") * int(frames))
    span.clock.advance(PING_S)
    assert [opcode for opcode, _ in span.client.hears()] == [PING]
    span.clock.advance(PONG_S)
    assert not span.client.wire.aborted


def test_what_waits_for_its_time_waits_for_the_service_too() -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(numbered(0, 3000))
    span.service.hears()
    span.service.stalls()
    span.clock.pump([0.1] * 50)
    assert span.service.hears() == []
    span.service.takes()
    span.clock.pump([0.1] * 50)
    assert span.notes.messages_in == 3000


def test_what_was_read_is_heard_at_once_when_its_client_is_lost() -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(numbered(0, 3000), closing(4000))
    span.client.is_lost()
    heard = span.service.hears()
    assert (len(heard), heard[-1]) == (3001, (CLOSE, b"\x0f\xa0"))
    assert [call for call in span.clock.getDelayedCalls() if call.getTime() < 1.0] == []


def test_more_from_a_transport_that_does_not_stop_at_once_waits_behind() -> None:
    span = Span(frames_per_second=RATE)
    span.client.says(frame(TEXT, b"x") * (RATE + OVERDRAWN))
    span.client.says(frame(TEXT, b"behind"))
    assert span.notes.messages_in == RATE + OVERDRAWN
    span.clock.advance(0.02)
    assert span.service.hears()[-1] == (TEXT, b"behind")


def test_a_clock_that_is_set_back_delays_nothing() -> None:
    budget = FrameBudget(RATE)
    assert budget.spend(RATE, 10_000.0) == 0
    assert budget.spend(OVERDRAWN, 5_000.0) < OVERDRAWN / RATE + LEAST_REST_S
