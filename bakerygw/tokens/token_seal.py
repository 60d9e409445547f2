"""Seals: what one instance tells the others of a token that it has verified, in a store that others can write to."""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest, digest
from math import floor
from typing import Final, Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION: Final = b"\x01"

_PURPOSE: Final = b"bakerygw verified token"
_ORIGIN_BYTES: Final = 16
_TIME_BYTES: Final = 8
_SEAL_BYTES: Final = 32
_LENGTH: Final = len(VERSION) + _ORIGIN_BYTES + _TIME_BYTES + _SEAL_BYTES

Verdict = Literal["hit", "miss", "foreign", "refused"]
"""miss: its time is over; foreign: sealed under another secret, setting or key, or no seal at all; refused: it bears
the mark of our own and is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a token was checked against, besides a key. A seal made under other rules is worth nothing."""

    algorithm: str
    issuer: str
    audience: str | None


class TokenSeal:
    """Makes and checks seals: "the signature of this token was good under these rules, by this key; until then".

    A seal is a version, a mark of its origin, a time, and an HMAC-SHA256 (RFC 2104) over all of it, the rules, the key
    and the token's SHA-256. It holds nothing that the token says: who presents the token brings that along, so that
    nobody's data lies in the store, and nothing there can be exchanged for something else.
    """

    def __init__(self, secret: str, rules: Rules) -> None:
        """`secret` is the instances' own; from it keys are derived for nothing but this (RFC 5869)."""
        derived = HKDF(SHA256(), length=64, salt=None, info=_PURPOSE).derive(secret.encode())
        self._seal_key, self._origin_key = derived[:32], derived[32:]
        audience = () if rules.audience is None else (rules.audience.encode(),)
        self._rules = _framed(rules.algorithm.encode(), rules.issuer.encode(), *audience)

    def seal(self, token: bytes, thumbprint: bytes, until: float) -> bytes:
        """The seal of a token verified by the key with this thumbprint; `until` in Unix seconds, cut to whole ones."""
        head = VERSION + self._origin(thumbprint) + floor(until).to_bytes(_TIME_BYTES, "big")
        return head + self._seal(head, token, thumbprint)

    def judge(self, sealed: bytes, token: bytes, thumbprint: bytes, now: float) -> Verdict:
        """What a value found in the store, which may be anything, says of this token. Only a hit is to be believed."""
        head, seal = sealed[:-_SEAL_BYTES], sealed[-_SEAL_BYTES:]
        mark = VERSION + self._origin(thumbprint)
        if not compare_digest(sealed[: len(mark)], mark):
            return "foreign"
        if len(sealed) != _LENGTH or not compare_digest(seal, self._seal(head, token, thumbprint)):
            return "refused"
        return "hit" if now < int.from_bytes(head[len(mark) :], "big") else "miss"

    def _origin(self, thumbprint: bytes) -> bytes:
        """Tells seals of other secrets, rules and keys from forged ones; to be believed is only the seal itself."""
        return digest(self._origin_key, _framed(self._rules, thumbprint), "sha256")[:_ORIGIN_BYTES]

    def _seal(self, head: bytes, token: bytes, thumbprint: bytes) -> bytes:
        said = _framed(self._rules, thumbprint, head, sha256(token).digest())
        return digest(self._seal_key, said, "sha256")


def _framed(*parts: bytes) -> bytes:
    """The parts as one text that no other parts give."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
