"""What is sealed for one session opens for it alone, with any secret that is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.tokens.session_seal import MAX_SEALED_BYTES, SessionSeal

OLD, NEW = "o" * 32, "n" * 32
ID = b"A" * 43


def test_it_opens_again_and_never_looks_the_same():
    seal = SessionSeal([NEW])
    first, second = seal.seal(ID, b"text"), seal.seal(ID, b"text")
    assert first != second
    assert seal.opened(ID, first) == seal.opened(ID, second) == b"text"
    assert b"text" not in first


def test_the_first_secret_seals_and_each_opens():
    old, both = SessionSeal([OLD]), SessionSeal([NEW, OLD])
    assert both.opened(ID, old.seal(ID, b"text")) == b"text"
    assert old.opened(ID, both.seal(ID, b"text")) is None
    assert SessionSeal([NEW]).opened(ID, both.seal(ID, b"text")) == b"text"


def test_a_text_tells_by_which_secret_it_opened():
    old, both, none = SessionSeal([OLD]), SessionSeal([NEW, OLD]), SessionSeal()
    assert len({*both.thumbprints, *none.thumbprints}) == 3
    assert both.thumbprints[1] == old.thumbprints[0]
    assert both.opened_with(ID, old.seal(ID, b"text")) == (b"text", both.thumbprints[1])
    assert both.opened_with(ID, both.seal(ID, b"text")) == (b"text", both.thumbprints[0])
    assert none.opened_with(ID, none.seal(ID, b"text")) == (b"text", none.thumbprints[0])
    assert old.opened_with(ID, none.seal(ID, b"text")) is None


def test_without_a_secret_the_id_alone_seals():
    plain, secret = SessionSeal(), SessionSeal([NEW])
    assert plain.opened(ID, plain.seal(ID, b"text")) == b"text"
    assert plain.opened(b"B" * 43, plain.seal(ID, b"text")) is None
    assert plain.opened(ID, secret.seal(ID, b"text")) is secret.opened(ID, plain.seal(ID, b"text")) is None
    assert plain.csrf_good(ID, plain.csrf_token(ID).encode())
    assert not secret.csrf_good(ID, plain.csrf_token(ID).encode())


def test_it_is_bound_to_its_session():
    seal = SessionSeal([NEW])
    assert seal.opened(b"B" * 43, seal.seal(ID, b"text")) is None


@given(st.data())
def test_a_single_changed_byte_shuts_it(data):
    seal = SessionSeal([NEW, OLD])
    sealed = bytearray(seal.seal(ID, b"text"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    assert seal.opened(ID, bytes(sealed)) is None


@pytest.mark.parametrize("length", [0, 1, 12, 13, 28, MAX_SEALED_BYTES + 1])
def test_what_was_never_sealed_does_not_open(length):
    assert SessionSeal([NEW]).opened(ID, b"\x01" * length) is None


def test_a_page_s_token_is_its_session_s_and_of_a_known_secret():
    old, both = SessionSeal([OLD]), SessionSeal([NEW, OLD])
    assert both.csrf_good(ID, both.csrf_token(ID).encode())
    assert both.csrf_good(ID, old.csrf_token(ID).encode())
    assert not old.csrf_good(ID, both.csrf_token(ID).encode())
    assert not both.csrf_good(b"B" * 43, both.csrf_token(ID).encode())
    for wrong in (b"", b"x", b"\xff" * 43, both.csrf_token(ID).encode() + b"="):
        assert not both.csrf_good(ID, wrong)
