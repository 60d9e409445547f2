from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.tokens.token_seal import Rules, TokenSeal
from tests.tokens.token_fakes import NOW

SECRET = "0123456789abcdef0123456789abcdef"
RULES = Rules(algorithm="RS256", issuer="bakery-auth", audience=None)
TOKEN = b"header.payload.signature"
KEY = sha256(b"key").digest()
SEALER = TokenSeal(SECRET, RULES)
SEALED = SEALER.seal(TOKEN, KEY, NOW + 100.9)


def test_a_seal_is_believed_until_its_time_which_is_in_whole_seconds() -> None:
    assert SEALER.judge(SEALED, TOKEN, KEY, NOW) == "hit"
    assert SEALER.judge(SEALED, TOKEN, KEY, NOW + 99.9) == "hit"
    assert SEALER.judge(SEALED, TOKEN, KEY, NOW + 100) == "miss"
    assert SEALER.judge(SEALED, TOKEN, KEY, NOW + 10**9) == "miss"


def test_another_instance_with_the_same_secret_and_settings_believes_it() -> None:
    assert TokenSeal(SECRET, replace(RULES)).judge(SEALED, TOKEN, KEY, NOW) == "hit"


def test_a_seal_holds_nothing_of_the_token_and_nothing_of_the_secret() -> None:
    assert len(SEALED) == 57
    for part in (b"payload", TOKEN, sha256(TOKEN).digest(), SECRET.encode(), KEY):
        assert part not in SEALED


@pytest.mark.parametrize(
    "sealer",
    [
        TokenSeal("another-secret-of-thirty-two-char", RULES),
        TokenSeal(SECRET + "0", RULES),
        TokenSeal(SECRET, replace(RULES, algorithm="RS512")),
        TokenSeal(SECRET, replace(RULES, issuer="bakery-auth2")),
        TokenSeal(SECRET, replace(RULES, audience="bakery-auth")),
        TokenSeal(SECRET, replace(RULES, audience="")),
        TokenSeal(SECRET, Rules(algorithm="RS256bakery", issuer="-auth", audience=None)),
    ],
    ids=["secret", "longer", "algorithm", "issuer", "audience", "empty audience", "shifted"],
)
def test_what_was_sealed_under_another_secret_or_setting_is_foreign(sealer: TokenSeal) -> None:
    assert sealer.judge(SEALED, TOKEN, KEY, NOW) == "foreign"
    assert SEALER.judge(sealer.seal(TOKEN, KEY, NOW + 100), TOKEN, KEY, NOW) == "foreign"


def test_what_was_sealed_by_another_key_is_foreign() -> None:
    assert SEALER.judge(SEALED, TOKEN, sha256(b"new key").digest(), NOW) == "foreign"


@pytest.mark.parametrize("token", [b"", TOKEN + b"x", TOKEN[:-1], b"header.payload.another"])
def test_the_seal_of_another_token_is_refused(token: bytes) -> None:
    assert SEALER.judge(SEALED, token, KEY, NOW) == "refused"


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_with_any_byte_altered_it_is_never_believed(place: int, flip: int) -> None:
    altered = SEALED[:place] + bytes([SEALED[place] ^ flip]) + SEALED[place + 1 :]
    assert SEALER.judge(altered, TOKEN, KEY, NOW) in {"foreign", "refused"}


def test_a_later_end_can_not_be_put_in() -> None:
    later = SEALER.seal(TOKEN, KEY, NOW + 10_000)
    assert SEALER.judge(later[:25] + SEALED[25:], TOKEN, KEY, NOW) == "refused"
    assert SEALER.judge(SEALED[:25] + later[25:], TOKEN, KEY, NOW) == "refused"


@pytest.mark.parametrize("length", [*range(len(SEALED)), len(SEALED) + 1, 10_000])
def test_a_seal_of_another_length_is_never_believed(length: int) -> None:
    assert SEALER.judge((SEALED + b"\0" * length)[:length], TOKEN, KEY, NOW) in {"foreign", "refused"}


@given(st.binary(max_size=100))
def test_bytes_of_any_kind_are_never_believed(sealed: bytes) -> None:
    assert SEALER.judge(sealed, TOKEN, KEY, NOW) in {"foreign", "refused"}


@given(st.binary(max_size=100))
def test_bytes_of_any_kind_behind_our_own_mark_are_refused(rest: bytes) -> None:
    assert SEALER.judge(SEALED[:17] + rest, TOKEN, KEY, NOW) == "refused"
