"""Alerts that go straight to the socket of a client for which nothing waits, and never past what does."""

import pytest

from bakerygw.core.sse import HEARTBEAT
from bakerygw.realtime.alerts.wheel import SLOTS
from tests.realtime.stream_fakes import Instance, Reading


class Kernel:
    """Takes so many bytes of whatever is sent, and is one line with what else is written to the client."""

    def __init__(self, reading: Reading, takes: int = 1_000_000) -> None:
        self._line, self.takes = reading.exchange.written, takes
        self.sent = 0
        self.fails: OSError | None = None

    def send(self, data: bytes) -> int:
        if self.fails is not None:
            raise self.fails
        self.sent += 1
        self._line.append(data[: self.takes])
        return min(len(data), self.takes)


def opened(here: Instance) -> tuple[Reading, Kernel]:
    """A stream whose first alert has left, and nothing waits behind it."""
    reading = here.open()
    kernel = Kernel(reading)
    reading.exchange.send = kernel.send
    here.publish()
    here.turn()
    reading.read()
    return reading, kernel


def test_an_alert_goes_straight_to_the_kernel_where_nothing_waits() -> None:
    here = Instance()
    reading, kernel = opened(here)
    pushed = reading.exchange.pushes

    for _ in range(3):
        here.publish()
        here.turn()

    assert (kernel.sent, reading.exchange.pushes) == (3, pushed)
    assert reading.read() == [("alert", "7-2"), ("alert", "7-3"), ("alert", "7-4")]


@pytest.mark.parametrize("takes", [0, 1, 20])
def test_what_the_kernel_does_not_take_waits_and_all_else_behind_it(takes: int) -> None:
    here = Instance()
    reading, kernel = opened(here)
    kernel.takes, reading.exchange.send = takes, None
    for _ in range(2):
        here.publish()
        here.turn()

    assert kernel.sent == 1
    assert reading.read() == [("alert", "7-2"), ("alert", "7-3")]


@pytest.mark.parametrize("error", [BlockingIOError(), ConnectionResetError()])
def test_an_error_of_the_socket_is_left_to_the_connection(error: OSError) -> None:
    here = Instance()
    reading, kernel = opened(here)
    kernel.fails = error
    pushed = reading.exchange.pushes

    here.publish()
    here.turn()

    assert reading.exchange.pushes == pushed + 1
    assert reading.read() == [("alert", "7-2")]


def test_an_alert_does_not_overtake_a_heartbeat_that_has_not_left() -> None:
    here = Instance()
    reading, kernel = opened(here)
    pushed = reading.exchange.pushes
    for _ in range(SLOTS + 1):
        here.turn(15.0 / SLOTS)
    assert reading.exchange.written == [HEARTBEAT]
    here.publish()
    here.turn()

    assert (kernel.sent, reading.exchange.pushes) == (0, pushed + 1)


def test_nothing_is_sent_to_a_stream_that_has_ended() -> None:
    here = Instance()
    reading, kernel = opened(here)
    held = reading.place.held
    assert held is not None
    held.end("draining")
    here.publish()
    here.turn()

    assert kernel.sent == 0


def test_all_that_was_given_is_counted_when_the_stream_ends() -> None:
    here = Instance()
    reading, _ = opened(here)
    for _ in range(2):
        here.publish()
        here.turn()
    reading.leave()

    assert reading.exchange.carried == 3 * len(b"event: alert\nid: 7-1\ndata: {}\n\n")
