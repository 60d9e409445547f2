import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bakerygw.tokens.keys import PemKey, PublicKeyError, load_public_key
from tests.minting import Issuer

RSA = Issuer()
P256 = Issuer(algorithm="ES256")
P384 = Issuer(algorithm="ES384")
ED = Issuer(algorithm="EdDSA")


def numbers(issuer: Issuer) -> object:
    return issuer.key.public_key()


def test_pem_text_gives_the_key() -> None:
    assert load_public_key(RSA.public_pem, "RS256") == numbers(RSA)


@pytest.mark.parametrize("newline", ["\\n", "\r\n", "\\r\\n"], ids=["escaped", "crlf", "escaped-crlf"])
def test_newlines_may_be_written_as_environment_files_have_them(newline: str) -> None:
    assert load_public_key(RSA.public_pem.replace("\n", newline), "RS256") == numbers(RSA)


def test_pkcs1_public_key_is_taken() -> None:
    pem = RSA.key.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()
    assert load_public_key(pem, "RS256") == numbers(RSA)


@pytest.mark.parametrize(
    ("issuer", "algorithm"),
    [(RSA, "RS512"), (RSA, "PS256"), (P256, "ES256"), (P384, "ES384"), (ED, "EdDSA")],
)
def test_each_algorithm_takes_its_own_kind_of_key(issuer: Issuer, algorithm: str) -> None:
    assert load_public_key(issuer.public_pem, algorithm) == numbers(issuer)


@pytest.mark.parametrize(
    ("issuer", "algorithm", "text"),
    [
        (P256, "RS256", "RS256 needs an RSA key"),
        (RSA, "ES256", "ES256 needs an elliptic curve key on secp256r1"),
        (P384, "ES256", "ES256 needs an elliptic curve key on secp256r1"),
        (RSA, "EdDSA", "EdDSA needs an Ed25519 key"),
        (RSA, "HS256", "cannot be used with a public key"),
        (RSA, "none", "cannot be used with a public key"),
        (RSA, "rs256", "cannot be used with a public key"),
    ],
)
def test_key_of_another_kind_is_refused(issuer: Issuer, algorithm: str, text: str) -> None:
    with pytest.raises(PublicKeyError, match=text):
        load_public_key(issuer.public_pem, algorithm)


def test_short_rsa_key_is_refused() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()  # noqa: S505
    pem = short.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(PublicKeyError, match="1024 bits; RS256 needs at least 2048"):
        load_public_key(pem, "RS256")


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "secret",
        RSA.public_pem + P256.public_pem,
        RSA.public_pem.replace("PUBLIC KEY", "CERTIFICATE"),
        RSA.public_pem[:200],
        RSA.public_pem.replace("A", "B"),
        RSA.public_pem.replace("\n", "é\n", 2),
    ],
    ids=["empty", "no-pem", "two-keys", "certificate", "cut-short", "altered", "not-ascii"],
)
def test_text_that_is_not_one_public_key_is_refused(pem: str) -> None:
    with pytest.raises(PublicKeyError):
        load_public_key(pem, "RS256")


def test_private_key_is_refused_and_not_repeated() -> None:
    with pytest.raises(PublicKeyError, match="this is a private key") as caught:
        load_public_key(RSA.private_pem, "RS256")
    assert RSA.private_pem.splitlines()[1] not in str(caught.value)


@pytest.mark.parametrize("kid", [None, "", "main", "../../etc/passwd", "' OR 1=1 --"])
def test_single_key_ignores_key_ids(kid: str | None) -> None:
    key = load_public_key(RSA.public_pem, "RS256")
    assert PemKey(key).key_for(kid).public is key
