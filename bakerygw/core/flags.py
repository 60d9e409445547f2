"""A tenant's flags as other services write them, into values and back. Nothing here trusts its input."""

import json
import re
from datetime import UTC, datetime
from math import ceil, isfinite

from bakerygw.core.limits import MAX_REQUESTS, MAX_WINDOW_S, TenantLimit, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags

READ_ONLY_MAX_BYTES = 2048
"""Beyond this a value is read no further."""
CHANGED_AT_MAX_BYTES = 64
"""No time is written in more."""
LIMIT_MAX_BYTES = 1024
"""Of a limit for a time; a longer value is none."""

_MEMBER_MAX_CHARS = 128
_LATEST = 253_402_300_800.0  # the year 10000: what lies beyond was not meant as seconds
_NUMBER = re.compile(r"\+?\d+(\.\d*)?([eE]\+?\d+)?", re.ASCII)
_LIMIT = re.compile(rb"(\d{1,7}) (\d{1,5}) ([01]) (\d{1,12})(?: (.*))?", re.DOTALL)
_REASON_MAX_CHARS = 500
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ABSENT = TenantFlags()


def parse_flags(
    changed_at: bytes | None, read_only: bytes | None, demo: bool, limit: bytes | None = None
) -> TenantFlags:
    """The flags from their stored values, `None` where there is none. Raises ValueError for an unreadable time."""
    if changed_at is None and read_only is None and not demo and limit is None:
        return _ABSENT
    return TenantFlags(
        changed_at=None if changed_at is None else parse_changed_at(changed_at),
        read_only=None if read_only is None else parse_read_only(read_only),
        demo=demo,
        limit=None if limit is None else parse_limit(limit),
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


def parse_limit(raw: bytes) -> TenantLimit | None:
    """The limit for a time that a stored value means; `None` for anything that is not exactly one.

    The form is `<requests> <window in seconds> <1: shadow> <end in Unix seconds> <JSON object, optional>`, so that
    stores/admission.lua, which reads the same, needs no JSON.
    """
    found = _LIMIT.fullmatch(raw) if len(raw) <= LIMIT_MAX_BYTES else None
    if found is None:
        return None
    requests, window_s, until = int(found[1]), int(found[2]), float(found[4])
    if not 1 <= requests <= MAX_REQUESTS or not 1 <= window_s <= MAX_WINDOW_S or until >= _LATEST:
        return None
    members = _object((found[5] or b"").decode("utf-8", "replace")) or {}
    return TenantLimit(
        rule=tenant_rule(requests, window_s, shadow=found[3] == b"1", until=until),
        reason=_member(members, "reason", _REASON_MAX_CHARS),
        since=_member(members, "since", _MEMBER_MAX_CHARS),
        by=_member(members, "by", _MEMBER_MAX_CHARS),
    )


def limit_text(limit: TenantLimit) -> str:
    """The limit as stored, in at most LIMIT_MAX_BYTES; its end rounded up to a second. Raises ValueError."""
    rule = limit.rule
    if rule.until is None or not isfinite(rule.until) or not 0 <= rule.until <= _LATEST - 1:
        raise ValueError(f"no end: {rule.until!r}")
    numbers = f"{rule.requests} {rule.window_s} {int(rule.shadow)} {ceil(rule.until)}"
    reason = _clean(limit.reason, _REASON_MAX_CHARS)
    rest = {"since": _clean(limit.since, _MEMBER_MAX_CHARS), "by": _clean(limit.by, _MEMBER_MAX_CHARS)}
    while True:
        members = {name: value for name, value in {"reason": reason, **rest}.items() if value}
        text = f"{numbers} {json.dumps(members, ensure_ascii=False)}"
        excess = len(text.encode()) - LIMIT_MAX_BYTES
        if excess <= 0:
            return text
        if reason:
            reason = reason[: max(0, len(reason) - max(1, excess // 4))]
        else:
            rest = {}


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
