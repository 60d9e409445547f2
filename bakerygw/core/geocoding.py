"""What may be asked of the geocoder: a strictly read question, and what it is known by."""

import hashlib
import json
import re
import unicodedata
from typing import Final

from bakerygw.core.documents import bad_member, is_printable, read_object
from bakerygw.core.problem import refuse
from bakerygw.core.values import value

MAX_TEXT: Final = 256
"""Characters of a query, or of one part of an address."""
MAX_RESULTS: Final = 10
DEFAULT_RESULTS: Final = 5
MAX_COUNTRIES: Final = 20

OUTCOMES: Final = ("local", "shared", "asked", "failed", "busy", "paused", "unavailable", "off")
"""How requests end, for metrics: found in this process, found in Redis, asked; or why there is no answer."""

PARTS: Final = ("street", "city", "county", "state", "country_name", "postalcode")
"""A structured address, by the names that callers use for its parts."""
MEMBERS: Final = ("query", *PARTS, "limit", "country", "language")

_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,4}")
_QUALITY: Final = re.compile(r"\s*;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", re.ASCII | re.IGNORECASE)
_MAX_ACCEPT_LANGUAGE: Final = 1024


@value
class Question:
    """Where is this?"""

    query: str | None
    """Free text; `None` where `address` has it in parts."""
    address: tuple[tuple[str, str], ...]
    """(one of `PARTS`, text), in their order; empty with `query`."""
    limit: int
    """So many results at most."""
    countries: tuple[str, ...]
    """ISO 3166-1 alpha-2 codes in lower case to which the search is limited, sorted; empty: everywhere."""
    language: str | None
    """The language (RFC 5646) of names in the answer; `None`: as they are called on the spot."""

    def digest(self) -> str:
        """The same for questions that mean the same, and nothing that tells what was asked (SHA-256)."""
        parts = [(name, text.casefold()) for name, text in self.address]
        language = self.language.lower() if self.language is not None else None
        said = (self.query.casefold() if self.query is not None else None, parts, self.limit, self.countries, language)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def read_question(body: bytes, accept_language: bytes | None) -> Question:
    """The question in a request's body; without `language` it asks for the caller's first `Accept-Language`.

    Raises `Refused` bad-request, with the member in `field` that is wrong.
    """
    members = read_object(body, MEMBERS)
    query = _text(members, "query")
    address = tuple((name, text) for name in PARTS if (text := _text(members, name)) is not None)
    if query is not None and address:
        raise bad_member(address[0][0], "goes with a structured address; send that or query, not both")
    if query is None and not address:
        detail = f"Send query, or a structured address of {', '.join(PARTS)}."
        raise refuse("bad-request", detail, reason="member", field="query")
    return Question(
        query=query,
        address=address,
        limit=_limit(members),
        countries=_countries(members),
        language=_language(members) or first_language(accept_language),
    )


def first_language(accept_language: bytes | None) -> str | None:
    """The language that a caller prefers to all others (RFC 9110 12.5.4); `None` if that can't be told."""
    if accept_language is None or len(accept_language) > _MAX_ACCEPT_LANGUAGE:
        return None
    best: str | None = None
    best_quality = 0.0
    for item in accept_language.decode("latin-1").split(","):
        name, semicolon, weight = item.partition(";")
        found = _QUALITY.fullmatch(semicolon + weight) if semicolon else None
        quality = 1.0 if not semicolon else float(found[1]) if found is not None else 0.0
        if quality > best_quality and _LANGUAGE.fullmatch(name.strip()) is not None:
            best, best_quality = name.strip(), quality
    return best


def _text(members: dict[str, object], name: str) -> str | None:
    """A text of one line, its spaces single and its characters composed (Unicode NFC)."""
    given = members.get(name)
    if given is None:
        return None
    if not isinstance(given, str):
        raise bad_member(name, "must be text")
    if len(given) > MAX_TEXT:
        raise bad_member(name, f"must have at most {MAX_TEXT} characters")
    if not is_printable(given):
        raise bad_member(name, "must be one line of printable text")
    text = " ".join(unicodedata.normalize("NFC", given).split())
    if not text:
        raise bad_member(name, f"must have 1 to {MAX_TEXT} characters that are no spaces")
    return text


def _limit(members: dict[str, object]) -> int:
    given = members.get("limit")
    if given is None:
        return DEFAULT_RESULTS
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MAX_RESULTS:
        raise bad_member("limit", f"must be a whole number from 1 to {MAX_RESULTS}")
    return given


def _countries(members: dict[str, object]) -> tuple[str, ...]:
    given = members.get("country")
    if given is None:
        return ()
    codes = given if isinstance(given, list) else [given]
    if not 1 <= len(codes) <= MAX_COUNTRIES:
        raise bad_member("country", f"must have 1 to {MAX_COUNTRIES} codes")
    known: set[str] = set()
    for code in codes:
        if not isinstance(code, str) or _COUNTRY.fullmatch(code) is None:
            raise bad_member("country", "must be a code of two letters (ISO 3166-1 alpha-2), or a list of such codes")
        known.add(code.lower())
    return tuple(sorted(known))


def _language(members: dict[str, object]) -> str | None:
    given = members.get("language")
    if given is None:
        return None
    if not isinstance(given, str) or _LANGUAGE.fullmatch(given) is None:
        raise bad_member("language", "must be a language tag such as es or pt-BR (BCP 47)")
    return given
