"""Bearer tokens into claims: the signature once per token, its time with every look-up."""

import re
from binascii import a2b_base64
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Final

from jwt import PyJWS

from bakerygw.core.claims import MAX_TOKEN_BYTES, Claims, ClaimsError, check_time, claims_from, strict_object
from bakerygw.ports import TokenRefused
from bakerygw.tokens.keys import ALGORITHMS, KeySource, VerificationKey

_FORM = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
# By length modulo 4: what makes up the padding, and the last characters whose unused bits are zero (RFC 4648 3.5).
_TAILS: Final = {0: (b"", None), 2: (b"==", b"AQgw"), 3: (b"=", b"AEIMQUYcgkosw048")}

REFUSED_HEADERS: Final = ("crit", "b64", "jku", "jwk", "x5u", "x5c")
"""Extensions that would have to be understood (RFC 7515 4.1.11), and keys that a token brings along."""
ACCEPTED_TYP: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""RFC 7519 5.1 and RFC 9068 4; media types ignore case."""


CACHE_SIZE: Final = 20_000
"""Tokens: four for each of 5,000 users, as each has several devices and a fresh token now and then."""
CACHE_BYTES: Final = 24 * 1024 * 1024
"""Of tokens as they were sent; what is kept of them takes one to six times as much, see `_Memory`."""
DEMO_SHARE: Final = 10
"""Demo sessions have a memory of their own, of this part of the size: they can't push out anybody's token."""


class _Memory:
    """Good tokens by their digest, the least recently used going first, bounded by number and by length as sent.

    What is kept of an ordinary token of 0.8 KiB takes 1.1 KiB, of one of 7 KiB that opens sixty tenants 18 KiB, and six
    times the length at worst. By number alone the bound would depend on how many tenants the users have.
    """

    def __init__(self, size: int, max_bytes: int) -> None:
        self._size, self._max_bytes = size, max_bytes
        self._bytes = 0
        self.entries: OrderedDict[bytes, tuple[float, Claims, int, bytes]] = OrderedDict()
        """Until when by the monotonic clock, what the token says, its length, and the thumbprint of its key."""

    def add(self, digest: bytes, entry: tuple[float, Claims, int, bytes]) -> None:
        """Remember one token."""
        self.drop(digest)
        self.entries[digest] = entry
        self._bytes += entry[2]
        while len(self.entries) > self._size or self._bytes > self._max_bytes:
            _, oldest = self.entries.popitem(last=False)
            self._bytes -= oldest[2]

    def drop(self, digest: bytes) -> None:
        """Forget one token."""
        entry = self.entries.pop(digest, None)
        if entry is not None:
            self._bytes -= entry[2]

    def keep_only(self, thumbprints: Collection[bytes]) -> None:
        """Forget the tokens of all other keys."""
        for digest in [digest for digest, entry in self.entries.items() if entry[3] not in thumbprints]:
            self.drop(digest)


class TokenVerifier:
    """Checks tokens against one issuer, audience and pinned algorithm, and remembers the good ones.

    The memory holds at most `cache_size` tokens of `cache_bytes` together, each for at most `cache_ttl_s` and never
    past its `exp`. It is keyed by SHA-256 of the whole token, signature included: 32 bytes instead of up to 8 KiB, and
    no usable credential is kept in the process; a hit takes 0.9 µs, hash included.
    `now` gives Unix seconds, `seconds` those of a monotonic clock. Raises ValueError for an algorithm without public
    keys.
    """

    def __init__(
        self,
        key: KeySource,
        *,
        algorithm: str,
        issuer: str,
        audience: str | None,
        leeway_s: float,
        cache_ttl_s: float,
        cache_size: int = CACHE_SIZE,
        cache_bytes: int = CACHE_BYTES,
        now: Callable[[], float],
        seconds: Callable[[], float],
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"{algorithm!r} is no signature with a public key")
        self._key, self._algorithm, self._issuer, self._audience = key, algorithm, issuer, audience
        self._leeway_s, self._ttl_s, self._now, self._seconds = leeway_s, cache_ttl_s, now, seconds
        # The pinned algorithm is looked up here and nowhere else; what a token says is only compared with its name.
        self._signature = PyJWS(algorithms=[algorithm]).get_algorithm_by_name(algorithm)
        self._good = _Memory(cache_size, cache_bytes)
        self._demo = _Memory(-(-cache_size // DEMO_SHARE), -(-cache_bytes // DEMO_SHARE))
        self._rules = sha256(repr((algorithm, issuer, audience)).encode()).digest()
        self._signers: dict[bytes, bytes] = {}
        """By thumbprint."""

    def known(self, token: bytes) -> Claims | None:
        """Claims of a token verified here before, while it and its place in the memory last."""
        digest = sha256(token).digest()
        memory = self._good
        entry = memory.entries.get(digest)
        if entry is None:
            memory = self._demo
            entry = memory.entries.get(digest)
            if entry is None:
                return None
        if self._seconds() >= entry[0] or self._now() >= entry[1].exp:
            memory.drop(digest)
            return None
        memory.entries.move_to_end(digest)
        return entry[1]

    def peek(self, token: bytes) -> Claims | None:
        """What the token says of itself, unverified; `None` for anything malformed."""
        try:
            header, payload, _ = _segments(token)
            return claims_from(strict_object(_bytes_of(payload)), _digest(header, payload))
        except ClaimsError:
            return None

    def verify(self, token: bytes, *, vouched_by: bytes | None = None) -> Claims:
        """Claims of a good token. Raises `TokenRefused` token-expired, or token-invalid for every other cause, of which
        the reason "unknown-key" alone may be another tomorrow.

        `vouched_by`: the thumbprint of a key by which the signature of this very token is known to be good; all else
        is still checked, and the signature too if the key for the token is another.
        """
        try:
            key, claims = self._verified(token, vouched_by)
        except ClaimsError as error:
            code = "token-expired" if error.reason == "expired" else "token-invalid"
            raise TokenRefused(code, error.reason) from error
        self._remember(token, claims, key)
        return claims

    def key_of(self, token: bytes) -> bytes | None:
        """The thumbprint of the key that would check this token; `None` if there is none, or the header is unfit."""
        try:
            key = self._key.key_for(self._checked_kid(strict_object(_bytes_of(_segments(token)[0]))))
        except ClaimsError:
            return None
        return None if key is None else key.thumbprint

    @property
    def signers(self) -> Collection[bytes] | None:
        """One of which a token's `Claims.signer` is if it would be found good today, by its key, algorithm, issuer and
        audience; `None` while there are no keys to tell by."""
        thumbprints = self._key.thumbprints
        return None if thumbprints is None else {self._signer(thumbprint) for thumbprint in thumbprints}

    def keep_only(self, thumbprints: Collection[bytes]) -> None:
        """Forget all tokens but those of these keys."""
        self._good.keep_only(thumbprints)
        self._demo.keep_only(thumbprints)
        self._signers.clear()

    def _signer(self, thumbprint: bytes) -> bytes:
        signer = self._signers.get(thumbprint)
        if signer is None:
            signer = self._signers[thumbprint] = sha256(self._rules + thumbprint).digest()
        return signer

    def _verified(self, token: bytes, vouched_by: bytes | None) -> tuple[VerificationKey, Claims]:
        header, payload, signature = _segments(token)
        kid = self._checked_kid(strict_object(_bytes_of(header)))
        said_bytes, signature_bytes = _bytes_of(payload), _bytes_of(signature)
        key = self._key.key_for(kid)
        if key is None:
            raise ClaimsError("unknown-key")
        if key.thumbprint != vouched_by and not self._signature.verify(
            header + b"." + payload, key.public, signature_bytes
        ):
            raise ClaimsError("signature")
        said = strict_object(said_bytes)
        self._check_issuer_and_audience(said)
        claims = claims_from(said, _digest(header, payload), self._signer(key.thumbprint))
        check_time(claims, self._now(), self._leeway_s)
        return key, claims

    def _checked_kid(self, header: Mapping[str, object]) -> str | None:
        """The key id of an acceptable header."""
        if header.get("alg") != self._algorithm:
            raise ClaimsError("algorithm")
        if any(name in header for name in REFUSED_HEADERS):
            raise ClaimsError("header-extension")
        typ, kid = header.get("typ", "JWT"), header.get("kid")
        if not isinstance(typ, str) or typ.lower() not in ACCEPTED_TYP:
            raise ClaimsError("header-typ")
        if not (kid is None or isinstance(kid, str)):
            raise ClaimsError("header-kid")
        return kid

    def _check_issuer_and_audience(self, said: Mapping[str, object]) -> None:
        if said.get("iss") != self._issuer:
            raise ClaimsError("issuer")
        audience = said.get("aud")
        if self._audience is None:
            # A token made for someone in particular, and nothing says that it is us (RFC 7519 4.1.3).
            if audience is not None:
                raise ClaimsError("audience")
        elif audience != self._audience and not (isinstance(audience, list) and self._audience in audience):
            raise ClaimsError("audience")

    def _remember(self, token: bytes, claims: Claims, key: VerificationKey) -> None:
        left_s = min(self._ttl_s, claims.exp - self._now())
        if left_s <= 0:
            return  # it would only push out one of use
        memory = self._demo if claims.is_demo else self._good
        memory.add(sha256(token).digest(), (self._seconds() + left_s, claims, len(token), key.thumbprint))


def _segments(token: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, payload and signature of a compact JWS (RFC 7515 3.1), still encoded."""
    if len(token) > MAX_TOKEN_BYTES:
        raise ClaimsError("too-long")
    form = _FORM.fullmatch(token)
    if form is None:
        raise ClaimsError("form")
    header, payload, signature = form.groups()
    return header, payload, signature


def _digest(header: bytes, payload: bytes) -> str:
    """What names the token among those revoked; without the signature, of which there may be several for one token."""
    return sha256(header + b"." + payload).hexdigest()


def _bytes_of(segment: bytes) -> bytes:
    """Base64url without padding, in its one canonical spelling; the form check has seen to the alphabet."""
    padding, last = _TAILS.get(len(segment) % 4, (b"", b""))
    if last is not None and segment[-1] not in last:
        raise ClaimsError("base64")
    return a2b_base64(segment.translate(_STANDARD_ALPHABET) + padding)
