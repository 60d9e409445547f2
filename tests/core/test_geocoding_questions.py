"""Questions for addresses: what is read strictly, and what is the same question."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.geocoding import MAX_RESULTS, Question, first_language, read_question
from bakerygw.core.problem import Refused


def question(**members: Any) -> Question:
    return read_question(json.dumps(members).encode(), None)


def refusal(body: bytes) -> Refused:
    with pytest.raises(Refused) as refused:
        read_question(body, None)
    assert refused.value.problem.code == "bad-request"
    return refused.value


def test_a_query_is_read_with_its_spaces_single_and_its_accents_composed() -> None:
    asked = question(query="  Café  Gràcia\u00a012 ".replace("é", "e\u0301"))

    assert asked.query == "Café Gràcia 12"
    assert (asked.address, asked.limit, asked.countries, asked.language) == ((), 5, (), None)


def test_an_address_in_parts_is_read_in_a_fixed_order() -> None:
    asked = question(city="Graz", street="Gasse 1", country_name="Austria")

    assert asked.query is None
    assert asked.address == (("street", "Gasse 1"), ("city", "Graz"), ("country_name", "Austria"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"query": "Gran Via 1"}, {"query": " gran  VIA 1"}),
        ({"query": "x", "country": "ES"}, {"query": "x", "country": ["es", "es"]}),
        ({"query": "x", "country": ["es", "pt"]}, {"query": "x", "country": ["PT", "ES"]}),
        ({"query": "x", "language": "pt-BR"}, {"query": "X", "language": "pt-br"}),
        ({"query": "x", "limit": 5}, {"query": "x"}),
    ],
)
def test_what_means_the_same_is_one_question(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert question(**one).digest() == question(**other).digest()


@pytest.mark.parametrize(
    "other",
    [
        {"query": "y"}, {"query": "x", "limit": 4}, {"query": "x", "country": "es"}, {"query": "x", "language": "es"},
        {"street": "x"}, {"city": "x"},
    ],
)  # fmt: skip
def test_what_may_be_answered_otherwise_is_another(other: dict[str, Any]) -> None:
    assert question(query="x").digest() != question(**other).digest()


def test_a_digest_tells_nothing_of_the_address() -> None:
    digest = question(query="Gran Via").digest()
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({}, "query"),
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": " "}, "query"),
        ({"query": "x" * 257}, "query"),
        ({"query": 7}, "query"),
        ({"query": ["x"]}, "query"),
        ({"query": "a\nb"}, "query"),
        ({"query": "a\u2028b"}, "query"),
        ({"query": "x", "street": "y"}, "street"),
        ({"street": "\x07"}, "street"),
        ({"query": "x", "viewbox": "1"}, "viewbox"),
        ({"query": "x", "limit": 0}, "limit"),
        ({"query": "x", "limit": 11}, "limit"),
        ({"query": "x", "limit": True}, "limit"),
        ({"query": "x", "limit": 2.0}, "limit"),
        ({"query": "x", "limit": "2"}, "limit"),
        ({"query": "x", "country": "ESP"}, "country"),
        ({"query": "x", "country": "\u017fs"}, "country"),
        ({"query": "x", "country": []}, "country"),
        ({"query": "x", "country": ["es"] * 21}, "country"),
        ({"query": "x", "country": ["es", 1]}, "country"),
        ({"query": "x", "country": "e,"}, "country"),
        ({"query": "x", "language": "*"}, "language"),
        ({"query": "x", "language": "e"}, "language"),
        ({"query": "x", "language": "es\r\nHost: y"}, "language"),
        ({"query": "x", "language": "es-" + "x" * 9}, "language"),
    ],
)
def test_a_wrong_member_is_named(members: dict[str, Any], field: str) -> None:
    problem = refusal(json.dumps(members).encode()).problem
    assert problem.members["field"] == field
    assert problem.detail.endswith(".")


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b'"x"', b"null", b"\xff", b"[" * 8192, b'{"limit":NaN}', b"{}{}"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert "JSON" in refusal(body).problem.detail


def test_a_member_that_is_there_twice_is_named_also_inside() -> None:
    assert refusal(b'{"query":"x","query":"x"}').problem.members["field"] == "query"
    assert refusal(b'{"query":{"a":1,"a":2}}').problem.members["field"] == "a"


def test_a_wrong_name_comes_back_short_and_clean() -> None:
    shown = refusal(json.dumps({"\x1b[31m" + "x" * 200: 1}).encode()).problem.members["field"]
    assert shown == "?[31m" + "x" * 59


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, None),
        (b"", None),
        (b"*", None),
        (b"es", "es"),
        (b"es-ES,es;q=0.9,en;q=0.8", "es-ES"),
        (b"en;q=0.5, ca ; q=0.7 , *;q=0.9", "ca"),
        (b"es;q=0", None),
        (b"es;q=2", None),
        (b"es;x=1,de;q=0.1", "de"),
        (b"\xff\x00,fr", "fr"),
        (b"e" * 2000, None),
    ],
)
def test_the_preferred_language_of_a_browser(header: bytes | None, language: str | None) -> None:
    assert first_language(header) == language


def test_a_language_in_the_body_wins() -> None:
    assert read_question(b'{"query":"x","language":"ca"}', b"es").language == "ca"
    assert read_question(b'{"query":"x"}', b"es").language == "es"


@given(
    st.binary(max_size=200) | st.recursive(st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_any_body_is_a_question_or_refused(body: bytes) -> None:
    try:
        asked = read_question(body, body)
    except Refused:
        return
    assert 1 <= asked.limit <= MAX_RESULTS
