"""What is sealed for one session opens for it alone, with any secret that is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.tokens.session_seal import MAX_SEALED_BYTES, SessionSeal

OLD, NEW = "o" * 32, "n" * 32
DIGEST = "ab" * 32
ID = b"A" * 43


def test_it_opens_again_and_never_looks_the_same():
    seal = SessionSeal([NEW])
    first, second = seal.seal(DIGEST, b"text"), seal.seal(DIGEST, b"text")
    assert first != second
    assert seal.opened(DIGEST, first) == seal.opened(DIGEST, second) == b"text"
    assert b"text" not in first


def test_the_first_secret_seals_and_each_opens():
    old, both = SessionSeal([OLD]), SessionSeal([NEW, OLD])
    assert both.opened(DIGEST, old.seal(DIGEST, b"text")) == b"text"
    assert old.opened(DIGEST, both.seal(DIGEST, b"text")) is None
    assert SessionSeal([NEW]).opened(DIGEST, both.seal(DIGEST, b"text")) == b"text"


def test_it_is_bound_to_its_session():
    seal = SessionSeal([NEW])
    assert seal.opened("cd" * 32, seal.seal(DIGEST, b"text")) is None


@given(st.data())
def test_a_single_changed_byte_shuts_it(data):
    seal = SessionSeal([NEW, OLD])
    sealed = bytearray(seal.seal(DIGEST, b"text"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    assert seal.opened(DIGEST, bytes(sealed)) is None


@pytest.mark.parametrize("length", [0, 1, 12, 13, 28, MAX_SEALED_BYTES + 1])
def test_what_was_never_sealed_does_not_open(length):
    assert SessionSeal([NEW]).opened(DIGEST, b"\x01" * length) is None


def test_a_page_s_token_is_its_session_s_and_of_a_known_secret():
    old, both = SessionSeal([OLD]), SessionSeal([NEW, OLD])
    assert both.csrf_good(ID, both.csrf_token(ID).encode())
    assert both.csrf_good(ID, old.csrf_token(ID).encode())
    assert not old.csrf_good(ID, both.csrf_token(ID).encode())
    assert not both.csrf_good(b"B" * 43, both.csrf_token(ID).encode())
    for wrong in (b"", b"x", b"\xff" * 43, both.csrf_token(ID).encode() + b"="):
        assert not both.csrf_good(ID, wrong)
