"""Refresh tokens as clients present them."""

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.cookies import cookie_values, set_cookie
from bakerygw.core.problem import Refused
from bakerygw.core.refresh_tokens import MAX_REMEMBERED_S, OPAQUE_S, refresh_token, token_of_request
from tests.heads import make_head
from tests.minting import Issuer, b64

NOW = 1_700_000_000.0
JSON = (b"Content-Type", b"application/json")
BODY = b'{"refresh_token": "abc"}'


def jwt_of(**claims: object) -> str:
    header = b64(json.dumps({"alg": "RS256"}).encode())
    return f"{header}.{b64(json.dumps(claims).encode())}.c2lnbmF0dXJl"


def read(body: bytes = b"", *headers: tuple[bytes, bytes], query: bytes = b"") -> str | None:
    head = make_head("POST", b"/api/v1/auth/refresh" + query, headers or (JSON,))
    token = token_of_request(head, body)
    return None if token is None else token.text


def reason_of(body: bytes = b"", *headers: tuple[bytes, bytes], query: bytes = b"") -> str:
    with pytest.raises(Refused) as refused:
        read(body, *headers, query=query)
    assert refused.value.problem.code == "bad-request"
    return refused.value.problem.reason


def test_a_signature_has_many_spellings_and_a_token_one_digest() -> None:
    token = Issuer(algorithm="ES256").token(type="refresh")
    signed = token.rpartition(".")[0]
    digests = {refresh_token(text).digest for text in (token, token + "=", signed + ".!" + token[-5:], signed + ".")}

    assert digests == {sha256(signed.encode()).hexdigest()}


@pytest.mark.parametrize("text", ["opaque", "rt.v1.x", "a.b.c", "e30.e30.x", "....", "x" * 8192])
def test_an_opaque_token_is_taken_whole(text: str) -> None:
    token = refresh_token(text)

    assert token.digest == sha256(text.encode()).hexdigest()
    assert (token.exp, token.user_id) == (None, None)


def test_what_a_token_says_of_its_end_and_its_user_is_read() -> None:
    token = refresh_token(jwt_of(exp=NOW + 100, sub="u-1"))

    assert (token.exp, token.user_id) == (NOW + 100, "u-1")
    assert token.remembered_s(NOW, 10) == 110


@pytest.mark.parametrize("exp", [None, "soon", True, -1, 1e18, [1], NOW - 100])
def test_an_end_that_says_nothing_counts_as_none(exp: object) -> None:
    assert refresh_token(jwt_of(exp=exp)).remembered_s(NOW, 10) == OPAQUE_S


def test_nothing_is_remembered_for_ever() -> None:
    assert refresh_token(jwt_of(exp=NOW + 1e9)).remembered_s(NOW, 10) == MAX_REMEMBERED_S


@pytest.mark.parametrize("text", ["", " abc", "abc ", "a b", "abc\n", "abc\x00", "abcé", "x" * 8193])
def test_what_a_service_might_strip_or_decode_is_no_token(text: str) -> None:
    with pytest.raises(Refused):
        refresh_token(text)


