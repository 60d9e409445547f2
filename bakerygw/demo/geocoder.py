"""The demo's map: as much of Nominatim's search as shows geocoding without the Internet."""

import unicodedata
from dataclasses import dataclass
from typing import Final

from bakerygw.demo.web import Answer, Call, ServiceError, not_allowed

MAX_RESULTS: Final = 40
PARTS: Final = ("street", "city", "county", "state", "country", "postalcode")


@dataclass(frozen=True, slots=True)
class Spot:
    """A place on the map."""

    number: str
    road: str
    city: str
    postcode: str
    country: str
    code: str
    lat: float
    lon: float

    @property
    def name(self) -> str:
        """Everything that it can be found by."""
        return f"{self.number}, {self.road}, {self.city}, {self.postcode}, {self.country}"

    def document(self) -> dict[str, object]:
        """As `format=jsonv2` with `addressdetails=1` has it."""
        return {
            "lat": f"{self.lat:.7f}",
            "lon": f"{self.lon:.7f}",
            "category": "building",
            "type": "house",
            "importance": 0.0001,
            "display_name": self.name,
            "address": {
                "house_number": self.number,
                "road": self.road,
                "city": self.city,
                "postcode": self.postcode,
                "country": self.country,
                "country_code": self.code,
            },
            "boundingbox": [f"{at:.7f}" for at in self._box()],
        }

    def _box(self) -> tuple[float, float, float, float]:
        return self.lat - 0.00005, self.lat + 0.00005, self.lon - 0.00005, self.lon + 0.00005


SPOTS: Final = (
    Spot("12", "Carrer de Verdi", "Barcelona", "08012", "España", "es", 41.4036, 2.1572),
    Spot("3", "Plaça Major", "Vic", "08500", "España", "es", 41.9304, 2.2549),
    Spot("21", "Rue Cler", "Paris", "75007", "France", "fr", 48.8566, 2.3060),
    Spot("7", "Grand-Rue", "Strasbourg", "67000", "France", "fr", 48.5810, 7.7440),
    Spot("5", "Sporgasse", "Graz", "8010", "Österreich", "at", 47.0718, 15.4390),
    Spot("18", "Marienplatz", "München", "80331", "Deutschland", "de", 48.1374, 11.5755),
    Spot("9", "Via Garibaldi", "Torino", "10122", "Italia", "it", 45.0729, 7.6828),
    Spot("33", "Via Garibaldi", "Genova", "16124", "Italia", "it", 44.4109, 8.9320),
)


def geocoder(call: Call) -> Answer:
    """`GET /search`. Raises `ServiceError`."""
    if call.path != ("search",):
        raise ServiceError(404, "this map has /search alone")
    if call.method != "GET":
        raise not_allowed("GET", "HEAD")
    wanted = _words(" ".join([call.query.get("q", ""), *(call.query.get(part, "") for part in PARTS)]))
    codes = {code for code in call.query.get("countrycodes", "").lower().split(",") if code}
    found = [spot for spot in SPOTS if wanted and wanted <= _words(spot.name) and (not codes or spot.code in codes)]
    return Answer(body=[spot.document() for spot in found[: call.number("limit", 10, MAX_RESULTS)]])


def _words(text: str) -> set[str]:
    """The words of a text, without case, accents and punctuation."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return set("".join(char if char.isalnum() else " " for char in letters if not unicodedata.combining(char)).split())
