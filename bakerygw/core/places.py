"""What a geocoder found: places out of anybody's JSON, strictly read and bounded."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bakerygw.core.documents import one_line
from bakerygw.core.geocoding import MAX_RESULTS

MAX_NAME: Final = 1024
"""Characters of a place's whole name; more are cut off."""
MAX_PART: Final = 256
"""Characters of one part of its address."""
_MAX_NUMBER: Final = 32
"""Characters of a number written as text."""

ADDRESS_PARTS: Final = frozenset(
    re.findall(
        r"\w+",
        """
    continent country country_code region state state_district county municipality city town village city_district
    district borough suburb subdivision hamlet croft isolated_dwelling neighbourhood allotments quarter city_block
    residential farm farmyard industrial commercial retail road house_number house_name postcode emergency historic
    military natural landuse place railway man_made aerialway boundary amenity aeroway club craft leisure office
    mountain_pass shop tourism bridge tunnel waterway
    """,
    )
)
"""Parts of an address that are passed on (Nominatim, "addressdetails"); their kind depends on the country."""


class PlacesUnreadable(ValueError):
    """This is no list of places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One result."""

    display_name: str
    lat: float
    """Degrees north, WGS 84."""
    lon: float
    """Degrees east."""
    boundingbox: tuple[float, float, float, float] | None
    """South, north, west, east."""
    type: str
    """What it is in OpenStreetMap's words, e.g. `house` or `bakery`; may be empty."""
    importance: float | None
    """From 0 to 1."""
    address: Mapping[str, str]
    """By `ADDRESS_PARTS`."""

    def as_json(self) -> dict[str, object]:
        """As callers get it; members that are not known are left out."""
        document: dict[str, object] = {"display_name": self.display_name, "lat": self.lat, "lon": self.lon}
        if self.boundingbox is not None:
            document["boundingbox"] = list(self.boundingbox)
        document["type"] = self.type
        if self.importance is not None:
            document["importance"] = self.importance
        document["address"] = dict(self.address)
        return document


def read_places(document: object) -> tuple[Place, ...]:
    """The places of a list as Nominatim writes it (`format=jsonv2`), or of `Place.as_json`; the first of too many.

    Raises `PlacesUnreadable` if it is no such list or a place has no name or position. What else is wrong about a
    place is left out, and so is everything that nobody has asked for.
    """
    if not isinstance(document, list):
        raise PlacesUnreadable("no list")
    return tuple(_place(item) for item in document[:MAX_RESULTS])


def parse_json(data: bytes) -> object:
    """A JSON value (RFC 8259). Raises `PlacesUnreadable`."""
    try:
        return json.loads(data.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise PlacesUnreadable("no JSON") from error


def _place(item: object) -> Place:
    if not isinstance(item, dict):
        raise PlacesUnreadable("no object")
    name = _line(item.get("display_name"), MAX_NAME)
    lat, lon = _degrees(item.get("lat"), 90), _degrees(item.get("lon"), 180)
    if not name or lat is None or lon is None:
        raise PlacesUnreadable("no name or position")
    return Place(
        display_name=name,
        lat=lat,
        lon=lon,
        boundingbox=_box(item.get("boundingbox")),
        type=_line(item.get("type"), MAX_PART),
        importance=_number(item.get("importance"), 0.0, 1.0),
        address=_address(item.get("address")),
    )


def _line(given: object, max_chars: int) -> str:
    """One line of text, cut off where it is too long; empty for what is no text."""
    return one_line(given[:max_chars]).strip() if isinstance(given, str) else ""


def _number(given: object, lowest: float, highest: float) -> float | None:
    """A number within bounds, given as one or as text."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    if isinstance(given, str) and len(given) > _MAX_NUMBER:
        return None
    try:
        number = float(given)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and lowest <= number <= highest else None


def _degrees(given: object, most: float) -> float | None:
    return _number(given, -most, most)


def _box(given: object) -> tuple[float, float, float, float] | None:
    if not isinstance(given, list) or len(given) != 4:
        return None
    south, north = _degrees(given[0], 90), _degrees(given[1], 90)
    west, east = _degrees(given[2], 180), _degrees(given[3], 180)
    if south is None or north is None or west is None or east is None:
        return None
    return south, north, west, east


def _address(given: object) -> Mapping[str, str]:
    if not isinstance(given, dict):
        return {}
    parts = {name: _line(given.get(name), MAX_PART) for name in given if name in ADDRESS_PARTS}
    return {name: text for name, text in parts.items() if text}


def _no_number(text: str) -> float:
    raise ValueError(text)
