"""Tenant flags as anyone may have written them."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.flags import (
    LIMIT_MAX_BYTES,
    READ_ONLY_MAX_BYTES,
    changed_at_text,
    limit_text,
    parse_changed_at,
    parse_flags,
    parse_limit,
    parse_read_only,
    read_only_json,
)
from bakerygw.core.limits import TenantLimit, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"1735689599", 1735689599.0),
        (b"1735689599.25\n", 1735689599.25),
        (b"1.735689599e9", 1735689599.0),
        (b"0", 0.0),
        (b"2024-12-31T23:59:59Z", 1735689599.0),
        (b"2024-12-31T23:59:59.500000+00:00", 1735689599.5),
        (b"2025-01-01T01:59:59+02:00", 1735689599.0),
        (b"2024-12-31T23:59:59", 1735689599.0),
        (b"2024-12-31", 1735603200.0),
    ],
)
def test_a_time_is_read_from_seconds_and_from_iso(raw: bytes, seconds: float) -> None:
    assert parse_changed_at(raw) == seconds


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"inf",
        b"nan",
        b"-inf",
        b"1e999",
        b"-5",
        b"yesterday",
        b"1_735_689_599",
        b"0x10",
        b"1735689599000",
        b"true",
        b"\xff\xfe",
        "\u0661\u0662".encode(),
        b"2024-13-01T00:00:00Z",
        b"0001-01-01T00:00:00+14:00",
        b"9999-12-31T23:59:59-14:00",
        b"1" + b" " * 70,
    ],
)
def test_what_is_no_plausible_time_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of its kinds
        parse_changed_at(raw)


@given(st.floats(0, 4e9))
def test_a_written_time_reads_back_the_same(at: float) -> None:
    assert parse_changed_at(changed_at_text(at).encode()) == pytest.approx(at, abs=1e-6)


def test_a_time_is_written_with_its_fraction() -> None:
    assert changed_at_text(1735689599.123456) == "1735689599.123456"
    assert changed_at_text(1735689599) == "1735689599.0"


@pytest.mark.parametrize("at", [float("inf"), float("nan"), -1.0, 1e15])
def test_no_time_is_written_for_what_is_none(at: float) -> None:
    with pytest.raises(ValueError, match="no time"):
        changed_at_text(at)


def test_a_hold_is_read_from_json() -> None:
    raw = b'{"reason": "unpaid", "since": "2025-01-01T00:00:00Z", "until": null, "by": "ops", "more": 1}'
    assert parse_read_only(raw) == ReadOnly(reason="unpaid", since="2025-01-01T00:00:00Z", by="ops")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"unpaid invoice", "unpaid invoice"),
        (b"1", "1"),
        (b"", None),
        (b"[1]", "[1]"),
        (b'"quoted"', '"quoted"'),
        (b"{broken", "{broken"),
        (b"a\r\nb\x00\x1b[31mc\xe2\x80\xa8d", "a b [31mc d"),
        (b"\xff", "\ufffd"),
        (b'{"reason": {"a": 1}}', None),
        (b'{"reason": 7, "by": true}', "7"),
    ],
)
def test_any_value_is_a_hold_and_text_is_its_reason(raw: bytes, reason: str | None) -> None:
    assert parse_read_only(raw) == ReadOnly(reason=reason)


def test_a_json_bomb_is_a_hold() -> None:
    assert parse_read_only(b'{"a":' * 400).reason is not None


def test_an_oversized_hold_is_cut_and_half_an_object_is_not_shown() -> None:
    assert parse_read_only(b"x" * 5000).reason == "x" * READ_ONLY_MAX_BYTES
    assert parse_read_only(json.dumps({"reason": "x" * 5000}).encode()) == ReadOnly()


texts = st.none() | st.text(max_size=3000)


@given(texts, texts, texts, texts)
def test_a_written_hold_is_bounded_and_reads_back_clean(
    reason: str | None, since: str | None, until: str | None, by: str | None
) -> None:
    raw = read_only_json(ReadOnly(reason=reason, since=since, until=until, by=by)).encode()
    assert len(raw) <= READ_ONLY_MAX_BYTES
    read = parse_read_only(raw)
    assert parse_read_only(read_only_json(read).encode()) == read
    assert all(char >= " " for value in (read.reason, read.since, read.until, read.by) for char in value or "")


def test_a_written_hold_reads_back_the_same() -> None:
    hold = ReadOnly(reason='Zahlung "offen" \u2013 \u20ac', since="2025-01-01T00:00:00Z", until="x", by="ops")
    assert parse_read_only(read_only_json(hold).encode()) == hold


def test_a_lone_surrogate_is_replaced() -> None:
    assert parse_read_only(read_only_json(ReadOnly(reason="a\ud800b")).encode()).reason == "a?b"


def test_flags_are_joined_and_absent_ones_are_none() -> None:
    assert parse_flags(None, None, False) == TenantFlags()
    assert parse_flags(b"12.5", b"", True) == TenantFlags(changed_at=12.5, read_only=ReadOnly(), demo=True)
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_flags(b"soon", None, False)


def limit(**changes: object) -> TenantLimit:
    rule = tenant_rule(50, 60, shadow=False, until=1_900_000_000.0)
    return replace(TenantLimit(rule=rule, reason="floods", since="2026-01-01T00:00:00Z", by="ops"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "one",
    [
        limit(),
        limit(reason=None, since=None, by=None),
        limit(rule=tenant_rule(1_000_000, 86_400, shadow=True, until=1_900_000_001.0)),
        limit(reason="Grüße \U0001f956 {}[] \"'"),
    ],
)
def test_a_limit_for_a_time_comes_back_as_it_was_stored(one: TenantLimit) -> None:
    assert parse_limit(limit_text(one).encode()) == one


def test_a_limits_end_is_rounded_up_to_a_second() -> None:
    late = limit(rule=tenant_rule(1, 1, shadow=False, until=1_900_000_000.2))
    stored = parse_limit(limit_text(late).encode())
    assert stored is not None
    assert stored.rule.until == 1_900_000_001.0


@pytest.mark.parametrize("reason", ["x" * 9000, "ä" * 9000, "\U0001f956" * 9000, '"' * 9000, "\\" * 9000])
def test_a_limits_texts_never_make_it_unreadable(reason: str) -> None:
    text = limit_text(limit(reason=reason, by=reason, since=reason))
    stored = parse_limit(text.encode())
    assert len(text.encode()) <= LIMIT_MAX_BYTES
    assert stored is not None
    assert stored.rule == limit().rule


@given(raw=st.binary(max_size=60))
def test_no_bytes_break_the_reader_of_limits(raw: bytes) -> None:
    parse_limit(raw)
    parse_limit(b"5 60 0 1900000000 " + raw)
