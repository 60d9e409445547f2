import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.tokens.jwks import MAX_KEYS, KeySet, KeySetError, parse_key_set
from bakerygw.tokens.keys import ALGORITHMS, VerificationKey
from tests.minting import Issuer, b64
from tests.tokens.token_fakes import document, jwk

RSA = Issuer()
OTHER_RSA = Issuer()
P256 = Issuer(algorithm="ES256")
P384 = Issuer(algorithm="ES384")
ED = Issuer(algorithm="EdDSA")
PRIVATE_RSA: dict[str, Any] = {"d": "AQAB", "p": "AQAB"}


def key_of(issuer: Issuer) -> VerificationKey:
    return VerificationKey.of(issuer.key.public_key())


def ignored(entry: object, algorithm: str = "RS256") -> tuple[str, bool]:
    """Why an entry beside a good one is left out, and whether it gives a secret away."""
    found = parse_key_set(document(jwk(RSA, "good") if algorithm == "RS256" else jwk(P256, "good"), entry), algorithm)
    assert list(found.by_kid) == ["good"]
    (left_out,) = found.ignored
    return left_out.why, left_out.is_secret


def test_each_key_is_found_by_its_id_and_by_no_other() -> None:
    found = parse_key_set(document(jwk(RSA, "a"), jwk(OTHER_RSA, "b")), "RS256")
    assert (found.key_for("a"), found.key_for("b")) == (key_of(RSA), key_of(OTHER_RSA))
    assert [found.key_for(kid) for kid in ("c", "", "A", None)] == [None] * 4
    assert found.thumbprints == {key_of(RSA).thumbprint, key_of(OTHER_RSA).thumbprint}
    assert found.ignored == ()


@pytest.mark.parametrize("kid", ["a", None])
def test_a_token_without_id_has_the_only_key(kid: str | None) -> None:
    found = parse_key_set(document(jwk(RSA, kid), jwk(P256, "p")), "RS256")
    assert found.key_for(None) == key_of(RSA)
    assert found.key_for("another") is None
    assert found.thumbprints == {key_of(RSA).thumbprint}


def test_a_token_without_id_has_no_key_where_one_of_several_lacks_it_too() -> None:
    found = parse_key_set(document(jwk(RSA, "a"), jwk(OTHER_RSA, None)), "RS256")
    assert found.key_for(None) is None


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_finds_its_kind_of_key_among_all(algorithm: str) -> None:
    every = [Issuer(algorithm=name) for name in ("RS256", "ES256", "ES384", "ES512", "EdDSA")]
    found = parse_key_set(document(*(jwk(issuer, issuer.algorithm) for issuer in every)), algorithm)
    kind = algorithm if algorithm[0] == "E" else "RS256"
    assert list(found.by_kid) == [kind]
    assert len(found.ignored) == len(every) - 1


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("text", "not an object"),
        (None, "not an object"),
        (jwk(OTHER_RSA, "x", use="enc"), "use is not sig"),
        (jwk(OTHER_RSA, "x", use=["sig"]), "use is not sig"),
        (jwk(OTHER_RSA, "x", alg="RS512"), "alg is not RS256"),
        (jwk(OTHER_RSA, "x", alg="HS256"), "alg is not RS256"),
        (jwk(OTHER_RSA, "x", key_ops=["encrypt"]), "key_ops lacks verify"),
        (jwk(OTHER_RSA, "x", key_ops="verify"), "key_ops lacks verify"),
        ({**jwk(OTHER_RSA), "kid": 7}, "kid is no text of a sensible length"),
        (jwk(OTHER_RSA, "x" * 257), "kid is no text of a sensible length"),
        ({**jwk(OTHER_RSA), "kid": ""}, "kid is no text of a sensible length"),
        (jwk(P256, "x"), "RS256 needs a key of type RSA"),
        (jwk(OTHER_RSA, "x", kty="rsa"), "RS256 needs a key of type RSA"),
        ({"kty": "unheard-of", "kid": "x"}, "RS256 needs a key of type RSA"),
        ({**jwk(OTHER_RSA, "x"), "n": 5}, "a member is no text"),
        (jwk(OTHER_RSA, "x", n="AQ"), "it cannot be read as a public key"),
        (jwk(OTHER_RSA, "x", e="AA"), "it cannot be read as a public key"),
        (jwk(OTHER_RSA, "x", n="é"), "it cannot be read as a public key"),
        ({"kty": "RSA", "kid": "x"}, "it cannot be read as a public key"),
    ],
)
def test_a_key_that_is_not_for_us_is_left_out(entry: object, why: str) -> None:
    assert ignored(entry) == (why, False)


