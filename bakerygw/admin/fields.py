"""The bodies of operators' calls: strict JSON, and refusals that name the member."""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final, NoReturn

from bakerygw.core.documents import SHOWN_CHARS, is_printable, one_line
from bakerygw.core.problem import Problem, Refused, refuse

RETRY_AFTER_S: Final = 1
MAX_TIME_CHARS: Final = 40


def read_object(body: bytes, fields: Collection[str]) -> dict[str, object]:
    """The members of a JSON object (RFC 8259), or none of an empty body. Raises `Refused` bad-request.

    Members not in `fields` and repeated members are refused.
    """
    if not body:
        return {}
    try:
        document = json.loads(body.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise refuse("bad-request", "The body must be one JSON object in UTF-8.", reason="admin-json") from error
    if not isinstance(document, dict):
        raise refuse("bad-request", "The body must be a JSON object.", reason="admin-json")
    for name in document:
        if name not in fields:
            allowed = ", ".join(fields) or "none"
            bad_field(name, f"is not known here; known: {allowed}")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated member")
    return members


def text_of(members: dict[str, object], name: str, max_chars: int) -> str | None:
    """One line of text; `None` if it is missing, null or empty. Raises `Refused` bad-request."""
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        bad_field(name, "must be text")
    if len(value) > max_chars:
        bad_field(name, f"must have at most {max_chars} characters")
    if not is_printable(value):
        bad_field(name, "must be one line of printable text")
    return value.strip() or None


def whole_number(value: object, name: str, least: int, most: int) -> int:
    """A whole number within bounds. Raises `Refused` bad-request."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bad_field(name, f"must be a whole number from {least} to {most}")
    return value


def time_of(members: dict[str, object], name: str) -> datetime | None:
    """A moment in UTC; `None` if it is missing, null or empty. Raises `Refused` bad-request.

    It has an offset: without one it would mean another moment at every reader.
    """
    text = text_of(members, name, MAX_TIME_CHARS)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC) if moment.utcoffset() is not None else None
    except (ValueError, OverflowError):
        in_utc = None
    if in_utc is None:
        bad_field(name, "must be an ISO 8601 time with an offset, e.g. 2030-01-31T18:00:00Z")
    return in_utc


def bad_field(field: str, fault: str) -> NoReturn:
    """Refuse the body for one of its members. Raises `Refused` bad-request."""
    shown = one_line(field[:SHOWN_CHARS])
    raise refuse("bad-request", f"{shown} {fault}.", reason="admin-field", field=shown)


def state_unavailable(detail: str) -> Refused:
    """The refusal of a call that the store did not answer."""
    return Refused(Problem(code="state-unavailable", detail=detail, retry_after_s=RETRY_AFTER_S))
