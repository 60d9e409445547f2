"""A tenant's flags as other services write them, into values and back. Nothing here trusts its input."""

import json
import re
from datetime import UTC, datetime
from math import isfinite

from bakerygw.core.tenancy import ReadOnly, TenantFlags

READ_ONLY_MAX_BYTES = 2048
"""Beyond this a value is read no further."""
CHANGED_AT_MAX_BYTES = 64
"""No time is written in more."""

_MEMBER_MAX_CHARS = 128
_LATEST = 253_402_300_800.0  # the year 10000: what lies beyond was not meant as seconds
_NUMBER = re.compile(r"\+?\d+(\.\d*)?([eE]\+?\d+)?", re.ASCII)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ABSENT = TenantFlags()


def parse_flags(changed_at: bytes | None, read_only: bytes | None, demo: bool) -> TenantFlags:
    """The flags from their stored values, `None` where there is none. Raises ValueError for an unreadable time."""
    if changed_at is None and read_only is None and not demo:
        return _ABSENT
    return TenantFlags(
        changed_at=None if changed_at is None else parse_changed_at(changed_at),
        read_only=None if read_only is None else parse_read_only(read_only),
        demo=demo,
    )


def parse_changed_at(raw: bytes) -> float:
    """Unix seconds from a decimal number of them or from ISO 8601 (without an offset: UTC).

    Raises ValueError for anything else, and for times before 1970 or after 9999: among the latter are milliseconds.
    """
    if len(raw) > CHANGED_AT_MAX_BYTES:
        raise ValueError("too long for a time")
    text = raw.decode("ascii").strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    else:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= seconds < _LATEST:
        raise ValueError("no plausible time in seconds")
    return seconds


def changed_at_text(at: float) -> str:
    """Unix seconds as stored: decimal, with their fraction, the same value when read. Raises ValueError."""
    if not isfinite(at) or not 0 <= at < _LATEST:
        raise ValueError(f"no time in seconds: {at!r}")
    text = repr(float(at))
    return text if "e" not in text else f"{at:.6f}"


def parse_read_only(raw: bytes) -> ReadOnly:
    """The hold that a stored value means: a JSON object's members, or any text as the reason. Never fails."""
    cut = len(raw) > READ_ONLY_MAX_BYTES
    text = raw[:READ_ONLY_MAX_BYTES].decode("utf-8", "replace").strip()
    if text.startswith("{"):
        members = _object(text)
        if members is not None:
            return ReadOnly(
                reason=_member(members, "reason", READ_ONLY_MAX_BYTES),
                since=_member(members, "since", _MEMBER_MAX_CHARS),
                until=_member(members, "until", _MEMBER_MAX_CHARS),
                by=_member(members, "by", _MEMBER_MAX_CHARS),
            )
        if cut:
            return ReadOnly()  # half an object is nothing to show to people
    return ReadOnly(reason=_clean(text, READ_ONLY_MAX_BYTES))


def read_only_json(read_only: ReadOnly) -> str:
    """The hold as stored: a JSON object of at most READ_ONLY_MAX_BYTES with the members that are known."""
    by_name = {
        "since": _clean(read_only.since, _MEMBER_MAX_CHARS),
        "until": _clean(read_only.until, _MEMBER_MAX_CHARS),
        "by": _clean(read_only.by, _MEMBER_MAX_CHARS),
        "reason": _clean(read_only.reason, READ_ONLY_MAX_BYTES),
    }
    while True:
        text = json.dumps({name: value for name, value in by_name.items() if value}, ensure_ascii=False)
        excess = len(text.encode()) - READ_ONLY_MAX_BYTES
        if excess <= 0:
            return text
        longest = max(by_name, key=lambda name: len(by_name[name] or ""))
        value = by_name[longest] or ""
        by_name[longest] = value[: max(0, len(value) - max(1, excess // 4))]


def _object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _member(members: dict[str, object], name: str, max_chars: int) -> str | None:
    """A text member as it is, a number as its digits; what is of another kind, or empty, says nothing."""
    value = members.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return _clean(value, max_chars) if isinstance(value, str) else None


def _clean(text: str | None, max_chars: int) -> str | None:
    """Without control characters and lone surrogates, bounded; `None` if nothing is left."""
    if not text:
        return None
    printable = _CONTROLS.sub(" ", text[:max_chars]).encode("utf-8", "replace").decode()
    return printable.strip() or None