def test_a_key_that_is_too_small_or_too_large_is_left_out() -> None:
    small, large = (1 << 1023) + 1, (1 << 9000) + 1
    for number, why in ((small, "has 1024 bits"), (large, "has 9001 bits")):
        n = b64(number.to_bytes((number.bit_length() + 7) // 8, "big"))
        assert why in ignored({"kty": "RSA", "kid": "x", "n": n, "e": "AQAB"})[0]


def test_a_curve_of_another_algorithm_is_left_out() -> None:
    assert "needs an elliptic curve key on secp256r1" in ignored(jwk(P384, "x"), "ES256")[0]
    assert ignored(jwk(P256, "x", crv="P-257"), "ES256")[0] == "it cannot be read as a public key"
    off_curve = {**jwk(P256, "x"), "y": jwk(P256)["x"]}
    assert ignored(off_curve, "ES256")[0] == "it cannot be read as a public key"


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_a_private_member_makes_a_key_unusable_and_is_told_apart(member: str) -> None:
    assert ignored(jwk(OTHER_RSA, "x", **{member: "AQAB"})) == ("it is a private or secret key", True)


def test_a_shared_secret_is_no_key() -> None:
    assert ignored({"kty": "oct", "kid": "x", "k": b64(b"secret"), "alg": "RS256"})[1]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not-json"),
        (b"<html>", "not-json"),
        (b"\xff{}", "not-json"),
        (b"[]", "not-an-object"),
        (b"{}", "no list of keys"),
        (b'{"keys": {}}', "no list of keys"),
        (b'{"keys": []}', "it is empty"),
        (b'{"keys": [], "keys": []}', "duplicate-name"),
        (b'{"keys": ' + b"[" * 200, "too-deep"),
        (
            document(jwk(P256, "p"), jwk(RSA, "r", use="enc")),
            "no key of the set can be used: RS256 needs a key of type",
        ),
        (document(jwk(RSA, "a", **PRIVATE_RSA)), "it is a private or secret key"),
        (document(jwk(RSA, "a"), jwk(OTHER_RSA, "a")), "two keys have the same kid"),
        (document(jwk(RSA, "a"), jwk(RSA, "a")), "two keys have the same kid"),
        (document(*[jwk(P256, "p")] * (MAX_KEYS + 1)), f"more than {MAX_KEYS} keys"),
    ],
)
def test_what_is_no_sound_key_set_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(KeySetError, match=why):
        parse_key_set(body, "RS256")


def test_one_id_may_name_keys_of_two_kinds() -> None:
    # RFC 7517 4.5 allows it for equivalent keys; only one of them is for us.
    found = parse_key_set(document(jwk(P256, "a"), jwk(RSA, "a")), "RS256")
    assert found.key_for("a") == key_of(RSA)


def test_no_reason_repeats_what_a_key_holds() -> None:
    entry = jwk(OTHER_RSA, "x", d="topsecret", n="notanumber!")
    with pytest.raises(KeySetError) as caught:
        parse_key_set(document(entry), "RS256")
    assert "topsecret" not in str(caught.value)
    assert "notanumber" not in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["RSA", "AQAB", "sig", "P-256"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.dictionaries(
    st.sampled_from(["kty", "kid", "use", "alg", "key_ops", "n", "e", "crv", "x", "y", "d"]), ANYTHING
)


@given(st.lists(ENTRY | ANYTHING, max_size=4), st.sampled_from(sorted(ALGORITHMS)))
def test_whatever_a_document_holds_it_is_a_set_or_refused(entries: list[object], algorithm: str) -> None:
    try:
        found = parse_key_set(json.dumps({"keys": entries}).encode(), algorithm)
    except KeySetError:
        return
    assert isinstance(found, KeySet)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused(body: bytes) -> None:
    with pytest.raises(KeySetError):
        parse_key_set(body, "RS256")
