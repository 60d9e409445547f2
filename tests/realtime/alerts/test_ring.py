"""What a ring keeps, and for whom."""

import pytest

from bakerygw.realtime.alerts.ring import BURST, Frame, Ring


def frame(offset: int, size: int = 10) -> Frame:
    return Frame(b"x" * size, offset, float(offset))


def ring_of(frames: int, size: int = 10, *, max_frames: int = 4, max_bytes: int = 1000) -> Ring:
    ring = Ring(0, max_frames, max_bytes)
    for offset in range(1, frames + 1):
        ring.append(frame(offset, size))
    return ring


def kept(ring: Ring) -> int:
    return ring.end - ring.first


@pytest.mark.parametrize(("size", "number"), [(10, 4), (250, 4), (251, 3), (2000, 0)])
def test_what_nobody_needs_is_kept_within_both_bounds(size: int, number: int) -> None:
    ring = ring_of(100, size)
    ring.shed(ring.end, ring.end)
    assert kept(ring) == number
    assert ring.reach == 100 - number


def test_what_a_reader_that_takes_frames_needs_is_kept_whatever_its_size() -> None:
    ring = ring_of(1000)
    ring.shed(7, ring.end)
    assert ring.first == 7


@pytest.mark.parametrize(("size", "number"), [(10, 4 * BURST), (1000 // 4, 4 * BURST), (1000, BURST)])
def test_for_who_is_blocked_but_for_a_moment_more_is_kept_up_to_a_bound(size: int, number: int) -> None:
    ring = ring_of(1000, size)
    ring.shed(ring.end, 0)
    assert kept(ring) == number


def test_nothing_is_kept_in_front_of_what_somebody_needs() -> None:
    ring = ring_of(20)
    ring.shed(ring.end, 10)
    assert ring.first == 10


@pytest.mark.parametrize(("max_bytes", "number"), [(1, 1), (10, 1), (19, 1), (20, 2), (10_000, 20)])
def test_some_are_as_many_as_fit_but_at_least_one(max_bytes: int, number: int) -> None:
    ring = ring_of(30, max_frames=100)
    assert [frame.offset for frame in ring.some(10, max_bytes)] == list(range(11, 11 + number))


def test_where_an_offset_goes_on_is_known_within_the_run() -> None:
    ring = ring_of(10, max_frames=100)
    ring.begin_run(frame(0))
    for offset in (1, 2, 2):  # the last one is an event of the gateway's own
        ring.append(frame(offset))

    assert [ring.behind(offset) for offset in (0, 1, 2, 3)] == [11, 12, 14, 14]
    assert ring_of(3).behind(-1) is None


def test_what_a_run_no_longer_has_is_not_known() -> None:
    ring = ring_of(10)
    ring.shed(ring.end, ring.end)
    assert [ring.behind(offset) for offset in (5, 6, 9)] == [None, 6, 9]


def test_what_is_let_go_of_before_a_run_is_nothing_of_it() -> None:
    ring = ring_of(3, max_frames=4)
    ring.begin_run(frame(7))
    for offset in (8, 9, 10):
        ring.append(frame(offset))
    ring.shed(ring.end, ring.end)
    assert (ring.first, ring.reach, ring.behind(7)) == (3, 7, 4)
    ring.append(frame(11))
    ring.shed(ring.end, ring.end)
    assert (ring.first, ring.reach, ring.behind(7)) == (4, 7, 4)
    ring.append(frame(12))
    ring.shed(ring.end, ring.end)
    assert (ring.first, ring.reach, ring.behind(7), ring.behind(8)) == (5, 8, None, 5)


def test_it_is_known_when_what_somebody_lacks_came() -> None:
    ring = ring_of(10)
    ring.shed(ring.end, ring.end)
    assert [ring.since(number) for number in (6, 9, 10)] == [7.0, 10.0, None]