@pytest.mark.parametrize(
    "media", [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json;charset="utf-8"']
)
def test_the_token_is_a_member_of_a_json_object(media: bytes) -> None:
    assert read(BODY, (b"Content-Type", media)) == "abc"
    assert read(b'{"x": 1, "refresh\\u005ftoken": "abc"}', (b"Content-Type", media)) == "abc"


def test_or_a_cookie_or_both_if_they_agree() -> None:
    assert read(b"", (b"Cookie", b"a=1; refresh_token=abc ;b=2")) == "abc"
    assert read(b"", (b"Cookie", b"Refresh_Token=abc")) == "abc"
    assert read(BODY, JSON, (b"Cookie", b"refresh_token=abc")) == "abc"


def test_without_either_there_is_none() -> None:
    assert read(b"") is None
    assert read(b'{"x": 1}') is None
    assert read(b"", (b"Cookie", b"other=1; refresh_token")) is None


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY, ((b"Content-Type", b"text/plain"),)),
        (BODY, ((b"X-None", b""),)),
        (b"refresh_token=abc", ((b"Content-Type", b"application/x-www-form-urlencoded"),)),
        (b'{"refresh_token":"a","x":"&refresh_token=b&"}', ((b"Content-Type", b"application/x-www-form-urlencoded"),)),
        (BODY, (JSON, (b"Content-Type", b"application/x-www-form-urlencoded"))),
        (BODY, ((b"Content-Type", b"application/json; charset=utf-16"),)),
        (BODY, ((b"Content-Type", b"application/json; charset=utf-7"),)),
        (BODY, ((b"Content-Type", b"application/json, text/plain"),)),
        (BODY, (JSON, (b"Content-Encoding", b"gzip"))),
        (BODY, (JSON, (b"Content-Encoding", b"identity, gzip"))),
        (BODY.decode().encode("utf-16"), (JSON,)),
        (b"\xef\xbb\xbf" + BODY, (JSON,)),
        (b'{"refresh_token": "a", "refresh_token": "b"}', (JSON,)),
        (b'{"refresh_token": "a", "refresh\\u005ftoken": "b"}', (JSON,)),
        (b'{"refresh_token": "a", "Refresh_Token": "b"}', (JSON,)),
        (b'{"refresh_token": "a", "refreshToken": "b"}', (JSON,)),
        ('{"refresh_token": "a", "refreſh_token": "b"}'.encode(), (JSON,)),  # noqa: RUF001
        (b'{"REFRESH_TOKEN": "b"}', (JSON,)),
        (b'{"refresh_token": ["a"]}', (JSON,)),
        (b'{"refresh_token": null}', (JSON,)),
        (b'{"refresh_token": ""}', (JSON,)),
        (b'{"refresh_token": "a "}', (JSON,)),
        (b'[{"refresh_token": "a"}]', (JSON,)),
        (b'"refresh_token"', (JSON,)),
        (BODY + BODY, (JSON,)),
        (b"[" * 10_000, (JSON,)),
        (b"\x00", (JSON,)),
        (BODY, (JSON, (b"Cookie", b"refresh_token=other"))),
        (b"", ((b"Cookie", b"refresh_token=a; refresh_token=b"),)),
        (b"", ((b"Cookie", b"refresh_token=a"), (b"Cookie", b"REFRESH_TOKEN=b"))),
        (b"", ((b"Cookie", b'refresh_token="a"'),)),
        (b"", ((b"Cookie", b"refresh_token=%61"),)),
        (b"", ((b"Cookie", b"refresh_token="),)),
        (BODY, (JSON, (b"Cookie", b"a=1 refresh_token=other"))),
        (BODY, (JSON, (b"Cookie", b"a=1,Refresh_Token = other"))),
    ],
)
def test_what_a_service_might_read_otherwise_is_refused(body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert reason_of(body, *headers).startswith("refresh-")


def test_a_query_is_refused() -> None:
    assert reason_of(BODY, query=b"?refresh_token=other") == "refresh-query"
    assert read(BODY, query=b"?") == "abc"


@given(st.binary(max_size=200))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        codes = [read(body) and "ok"]
    except Refused as refused:
        codes = [refused.problem.code]
    assert codes[0] in (None, "ok", "bad-request")


def test_cookies_are_found_under_their_exact_name() -> None:
    head = make_head(headers=[(b"Cookie", b"a=1;b=2; a = 3"), (b"Cookie", b"A=4;aa=5;a")])

    assert cookie_values(head, b"a") == (b"1", b"3")
    assert cookie_values(head, b"a", any_case=True) == (b"1", b"3", b"4")


def test_a_cookie_is_for_this_host_over_tls_and_no_script() -> None:
    assert set_cookie(b"__Host-x", b"v") == (
        b"Set-Cookie", b"__Host-x=v; Path=/; Secure; HttpOnly; SameSite=Lax",
    )  # fmt: skip
    assert set_cookie(b"__Host-x", b"")[1].endswith(b"; Max-Age=0")
