"""A JSON Web Key Set (RFC 7517), as an issuer publishes it, into the keys that one algorithm may use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from bakerygw.core.claims import ClaimsError, strict_object
from bakerygw.tokens.keys import CURVES, RSA_ALGORITHMS, PublicKeyError, VerificationKey, fitting

MAX_KEYS: Final = 100
MAX_KID: Final = 256
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""RFC 7518 6.2.2, 6.3.2, 6.4.1: whoever publishes one of these has given the key away."""


class KeySetError(ValueError):
    """A document is no key set that can be used; the text says why, and holds nothing of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A key of a set that is not used."""

    kid: str
    """As far as it can be shown; else empty."""
    why: str
    is_secret: bool = False
    """The document gives away what must never leave the issuer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys of one document; at least one."""

    by_kid: Mapping[str, VerificationKey]
    only: VerificationKey | None
    """The key of a set that has a single one: a token that names none is checked with it."""
    ignored: tuple[Ignored, ...]

    @property
    def thumbprints(self) -> frozenset[bytes]:
        """What tells its keys from all others."""
        only = () if self.only is None else (self.only.thumbprint,)
        return frozenset((*(key.thumbprint for key in self.by_kid.values()), *only))

    def key_for(self, kid: str | None) -> VerificationKey | None:
        """The key by this id; without one, the only key there is."""
        return self.only if kid is None else self.by_kid.get(kid)


def parse_key_set(data: bytes, algorithm: str) -> KeySet:
    """The keys in a document that `algorithm` may use: all others are left out (RFC 7517 5), and say why.

    Raises `KeySetError`: no strict JSON, no list of at most `MAX_KEYS` keys, none that can be used, or two of those by
    one id.
    """
    try:
        listed = strict_object(data).get("keys")
    except ClaimsError as error:
        raise KeySetError(f"the document is no key set: {error.reason}") from None
    if not isinstance(listed, list):
        raise KeySetError("the document has no list of keys")
    if len(listed) > MAX_KEYS:
        raise KeySetError(f"more than {MAX_KEYS} keys")
    usable: list[tuple[str | None, VerificationKey]] = []
    ignored: list[Ignored] = []
    for entry in listed:
        try:
            usable.append(_usable(entry, algorithm))
        except PublicKeyError as error:
            ignored.append(Ignored(kid=_shown_kid(entry), why=str(error), is_secret=_is_secret(entry)))
    return _key_set(usable, tuple(ignored))


def _key_set(usable: list[tuple[str | None, VerificationKey]], ignored: tuple[Ignored, ...]) -> KeySet:
    if not usable:
        reasons = ", ".join(sorted({it.why for it in ignored})) or "it is empty"
        raise KeySetError(f"no key of the set can be used: {reasons}")
    by_kid = {kid: key for kid, key in usable if kid is not None}
    if len(by_kid) != sum(kid is not None for kid, _ in usable):
        raise KeySetError("two keys have the same kid")
    return KeySet(by_kid=by_kid, only=usable[0][1] if len(usable) == 1 else None, ignored=ignored)


def _usable(entry: object, algorithm: str) -> tuple[str | None, VerificationKey]:
    """The id and key of an entry of the list. Raises `PublicKeyError`."""
    if not isinstance(entry, dict):
        raise PublicKeyError("not an object")
    if _is_secret(entry):
        raise PublicKeyError("it is a private or secret key")
    kid, operations = entry.get("kid"), entry.get("key_ops")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        raise PublicKeyError("kid is no text of a sensible length")
    if entry.get("use", "sig") != "sig":
        raise PublicKeyError("use is not sig")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise PublicKeyError("key_ops lacks verify")
    if entry.get("alg", algorithm) != algorithm:
        raise PublicKeyError(f"alg is not {algorithm}")
    return kid, VerificationKey.of(fitting(_public_key(entry, algorithm), algorithm))


def _public_key(entry: dict[str, object], algorithm: str) -> object:
    kind, reader = _KINDS["RSA" if algorithm in RSA_ALGORITHMS else "EC" if algorithm in CURVES else "OKP"]
    if entry.get("kty") != kind:
        raise PublicKeyError(f"{algorithm} needs a key of type {kind}")
    if not all(isinstance(entry.get(name), str | None) for name in ("n", "e", "crv", "x", "y")):
        raise PublicKeyError("a member is no text")
    try:
        return reader.from_jwk(entry)
    except (InvalidKeyError, ValueError, TypeError, KeyError, OverflowError):
        # Without the cause: it may quote what was there.
        raise PublicKeyError("it cannot be read as a public key") from None


_KINDS: Final[Mapping[str, tuple[str, type[Algorithm]]]] = {
    "RSA": ("RSA", RSAAlgorithm),
    "EC": ("EC", ECAlgorithm),
    "OKP": ("OKP", OKPAlgorithm),
}
"""`kty` (RFC 7518 6.1, RFC 8037 2) and what reads such a key."""


def _is_secret(entry: object) -> bool:
    return isinstance(entry, dict) and not PRIVATE_MEMBERS.isdisjoint(entry)


def _shown_kid(entry: object) -> str:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    return kid[:MAX_KID] if isinstance(kid, str) else ""
