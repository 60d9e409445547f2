"""What a geocoder said: only what is documented passes, and only within its bounds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.places import MAX_NAME, PlacesUnreadable, parse_json, read_places


def item(**changes: Any) -> dict[str, Any]:
    return {"display_name": "Forn", "lat": "41.4", "lon": "2.17", "type": "bakery", **changes}


def test_only_documented_members_pass() -> None:
    full = item(
        place_id=1, licence="x", osm_id=2, importance=0.5, boundingbox=["41.1", "41.2", "2.1", "2.2"],
        address={"city": "Barcelona", "ISO3166-2-lvl4": "ES-CT", "evil": "x"}, extratags={"phone": "1"},
    )  # fmt: skip
    (place,) = read_places([full])

    assert place.as_json() == {
        "display_name": "Forn", "lat": 41.4, "lon": 2.17, "boundingbox": [41.1, 41.2, 2.1, 2.2],
        "type": "bakery", "importance": 0.5, "address": {"city": "Barcelona"},
    }  # fmt: skip
    assert read_places([place.as_json()]) == (place,)


def test_what_is_wrong_about_a_place_beside_name_and_position_is_left_out() -> None:
    wrong = item(type=7, importance=2, boundingbox=["a", 1, 2, 3], address={"city": {"x": 1}, "road": "", "town": 3})

    assert read_places([wrong])[0].as_json() == {
        "display_name": "Forn", "lat": 41.4, "lon": 2.17, "type": "", "address": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [
        {}, None, "x", [1], [None], [{}], [item(lat="90.1")], [item(lon="-181")], [item(lat="nan")], [item(lat="inf")],
        [item(lat=True)], [item(lat=None)], [item(lat="1" * 40)], [item(lat=10**400)], [item(display_name="")],
        [item(display_name=7)], [item(lat="x")],
    ],
)  # fmt: skip
def test_what_has_no_name_or_position_is_unreadable(document: object) -> None:
    with pytest.raises(PlacesUnreadable):
        read_places(document)


def test_text_is_one_line_and_bounded() -> None:
    (place,) = read_places([item(display_name="a\r\n\x1b" + "x" * 5000, address={"road": "y" * 5000})])

    assert place.display_name.startswith("a???x")
    assert len(place.display_name) == MAX_NAME
    assert len(place.address["road"]) == 256


def test_too_many_places_are_cut() -> None:
    assert len(read_places([item()] * 1000)) == 10


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff", b"[" * 100_000, b"[NaN]", b"[Infinity]"])
def test_what_is_no_json_is_unreadable(data: bytes) -> None:
    with pytest.raises(PlacesUnreadable):
        parse_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.lists(st.fixed_dictionaries({"display_name": JSON, "lat": JSON, "lon": JSON, "address": JSON}), max_size=3))
def test_whatever_was_said_can_be_sent_on_or_is_unreadable(document: Any) -> None:
    try:
        places = read_places(document)
    except PlacesUnreadable:
        return
    json.dumps([place.as_json() for place in places], allow_nan=False).encode()
