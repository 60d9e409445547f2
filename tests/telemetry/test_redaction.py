"""Secrets, addresses and hostile values on their way into a log record."""

import pytest

from bakerygw.telemetry.redaction import MAX_TEXT, Redactor, secret_key

KEY = "bkry_xnlgr7i4ux47h5vd_0yBdWpTyZNkFCP8FMLPNO97HR4dk5q4EbsnzaHtZEFY_96e42215"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyLTEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Bearer opaque-value", "opaque-value"),
        ("bearer%20opaque-value", "opaque-value"),
        ("Authorization: Basic dXNlcjpwdw==", "dXNlcjpwdw"),
        ("{'authorization': 'Basic dXNlcjpwdw=='}", "dXNlcjpwdw"),
        ("(b'Cookie', b'session=abcdef; b=c')", "abcdef"),
        ("Set-Cookie: sid=abcdef; HttpOnly", "abcdef"),
        ("b'Authorization': [b'Basic abcdef']", "abcdef"),
        (f"bad token {JWT} seen", "eyJzdWIi"),
        (f"cut short: {JWT[:30]}", "hbGciOi"),
        (f"no such key {KEY}", "0yBdWpTyZ"),
        (f"cut short: {KEY[:40]}", "0yBdWpTyZ"),
        (f"GET /x/{KEY}/y", "0yBdWpTyZ"),
        (f"x%2F{KEY.replace('_', '%5F')}", "0yBdWpTyZ"),
        (f"x%2F{KEY.replace('_', '%255f')}", "0yBdWpTyZ"),
        ("%62kry_" + KEY[5:], "0yBdWpTyZ"),
        (KEY.upper(), "0YBDWPTYZ"),
        (f"X-Till: {KEY}", "0yBdWpTyZ"),
        ("ApiKey opaque-value", "opaque-value"),
        ("apikey%20opaque-value", "opaque-value"),
        ("GET /s?token=abcdef&x=1 HTTP/1.1", "abcdef"),
        ("/s?x=1&ticket=abcdef", "abcdef"),
        ("/s?access_token=abcdef", "abcdef"),
        ("refresh_token=abcdef&grant=x", "abcdef"),
        ("password='two words'", "words"),
        ('{"password": "abcdef", "n": 1}', "abcdef"),
        (r'"{\"refresh_token\": \"abcdef\"}"', "abcdef"),
        ("api-key=abcdef", "abcdef"),
        ("next=%2Fs%3Ftoken%3Dabcdef%26x%3D1", "abcdef"),
        ("next=%252Fs%253Fticket%253Dabcdef", "abcdef"),
        ("/s?%74oken=abcdef", "abcdef"),
        ("redis://:abcdef@cache:6379/0", "abcdef"),
        ("redis://user:abc@def@cache", "abc"),
        ("ann.baker@example.com asked", "ann.baker"),
        ("email=ann.baker%40example.com", "ann.baker"),
    ],
)
def test_secret_is_masked_in_text_and_masking_again_changes_nothing(text: str, secret: str) -> None:
    shown = Redactor().text(text)
    assert secret not in shown
    assert "***" in shown
    assert Redactor().text(shown) == shown


@pytest.mark.parametrize(
    "text",
    ["connection refused", "/api/v1/sales/2024-01-01", "status 401 for GET /x?page=2", "10.0.0.1:8000", "50% off"],
)
def test_harmless_text_is_kept(text: str) -> None:
    assert Redactor().text(text) == text


def test_what_surrounds_a_secret_is_kept() -> None:
    assert Redactor().text("/s?a=1&token=abc&b=2") == "/s?a=1&token=***&b=2"
    assert Redactor().text("bob@example.com") == "b***@example.com"
    assert Redactor().text("redis://:pw@cache:6379/0") == "redis://***@cache:6379/0"


@pytest.mark.parametrize(
    "key",
    [
        *("authorization", "Cookie", "set-cookie", "PASSWORD", "token", "Access-Token", "refreshToken", "ticket"),
        *("secret", "api_key", "X-API-Key", "admin_token", "x-csrf-token", "redis_password", "TOKEN_CACHE_SECRET"),
    ],
)
def test_value_under_a_secret_key_is_masked_whatever_its_type(key: str) -> None:
    record = Redactor().record({key: "abcdef", "deep": [{key: b"abcdef"}], "pair": (key, "abcdef")})
    assert "abcdef" not in repr(record)
    assert record[key] == "***"


def test_keys_that_only_mention_a_secret_are_kept() -> None:
    assert not secret_key("token_cache_size")
    assert Redactor().record({"token": None, "has_password": True}) == {"token": None, "has_password": True}


def test_known_secrets_are_masked_wherever_they_stand() -> None:
    assert Redactor(["sesame-99", "abc"]).text("opened by sesame-99, abc") == "opened by ***, abc"


def test_text_is_capped_and_the_cap_shows_no_half_of_a_secret() -> None:
    assert len(Redactor().text("x" * 100_000)) <= MAX_TEXT + 1
    assert "ann.bak" not in Redactor().text("ann.baker@example.com," * 1000)
    words = "Bearer " + "s" * 900 + " "
    assert "sss" not in Redactor().text(words * 50)


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_any_value_becomes_plain_json() -> None:
    endless: list[object] = []
    endless.append(endless)
    record = Redactor().record(
        {"odd": Odd(), "huge": 2**70, "raw": b"\xff\xfe", "half": "\ud800", "loop": endless, 5: {1, 2}}  # type: ignore[dict-item]
    )
    assert record["odd"] == "<unprintable Odd: RuntimeError>"
    assert record["huge"] == str(2**70)
    assert record["raw"] == r"\xff\xfe"
    assert record["half"] == r"\ud800"
    assert sorted(record["5"]) == [1, 2]  # type: ignore[call-overload]


def test_a_record_has_a_bounded_number_of_values() -> None:
    wide: list[object] = [1] * 100
    for _ in range(6):
        wide = [wide] * 100
    assert len(repr(Redactor().record({"wide": wide}))) < 100_000


def test_values_learnt_later_are_masked_beside_those_known_before() -> None:
    redactor = Redactor(["sesame-99"])
    redactor.learn(["poppy-100", "short"])
    assert redactor.text("sesame-99 poppy-100 short") == "*** *** short"
    assert redactor.knows("poppy-100")
