"""How `POST /api/v1/geocode` is described in the OpenAPI document."""

from typing import Final

from bakerygw.core.geocoding import DEFAULT_RESULTS, MAX_COUNTRIES, MAX_RESULTS, MAX_TEXT, PARTS
from bakerygw.core.places import ADDRESS_PARTS

Json = dict[str, object]

_TEXT: Final[Json] = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_CODE: Final[Json] = {"type": "string", "pattern": "^[A-Za-z]{2}$"}


def geocode_request() -> Json:
    """The request body."""
    country: Json = {
        "description": "Search there only: ISO 3166-1 alpha-2, one code or several.",
        "oneOf": [_CODE, {"type": "array", "items": _CODE, "minItems": 1, "maxItems": MAX_COUNTRIES}],
    }
    language = "A language tag (BCP 47) for names in the answer; the first of `Accept-Language` if missing."
    common: Json = {
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_RESULTS, "default": DEFAULT_RESULTS},
        "country": country,
        "language": {"type": "string", "description": language, "examples": ["es", "pt-BR"]},
    }
    free: Json = {"required": ["query"], "properties": {"query": _TEXT, **common}}
    parts: Json = {"minProperties": 1, "properties": {**dict.fromkeys(PARTS, _TEXT), **common}}
    parts["anyOf"] = [{"required": [name]} for name in PARTS]
    forms = [{"type": "object", "additionalProperties": False, **form} for form in (free, parts)]
    schema: Json = {"oneOf": forms, "description": "A free text, or an address in parts; at most 8 KiB."}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def geocode_answer() -> Json:
    """The 200."""
    schema: Json = {"$ref": "#/components/schemas/Places"}
    return {
        "description": "The places that fit, the best first; none if nothing is found.",
        "content": {"application/json": {"schema": schema}},
    }


def geocode_schemas() -> Json:
    """The components that the answer names."""
    degrees: Json = {"type": "number"}
    place: Json = {
        "type": "object",
        "required": ["display_name", "lat", "lon", "type", "address"],
        "properties": {
            "display_name": {"type": "string"},
            "lat": {**degrees, "minimum": -90, "maximum": 90},
            "lon": {**degrees, "minimum": -180, "maximum": 180},
            "boundingbox": {
                "type": "array",
                "items": degrees,
                "minItems": 4,
                "maxItems": 4,
                "description": "South, north, west, east.",
            },
            "type": {"type": "string", "description": "What it is in OpenStreetMap's words.", "examples": ["bakery"]},
            "importance": {"type": "number", "minimum": 0, "maximum": 1},
            "address": {
                "type": "object",
                "description": "By parts; which there are depends on the country.",
                "properties": {name: {"type": "string"} for name in sorted(ADDRESS_PARTS)},
                "additionalProperties": False,
            },
        },
    }
    places: Json = {
        "type": "object",
        "required": ["results", "attribution", "cached"],
        "properties": {
            "results": {"type": "array", "items": {"$ref": "#/components/schemas/Place"}, "maxItems": MAX_RESULTS},
            "attribution": {"type": "string", "description": "To be shown wherever the results are."},
            "cached": {"type": "boolean", "description": "The map service was not asked for this answer."},
        },
    }
    return {"Place": place, "Places": places}
