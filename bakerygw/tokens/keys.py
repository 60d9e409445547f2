"""The public keys that tokens are checked with."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

MIN_RSA_BITS: Final = 2048
"""RFC 7518 3.3."""
MAX_RSA_BITS: Final = 8192
"""A check by a larger key takes milliseconds of everybody's time."""

RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
"""The one curve that each algorithm allows (RFC 7518 3.4)."""
ALGORITHMS: Final = RSA_ALGORITHMS.union(CURVES, {"EdDSA"})
"""What a token may be pinned to: signatures whose key can be public."""


class PublicKeyError(ValueError):
    """A key cannot be used; the text says why and what is expected, and holds nothing of the key."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and what tells it from every other."""

    public: PublicKey
    thumbprint: bytes
    """SHA-256 of its `SubjectPublicKeyInfo` in DER."""

    @classmethod
    def of(cls, public: PublicKey) -> "VerificationKey":
        """This key with its thumbprint."""
        return cls(public, sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest())


class KeySource(Protocol):
    """Where the verifier finds its keys."""

    def key_for(self, kid: str | None) -> VerificationKey | None:
        """The key for a token whose header names `kid`, or `None`. `kid` is unverified: only ever compare it."""

    @property
    def thumbprints(self) -> frozenset[bytes] | None:
        """Those of all keys there are; `None` while nobody knows which they are."""


class PemKey:
    """The one key of a deployment without a key set. A `kid` tells nothing then and is ignored."""

    def __init__(self, key: PublicKey) -> None:
        self._key = VerificationKey.of(key)

    def key_for(self, kid: str | None) -> VerificationKey:
        """The key."""
        return self._key

    @property
    def thumbprints(self) -> frozenset[bytes]:
        """The key's alone."""
        return frozenset((self._key.thumbprint,))


def load_public_key(pem: str, algorithm: str) -> PublicKey:
    """The public key in PEM text, for one algorithm. Newlines may be escaped, as environment files have them.

    Raises `PublicKeyError`: not one PEM public key (RFC 7468 13, PKCS#1), a private key, not the algorithm's type or
    curve, an RSA key under 2048 or over 8192 bits, an algorithm not in `ALGORITHMS`.
    """
    if algorithm not in ALGORITHMS:
        allowed = ", ".join(sorted(ALGORITHMS))
        raise PublicKeyError(f"{algorithm!r} cannot be used with a public key; allowed: {allowed}")
    text = pem.replace("\\r", "").replace("\\n", "\n").strip()
    if "PRIVATE KEY" in text:
        raise PublicKeyError("this is a private key; the gateway needs, and should only ever see, the public one")
    if text.count("-----BEGIN ") != 1 or "PUBLIC KEY-----" not in text:
        raise PublicKeyError("expected one PEM key, from '-----BEGIN PUBLIC KEY-----' to '-----END PUBLIC KEY-----'")
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        # Without the cause: OpenSSL's own words name no remedy.
        raise PublicKeyError("the PEM text cannot be read as a public key; it may be cut short or altered") from None
    return fitting(key, algorithm)


def fitting(key: object, algorithm: str) -> PublicKey:
    """The key, if the algorithm may use it: its type, curve and size. Raises `PublicKeyError`."""
    if algorithm in RSA_ALGORITHMS:
        if not isinstance(key, RSAPublicKey):
            raise PublicKeyError(f"{algorithm} needs an RSA key")
        if key.key_size < MIN_RSA_BITS:
            raise PublicKeyError(f"this RSA key has {key.key_size} bits; {algorithm} needs at least {MIN_RSA_BITS}")
        if key.key_size > MAX_RSA_BITS:
            raise PublicKeyError(f"this RSA key has {key.key_size} bits; at most {MAX_RSA_BITS} are taken")
        return key
    if algorithm in CURVES:
        if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != CURVES[algorithm]:
            raise PublicKeyError(f"{algorithm} needs an elliptic curve key on {CURVES[algorithm]}")
        return key
    if not isinstance(key, Ed25519PublicKey):
        raise PublicKeyError(f"{algorithm} needs an Ed25519 key")
    return key
