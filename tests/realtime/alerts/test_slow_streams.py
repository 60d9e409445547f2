"""Clients that read, but not at once: whatever comes in a burst reaches them, and nobody else waits for it."""

from collections.abc import Callable

from bakerygw.edge.line import Send
from bakerygw.realtime.alerts.fanout import READERS
from bakerygw.realtime.alerts.feed import MOMENT_S
from bakerygw.realtime.alerts.hub import SLOW_S
from bakerygw.realtime.alerts.ring import RING_BYTES, RING_FRAMES
from bakerygw.realtime.alerts.stream import Stream
from tests.realtime.stream_fakes import Instance, Reading


def stream_of(reading: Reading) -> Stream:
    assert reading.stream is not None
    return reading.stream


def alerts_of(reading: Reading) -> list[str]:
    reading.read()
    return [event.last_id for event in reading.client.events if event.kind == "alert"]


def kinds(reading: Reading) -> list[str]:
    return [f"{kind} {last_id}".rstrip() for kind, last_id in reading.read()]


def ids(first: int, last: int) -> list[str]:
    return [f"7-{offset}" for offset in range(first, last + 1)]


def at_each_write(reading: Reading, act: Callable[[], None]) -> None:
    """Call `act` behind each write for all."""
    push = reading.exchange.push

    def pushed(data: bytes) -> Send | None:
        send = push(data)
        act()
        return send

    reading.exchange.push = pushed  # type: ignore[method-assign]


def test_a_burst_beyond_the_bound_reaches_a_client_that_reads() -> None:
    here = Instance()
    reading = here.open()
    stream = stream_of(reading)
    at_each_write(reading, stream.pause)
    for _ in range(200):
        here.publish(b"x" * 60_000)
    for _ in range(300):
        here.turn(0.01)
        stream.resume()

    assert reading.end is None
    assert alerts_of(reading) == ids(1, 200)
    assert here.hub.feeds["t1"].ring._bytes <= RING_BYTES


def test_a_stream_that_is_paused_and_resumed_all_the_time_gets_each_alert_once() -> None:
    here = Instance()
    reading = here.open()
    stream = stream_of(reading)
    for number in range(3 * RING_FRAMES):
        here.publish()
        if number % 7 == 0:
            here.turn()
        if number % 1100 == 3:
            stream.pause()
            here.turn(MOMENT_S)
        elif number % 1100 == 1090:
            stream.resume()
    stream.resume()
    here.turn()
    here.turn(0.1)

    assert reading.end is None
    assert alerts_of(reading) == ids(1, 3 * RING_FRAMES)


def test_who_takes_more_while_others_are_served_does_not_wait_for_the_next_alert() -> None:
    here = Instance()
    readings = [here.open() for _ in range(2 * READERS)]
    first = stream_of(readings[0])
    first.pause()
    at_each_write(readings[-1], first.resume)
    here.publish()
    here.turn()

    assert alerts_of(readings[0]) == ids(1, 1)


def test_what_a_client_needs_that_takes_more_while_others_are_served_is_not_let_go_of() -> None:
    here = Instance()
    readings = [here.open() for _ in range(2 * READERS)]
    first = stream_of(readings[0])
    first.pause()
    for _ in range(RING_FRAMES):
        here.publish()
    here.turn()
    at_each_write(readings[-1], first.resume)
    here.publish()
    here.turn()

    assert alerts_of(readings[0]) == ids(1, RING_FRAMES + 1)
    assert here.log.reads == 0


def test_who_comes_back_while_others_are_served_gets_what_the_ring_has_at_once() -> None:
    here = Instance()
    readings = [here.open() for _ in range(2 * READERS)]
    for _ in range(5):
        here.publish()
    here.turn()
    late: list[Reading] = []

    def come() -> None:
        if not late:
            late.append(here.open("7-1"))

    at_each_write(readings[-1], come)
    here.publish()
    here.turn()

    assert alerts_of(late[0]) == ids(2, 6)


def test_a_stream_that_catches_up_is_told_how_it_stands() -> None:
    here = Instance()
    reading = here.open()
    here.hub.degraded()
    here.turn()
    assert kinds(reading) == ["hello 7-0", "degraded 7-0"]
    stream = stream_of(reading)
    stream.pause()
    here.hub.restored()
    here.turn(MOMENT_S)
    for _ in range(2 * RING_FRAMES):
        here.publish()
        here.turn()
    stream.resume()
    here.turn(0.1)

    told = kinds(reading)
    (hello,) = [event for event in reading.client.events[2:] if event.kind == "hello"]
    at = told.index(f"hello {hello.last_id}")
    assert told[:at] + told[at + 1 :] == [f"alert {it}" for it in ids(1, 2 * RING_FRAMES)]
    assert hello.json == {"epoch": 7, "offset": 2000, "recovered": True, "missed": 2000 - at}


def test_a_stream_that_was_left_behind_is_told_of_a_gap_that_began_meanwhile() -> None:
    here = Instance()
    reading = here.open()
    stream = stream_of(reading)
    stream.pause()
    here.turn(MOMENT_S)
    here.publish()
    here.history.begin_era()
    for _ in range(RING_FRAMES + 10):
        here.publish()
        here.turn()
    stream.resume()
    here.turn(0.1)

    told = kinds(reading)
    assert told[0] == "hello 7-0"
    assert told[1].startswith("gap 8-")
    assert told[-1] == f"alert 8-{RING_FRAMES + 10}"
    assert len([it for it in told if it.startswith("gap")]) == 1


def test_a_gap_that_came_live_is_not_told_again_to_who_is_left_behind_later() -> None:
    here = Instance()
    reading = here.open()
    here.history.begin_era()
    here.publish()
    here.turn()
    assert kinds(reading) == ["hello 7-0", "gap 8-0", "alert 8-1"]
    stream = stream_of(reading)
    stream.pause()
    here.turn(MOMENT_S)
    for _ in range(RING_FRAMES + 10):
        here.publish()
        here.turn()
    stream.resume()
    here.turn(0.1)

    assert alerts_of(reading) == [f"8-{offset}" for offset in range(1, RING_FRAMES + 12)]
    assert [event.kind for event in reading.client.events].count("gap") == 1


def test_one_that_is_left_behind_and_leaves_is_forgotten() -> None:
    here = Instance()
    reading = here.open()
    stream_of(reading).pause()
    here.turn(MOMENT_S)
    for _ in range(RING_FRAMES + 2):
        here.publish()
        here.turn()
    assert len(here.hub._doubted) == 1
    reading.leave()
    assert not here.hub._doubted
    here.turn(SLOW_S + 1)
    assert here.told.drops == []


def test_who_comes_back_to_a_feed_with_a_hole_does_not_wait_for_the_next_alert() -> None:
    here = Instance()
    reading = here.open()
    here.history.add(b"{}")  # not heard here
    here.publish()
    reading.leave()
    here.turn(1.0)
    again = here.open("7-0")
    here.turn(1.0)

    assert alerts_of(again) == ids(1, 2)
