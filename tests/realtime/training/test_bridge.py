"""What either side of a bridged WebSocket says reaches the other, until one of them, or the gateway, ends it."""

from collections.abc import Callable
from typing import get_args

import pytest

from bakerygw.realtime.held import Ending
from bakerygw.realtime.training.bridge import (
    CLOSE_S,
    ENDINGS,
    LINGER_S,
    PING_S,
    PONG_S,
    SERVICE_CLOSE_S,
    STALL_LOOK_S,
    STALL_S,
    TRIAL_S,
)
from bakerygw.realtime.training.sides import MAX_MESSAGE_BYTES
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, closing, frame
from tests.realtime.bridge_fakes import BusyClock, Span


def say(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame as a service sends it."""
    return frame(opcode, payload, fin=fin, masked=False)


def said_closing(code: int, reason: bytes = b"") -> bytes:
    return say(CLOSE, code.to_bytes(2, "big") + reason)


@pytest.mark.parametrize("payload", ["é".encode(), b"", b"x" * 125, b"x" * 126, b"x" * 65536, b"x" * MAX_MESSAGE_BYTES])
def test_messages_pass_both_ways_as_what_they_are(payload: bytes) -> None:
    span = Span()
    for opcode in (TEXT, BINARY):
        span.client.says(frame(opcode, payload))
        assert span.service.hears() == [(opcode, payload)]
        span.service.says(say(opcode, payload))
        assert span.client.hears() == [(opcode, payload)]
    assert (span.notes.messages_in, span.notes.messages_out) == (2, 2)


def test_frames_to_a_service_are_masked_and_those_to_a_client_are_not() -> None:
    span = Span()
    span.client.says(frame(TEXT, b"x"))
    span.service.says(say(TEXT, b"x"))
    assert (span.service.wire.value()[1] >> 7, span.client.wire.value()[1] >> 7) == (1, 0)


def test_bytes_may_come_one_by_one() -> None:
    span = Span()
    for byte in frame(TEXT, "grüße".encode(), fin=False) + frame(PING) + frame(CONTINUATION, b"!" * 200):
        span.client.says(bytes([byte]))
    assert span.service.hears() == [(TEXT, "grüße".encode() + b"!" * 200)]
    assert span.client.hears() == [(PONG, b"")]


def test_what_came_with_the_services_101_is_passed_on() -> None:
    assert Span(say(TEXT, b"early") + say(BINARY)).client.hears() == [(TEXT, b"early"), (BINARY, b"")]


def test_a_service_is_read_from_the_beginning() -> None:
    assert Span().service.wire.reading


# Closing.


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1014, 3000, 4999])
def test_a_clients_close_is_answered_and_passed_on(code: int) -> None:
    span = Span()
    span.client.says(closing(code, b"why"))
    assert span.client.hears() == span.service.hears() == [(CLOSE, code.to_bytes(2, "big") + b"why")]
    assert span.client.wire.closing
    assert not span.client.wire.aborted, "the close frame may be on its way"
    assert span.client.wire.producer is None
    assert span.ended == (code, "client", None)


@pytest.mark.parametrize("code", [1000, 1001, 1012, 4999])
def test_a_services_close_is_answered_and_passed_on(code: int) -> None:
    span = Span()
    span.service.says(said_closing(code, b"why"))
    assert span.client.hears() == span.service.hears() == [(CLOSE, code.to_bytes(2, "big") + b"why")]
    assert not span.client.wire.closing
    span.client.says(closing(code, b"why"))
    assert span.client.wire.closing
    assert span.ended == (code, "service", None)


def test_a_close_without_a_code_stays_without() -> None:
    span = Span()
    span.client.says(frame(CLOSE))
    assert span.service.hears() == [(CLOSE, b"")]
    assert span.ended == (1005, "client", None)


def test_when_both_are_gone_the_place_is_free_and_nothing_is_left_to_do() -> None:
    span = Span()
    span.client.says(frame(TEXT, b"x"), closing(1000))
    span.service.says(said_closing(1000))
    span.client.is_lost()
    assert span.place.left == 0
    span.service.is_lost()
    assert span.place.left == 1
    assert span.telemetry.told == ["opened", (1000, 1, 0)]
    assert span.clock.getDelayedCalls() == []


def test_messages_behind_a_close_frame_are_dropped() -> None:
    span = Span()
    span.client.says(closing(1000), frame(TEXT, b"late"))
    assert [opcode for opcode, _ in span.service.hears()] == [CLOSE]
    span.service.says(say(TEXT, b"too late"))
    assert [opcode for opcode, _ in span.client.hears()] == [CLOSE]


def test_a_lost_client_is_1001_and_a_second() -> None:
    span = Span()
    span.client.is_lost()
    assert span.service.hears() == [(CLOSE, b"\x03\xe9")]
    span.clock.advance(SERVICE_CLOSE_S)
    assert span.service.wire.aborted
    assert span.ended == (1006, "client", None)


def test_a_lost_service_is_1011() -> None:
    span = Span()
    span.service.is_lost()
    assert span.client.hears() == [(CLOSE, b"\x03\xf3the service was lost")]
    assert span.ended == (1006, "service", None)


@pytest.mark.parametrize("why", get_args(Ending))
def test_the_gateways_own_endings_are_told_to_both(why: Ending) -> None:
    span = Span()
    span.bridge.end(why)
    code, reason = ENDINGS[why]
    assert span.client.hears() == [(CLOSE, code.to_bytes(2, "big") + reason)]
    assert span.service.hears() == [(CLOSE, b"\x03\xe9")]
    assert span.ended == (code, "gateway", why)
    span.client.says(closing(code))
    assert span.client.wire.closing


def test_who_does_not_answer_a_close_is_dropped() -> None:
    span = Span()
    span.bridge.end("draining")
    span.clock.advance(CLOSE_S)
    assert (span.client.wire.aborted, span.service.wire.aborted) == (True, True)


def test_a_service_that_does_not_hang_up_is_dropped() -> None:
    span = Span()
    span.service.says(said_closing(1000))
    span.clock.advance(SERVICE_CLOSE_S)
    assert span.service.wire.aborted


# Breaking the rules.


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"x", rsv=1), 1002),
        (frame(BINARY, bytes(MAX_MESSAGE_BYTES + 1)), 1009),
        (frame(BINARY, bytes(MAX_MESSAGE_BYTES), fin=False) + frame(CONTINUATION, b"x", fin=False), 1009),
        (closing(1006), 1002),
    ],
)
def test_a_client_that_breaks_them_is_told_and_dropped_and_the_service_is_left(sent: bytes, code: int) -> None:
    span = Span()
    span.client.says(sent, frame(TEXT, b"more"))
    ((opcode, payload),) = span.client.hears()
    assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, code)
    assert span.service.hears() == [(CLOSE, b"\x03\xe9")]
    span.clock.advance(LINGER_S)
    assert span.client.wire.aborted or span.client.wire.closing
    assert span.ended == (code, "gateway", None)


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (say(BINARY, bytes(MAX_MESSAGE_BYTES + 1)), 1009, 1009),
        (say(TEXT, b"\xff"), 1007, 1011),
        (frame(TEXT, b"masked"), 1002, 1011),
    ],
)
def test_a_service_that_breaks_them_is_told_and_the_client_knows_whose_fault_it_was(
    sent: bytes, code: int, told: int
) -> None:
    span = Span()
    span.service.says(sent)
    ((_, payload),) = span.service.hears()
    assert int.from_bytes(payload[:2], "big") == code
    ((_, payload),) = span.client.hears()
    assert int.from_bytes(payload[:2], "big") == told


def test_what_a_liar_calls_a_ping_of_a_gigabyte_is_not_kept() -> None:
    span = Span()
    span.client.says(b"\x89\xff" + (1 << 30).to_bytes(8, "big") + bytes(4))
    for _ in range(50):
        span.client.says(bytes(65536))
    assert sum(map(len, span.client.leg.control_frame_data)) == 0  # type: ignore[attr-defined]
    assert span.client.leg.data == b""


def test_fragments_without_end_that_hold_nothing_take_no_memory() -> None:
    span = Span()
    span.client.says(frame(TEXT, b"a", fin=False))
    span.client.says(frame(CONTINUATION, fin=False) * 5000)
    assert span.client.leg._message == b"a"
    span.client.says(frame(CONTINUATION, b"b"))
    assert span.service.hears() == [(TEXT, b"ab")]


# Pace.


def test_who_sends_ten_thousand_frames_at_once_leaves_others_their_turn() -> None:
    span = Span(clock=BusyClock())
    span.client.says(b"".join(frame(TEXT, b"%d" % number) for number in range(10_000)))
    first = len(span.service.hears())
    assert 100 < first < 2000
    assert not span.client.wire.reading
    span.client.says(frame(TEXT, b"behind"))
    span.clock.advance(0)
    heard = span.service.hears()
    assert heard[-1] == (TEXT, b"behind")
    assert [int(payload) for _, payload in heard[:-1]] == list(range(first, 10_000))
    assert span.client.wire.reading


def test_what_was_read_already_waits_too_while_the_other_side_does_not_take() -> None:
    span = Span()
    span.service.stalls()
    span.client.says(frame(TEXT, b"x" * 100) * 600)
    assert len(span.service.hears()) < 25
    span.clock.advance(1)
    assert span.service.hears() == []
    span.service.takes()
    span.clock.advance(0)
    assert len(span.service.hears()) > 550
    assert span.client.wire.reading


def test_what_was_read_before_the_end_is_heard_before_it() -> None:
    span = Span()
    span.service.stalls()
    span.client.says(frame(TEXT, b"x" * 100) * 600, closing(4000))
    span.client.is_lost()
    heard = span.service.hears()
    assert (len(heard), heard[-1]) == (601, (CLOSE, b"\x0f\xa0"))
    assert span.ended == (4000, "client", None)


def test_so_it_is_if_the_other_side_stops_taking_while_it_is_heard() -> None:
    span = Span()
    write = span.service.wire.write

    def fill(data: bytes) -> None:
        write(data)
        span.service.stalls()

    span.service.wire.write = fill  # type: ignore[method-assign]
    span.client.says(frame(TEXT, b"x" * 100) * 600, closing(4000))
    span.client.is_lost()

    heard = span.service.hears()
    assert (len(heard), heard[-1]) == (601, (CLOSE, b"\x0f\xa0"))
    assert span.ended == (4000, "client", None)


def test_a_client_that_does_not_take_stops_the_service() -> None:
    span = Span()
    span.client.stalls()
    assert (span.service.wire.reading, span.client.wire.reading) == (False, True)
    span.client.takes()
    assert span.service.wire.reading


def test_a_service_that_does_not_take_stops_the_client() -> None:
    span = Span()
    span.service.stalls()
    assert (span.client.wire.reading, span.service.wire.reading) == (False, True)
    span.service.takes()
    assert span.client.wire.reading


def test_a_service_that_takes_nothing_for_long_is_dropped() -> None:
    span = Span()
    span.service.stalls()
    span.clock.pump([1.0] * int(STALL_S + 10))
    assert span.service.wire.aborted
    assert span.ended == (1006, "service", "service-stalled")
    span.service.is_lost()
    assert span.client.hears()[-1] == (CLOSE, b"\x03\xf3the service was lost")
    assert span.client.wire.reading


def test_so_is_one_that_blocks_at_each_write_while_its_client_is_slow_for_a_moment() -> None:
    span = Span()
    span.service.stalls()
    timers = len(span.clock.getDelayedCalls())
    span.service.stalls()
    assert len(span.clock.getDelayedCalls()) == timers
    span.client.stalls()
    span.client.takes()
    span.clock.pump([1.0] * int(STALL_S + 10))
    assert span.ended == (1006, "service", "service-stalled")


def test_behind_a_stalled_service_a_client_is_asked_whether_it_is_there_and_need_not_answer() -> None:
    span = Span()
    span.service.stalls()
    span.clock.pump([STALL_LOOK_S] * 3)
    assert span.client.hears() == [(PING, b"")] * 3
    span.clock.pump([1.0] * int(STALL_S - 3 * STALL_LOOK_S - 1))
    assert not span.client.wire.aborted
    span.service.takes()
    span.client.hears()
    span.clock.advance(STALL_LOOK_S)
    assert span.client.hears() == []


def test_a_client_that_takes_nothing_itself_is_not_asked() -> None:
    span = Span()
    span.service.stalls()
    span.client.stalls()
    span.clock.pump([STALL_LOOK_S] * 3)
    assert span.client.hears() == []


def test_one_that_takes_a_little_now_and_then_is_not() -> None:
    span = Span()
    for _ in range(5):
        span.service.stalls()
        span.clock.pump([1.0] * int(STALL_S - 10))
        span.service.takes()
        span.client.says(frame(PONG))
        span.service.says(say(PONG))
    assert not span.service.wire.aborted


def test_pings_are_answered_here_and_not_passed_on() -> None:
    span = Span()
    span.client.says(frame(PING, b"a"), frame(PING, b"b"))
    assert span.client.hears() == [(PONG, b"a"), (PONG, b"b")]
    assert span.service.hears() == []


def test_pings_of_a_client_that_reads_nothing_pile_up_no_pongs() -> None:
    span = Span()
    span.client.stalls()
    for number in range(1000):
        span.client.says(frame(PING, b"%d" % number))
    assert span.client.hears() == []
    span.client.takes()
    assert span.client.hears() == [(PONG, b"999")]


# What counts for the service's URL.


def verdicts(span: Span) -> list[str]:
    return ["well" if failure is None else failure.error for failure in span.onward.judgements]


@pytest.mark.parametrize(
    "ends",
    [
        lambda span: span.service.says(say(TEXT, b"hello")) or span.service.is_lost(),
        lambda span: span.service.says(said_closing(1011)),
        lambda span: span.service.says(say(BINARY, bytes(MAX_MESSAGE_BYTES + 1))),
        lambda span: span.service.says(frame(TEXT, b"masked")),
        lambda span: span.client.says(closing(1000)),
        lambda span: span.client.says(frame(TEXT, b"\xff")),
        lambda span: span.client.is_lost(),
        lambda span: span.client.says(frame(TEXT, b"die")) or span.service.is_lost(),
        lambda span: span.bridge.end("draining"),
        lambda span: span.clock.advance(TRIAL_S) or span.service.is_lost(),
    ],
    ids=["loss-after-word", "close", "too-big", "fault", "client-closed", "client-fault", "client-lost",
         "client-spoke", "gateway", "lasted"],
)  # fmt: skip
def test_these_are_no_failure_of_a_service_that_has_accepted(ends: Callable[[Span], object]) -> None:
    span = Span()
    assert verdicts(span) == []
    ends(span)
    assert verdicts(span) == ["well"]
    span.service.is_lost()
    span.client.is_lost()
    span.clock.advance(TRIAL_S)
    assert verdicts(span) == ["well"]


def test_a_service_that_accepts_and_is_gone_has_failed() -> None:
    span = Span()
    span.clock.advance(TRIAL_S - 0.1)
    span.service.says(say(PING))
    span.service.is_lost()
    assert verdicts(span) == ["connection_terminated"]
    span.client.says(closing(1011))
    span.client.is_lost()
    assert verdicts(span) == ["connection_terminated"]
    assert span.clock.getDelayedCalls() == []


# Signs of life.


def test_both_are_pinged_and_any_sign_of_life_will_do() -> None:
    span = Span()
    for _ in range(4):
        span.clock.advance(PING_S - (PONG_S if _ else 0))
        assert (span.client.hears(), span.service.hears()) == ([(PING, b"")], [(PING, b"")])
        span.client.says(frame(PONG))
        span.service.says(say(PING))
        span.service.hears()
        span.clock.advance(PONG_S)
    assert span.ended == (1006, "client", None)
    assert not span.notes.ended


@pytest.mark.parametrize("silent", ["client", "service"])
def test_who_gives_none_is_dropped(silent: str) -> None:
    span = Span()
    span.clock.advance(PING_S)
    (span.service if silent == "client" else span.client).says(say(PONG) if silent == "client" else frame(PONG))
    span.clock.advance(PONG_S)
    assert (span.client.wire.aborted, span.service.wire.aborted) == (silent == "client", silent == "service")
    assert span.ended == (1006, silent, f"{silent}-silent")


def test_who_is_not_read_owes_no_sign_of_life() -> None:
    span = Span()
    span.service.stalls()
    span.clock.advance(PING_S)
    span.service.says(say(PONG))
    span.clock.advance(PONG_S)
    assert not span.client.wire.aborted


def test_who_is_being_closed_has_its_time_for_that_though_it_gave_none() -> None:
    span = Span()
    span.clock.pump([PING_S, PONG_S - 1])
    span.bridge.end("draining")
    span.clock.advance(2)
    assert not span.client.wire.aborted
    assert not span.service.wire.aborted
    span.clock.advance(CLOSE_S)
    assert span.client.wire.aborted
    assert span.service.wire.aborted
    assert span.ended == (1012, "gateway", "draining")
    span.client.is_lost()
    span.service.is_lost()
    assert span.place.left == 1
    assert span.clock.getDelayedCalls() == []
