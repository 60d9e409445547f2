import hashlib
import json

import pytest

from bakerygw.core.alerts import MAX_ALERT_BYTES, AlertRefused, Position, parse_alert, parse_position


def test_an_alert_is_known_by_its_bytes():
    payload = b'{"alert_id": "a-1", "message": "m"}'
    alert = parse_alert("t", payload)
    assert (alert.tenant_id, alert.payload, alert.alert_id, alert.notify) == ("t", payload, "a-1", False)
    assert alert.digest == hashlib.sha256(payload).hexdigest()


@pytest.mark.parametrize("alert_id", [None, 5, "", "x" * 129, ["a"]])
def test_what_is_no_id_is_none(alert_id):
    assert parse_alert("t", json.dumps({"alert_id": alert_id}).encode()).alert_id is None


@pytest.mark.parametrize(
    ("channels", "notify"),
    [
        (["email"], True),
        (["sse", "whatsapp"], True),
        (["sse"], False),
        ([], False),
        ("email", False),
        ([["email"], 5], False),
        (["email", 5], True),
        ({"email": 1}, False),
    ],
)
def test_its_channels_say_whether_it_is_for_the_notification_service(channels, notify):
    assert parse_alert("t", json.dumps({"channels": channels}).encode()).notify == notify


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"5",
        b"[]",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\n"}',
        b'\xef\xbb\xbf{"a": 1}',
        b"[" * 60_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-le"),
    ],
)
def test_what_a_browser_could_not_read_is_refused(payload):
    with pytest.raises(AlertRefused, match="invalid"):
        parse_alert("t", payload)


def test_what_is_too_large_is_refused_unread():
    assert parse_alert("t", b'{"a": 1}' + b" " * (MAX_ALERT_BYTES - 8)).alert_id is None
    with pytest.raises(AlertRefused, match="too-large"):
        parse_alert("t", b"x" * (MAX_ALERT_BYTES + 1))


@pytest.mark.parametrize("text", ["1-0", "1764000000000-12", "9999999999999999-9999999999999999"])
def test_a_place_is_read_as_it_is_written(text):
    position = parse_position(text.encode())
    assert isinstance(position, Position)
    assert position.text == text


@pytest.mark.parametrize(
    "text", [b"", b"1", b"-1", b"1-", b"01-1", b"1-1\n", b" 1-1", b"1-1-1", b"1-" + b"9" * 17, b"a-b"]
)
def test_any_other_text_names_none(text):
    assert parse_position(text) is None
