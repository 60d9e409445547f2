"""Whoever looks for lost alerts must find them: the reader of the storm, on streams that are right and wrong."""

import json

import pytest

from tests.chaos.reading import GAP, EventParser, Ledger, Position, Reader, in_turn, unannounced


def alert(position, number, tenant="t"):
    return {"event": "alert", "id": position, "data": json.dumps({"seq": number, "tenant": tenant, "at": 0.0})}


def hello(position, *, recovered=False):
    return {"event": "hello", "id": position, "data": json.dumps({"recovered": recovered, "missed": 0})}


def gap(position, reason="epoch"):
    return {"event": "gap", "id": position, "data": json.dumps({"reason": reason})}


BROKEN = {"event": "hello", "data": json.dumps({"recovered": False, "missed": None})}
CUT = None


def faults_of(*events, keeps=100):
    ledger = Ledger("t", keeps)
    reader = Reader("r", ledger, clock=lambda: 1.0)
    reader.connected()
    for fields in events:
        if fields is CUT:
            reader.connected()
        else:
            reader.take(fields)
    return ledger.faults


@pytest.mark.parametrize(
    "events",
    [
        (hello("1-5"), alert("1-6", 0), alert("1-7", 1)),
        (hello("1-5"), alert("1-6", 0), CUT, hello("1-6", recovered=True), alert("1-7", 1)),
        (hello("1-5"), gap("2-9"), alert("2-10", 0)),
        (hello("1-5"), CUT, BROKEN, gap("2-0"), alert("2-1", 0)),
        (hello("1-5"), alert("1-6", 0), hello("1-6", recovered=True), alert("1-7", 1)),
        (hello("1-5"), gap("2-0"), alert("2-1", 0), hello("2-1"), alert("2-2", 1)),
        (hello("1-5"), CUT, BROKEN, gap("1-106", "trimmed"), alert("1-107", 0)),
    ],
)
def test_what_follows_or_is_announced_is_right(events):
    assert faults_of(*events) == []


@pytest.mark.parametrize(
    "events",
    [
        (hello("1-5"), alert("1-7", 0)),
        (hello("1-5"), alert("1-6", 0), alert("1-6", 0)),
        (hello("1-5"), alert("1-6", 0), alert("1-5", 1)),
        (hello("1-5"), alert("2-1", 0)),
        (hello("1-5"), alert("1-6", 0, "another")),
        (hello("1-5"), alert("1-6", 0), alert("1-7", 0)),
        (hello("1-5"), CUT, hello("1-6", recovered=True)),
        (hello("1-5"), alert("1-6", 0), hello("1-7", recovered=True)),
        (hello("1-5"), CUT, BROKEN, alert("1-6", 0)),
        (hello("1-5"), gap("1-4")),
        (hello("1-5"), CUT, BROKEN, gap("1-105", "trimmed")),
        (alert("1-1", 0),),
    ],
)
def test_holes_repeats_and_strangers_are_found(events):
    assert faults_of(*events) != []


def test_two_readers_that_disagree_are_found():
    ledger = Ledger("t", 100)
    for number in (0, 1):
        reader = Reader("r", ledger, clock=lambda: 1.0)
        reader.connected()
        reader.take(hello("1-0"))
        reader.take(alert("1-1", number))
    assert ledger.faults != []


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ([1, 2, 4, 5], True),
        ([1, 2, GAP, 4, 5], False),
        ([GAP, 1, 2, 4, 5, GAP], True),
        ([4, 5], False),
        ([1, 2], False),
        ([], False),
    ],
)
def test_a_lost_alert_needs_a_gap_where_it_was(seen, found):
    assert unannounced(3, seen, slack=0) is found


def test_an_alert_that_was_posted_for_long_is_no_sign_of_the_place_where_others_were_lost():
    seen = [1, 2, GAP, 3, 8, 9]  # 4 to 7 were lost, and 3 was posted until it was stored

    assert unannounced(5, seen, slack=1)
    assert not unannounced(5, in_turn(seen, {3}), slack=1)


def test_events_are_read_however_they_are_cut_into_pieces():
    text = b"retry: 5\n\n:\n\nevent: alert\nid: 7-3\ndata: a\ndata: b\n\nevent: bye\ndata: {}\n\n"
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (text[:11], text[11:40], text[40:]))
    parser = EventParser()
    events = [event for at in range(len(framed)) for event in parser.feed(framed[at : at + 1])]
    assert events == [{"event": "alert", "id": "7-3", "data": "a\nb"}, {"event": "bye", "data": "{}"}]
    assert str(Position.of("7-3")) == "7-3"
