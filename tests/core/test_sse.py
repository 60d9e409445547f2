import re

from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core import sse
from tests.edge.edge_fakes import dechunked
from tests.realtime.sse_client import EventClient

TEXT = st.text(alphabet=st.sampled_from("ab:{}\r\n \x00é  ")) | st.text(alphabet=st.characters(codec="utf-8"))


@given(st.lists(st.tuples(TEXT, st.sampled_from([None, "1-1", "17-9"]))), st.integers(1, 7))
def test_a_client_reads_back_what_was_framed_with_every_line_end_as_one(
    events: list[tuple[str, str | None]], piece: int
) -> None:
    wire = b"".join(sse.event("alert", text.encode(), event_id) for text, event_id in events)
    client = EventClient()

    for at in range(0, len(wire), piece):
        client.feed(wire[at : at + piece])

    assert [event.kind for event in client.events] == ["alert"] * len(events)
    assert [event.data for event in client.events] == [re.sub("\r\n|\r", "\n", text) for text, _ in events]
    assert client.last_id == next((event_id for _, event_id in reversed(events) if event_id), "")


@given(st.binary())
def test_no_payload_is_read_as_another_field_or_event(payload: bytes) -> None:
    client = EventClient()

    client.feed(sse.event("alert", payload, "1-1") + sse.event("alert", b"next", "1-2"))

    assert [(event.kind, event.last_id) for event in client.events] == [("alert", "1-1"), ("alert", "1-2")]
    assert client.retry_ms is None
    assert client.comments == 0


def test_an_event_without_an_id_leaves_the_last_one() -> None:
    client = EventClient()

    client.feed(sse.event("alert", b"{}", "1-1") + sse.control("bye", {"reason": "draining"}))

    assert client.last_id == "1-1"
    assert client.events[-1].json == {"reason": "draining"}


def test_heartbeats_and_waits_are_no_events() -> None:
    client = EventClient()

    client.feed(sse.HEARTBEAT + sse.retry(1700))

    assert (client.events, client.comments, client.retry_ms) == ([], 1, 1700)


@given(st.binary(min_size=1))
def test_a_chunk_holds_its_piece(data: bytes) -> None:
    assert dechunked(sse.chunk(data) + b"0\r\n\r\n") == (data, b"")
