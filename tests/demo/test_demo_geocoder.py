"""The demo's map, as Nominatim would answer."""

import pytest
from demo_calls import answer_of

from bakerygw.core.places import read_places
from bakerygw.demo.geocoder import geocoder


@pytest.mark.parametrize(
    ("query", "cities"),
    [
        ("q=carrer+de+verdi+12%2C+Barcelona", ["Barcelona"]),
        ("q=PLACA+MAJOR", ["Vic"]),
        ("q=via+garibaldi", ["Torino", "Genova"]),
        ("q=via+garibaldi&limit=1", ["Torino"]),
        ("q=via+garibaldi&countrycodes=es", []),
        ("street=Sporgasse+5&city=Graz&country=Österreich", ["Graz"]),
        ("q=nowhere", []),
        ("q=", []),
        ("", []),
    ],
)
def test_the_map_finds_what_has_all_the_words(query: str, cities: list[str]) -> None:
    places = read_places(answer_of(geocoder, "GET", f"/search?{query}").body)

    assert [place.address["city"] for place in places] == cities


def test_it_has_nothing_but_a_search() -> None:
    assert answer_of(geocoder, "POST", "/search").status == 405
    assert answer_of(geocoder, "GET", "/reverse").status == 404
