"""What keeps the browsers' sessions secret in the shared state, and proves that a page has been given its token."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from os import urandom
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION: Final = b"\x01"
SESSIONS: Final = b"bakerygw session seal 1"
TICKETS: Final = b"bakerygw ticket seal 1"
"""What is sealed: no key is good for two purposes."""
_CSRF: Final = b"bakerygw session csrf 1"
_THUMBPRINT: Final = b"bakerygw session secret\n"
NONCE_BYTES: Final = 12
MAX_SEALED_BYTES: Final = 64 * 1024
"""Longer than two tokens can make it; whatever else lies there is not looked at."""


class SessionSeal:
    """Implements `ports.SessionSealer` by AES-256-GCM and HMAC-SHA256 (RFC 5116 5.2, RFC 2104).

    The keys come of the session's own id by HKDF (RFC 5869), so nobody opens a record but with the cookie, which the
    shared state does not hold. A secret goes into them as the salt: without it the cookie and the record are not
    enough. The first secret seals and makes tokens; what was made with any of them is good.
    """

    def __init__(self, secrets: Sequence[str] = (), *, purpose: bytes = SESSIONS) -> None:
        """`secrets`: each at least 32 characters of chance; none: the ids alone make the keys."""
        self._salts: list[bytes | None] = [secret.encode() for secret in secrets]
        self._purpose = purpose
        if not self._salts:
            self._salts.append(None)
        self.thumbprints: Final = tuple(sha256(_THUMBPRINT + (salt or b"")).digest() for salt in self._salts)
        """Of the secrets, the one that seals first."""

    def seal(self, session_id: bytes, text: bytes) -> bytes:
        """`text` for this session, unreadable and unchangeable without its id, and good for no other session."""
        nonce = urandom(NONCE_BYTES)
        cipher = AESGCM(_key(session_id, self._salts[0], self._purpose))
        return VERSION + nonce + cipher.encrypt(nonce, text, VERSION)

    def opened(self, session_id: bytes, sealed: bytes) -> bytes | None:
        """The text; `None` for whatever was not sealed here for this session."""
        found = self.opened_with(session_id, sealed)
        return None if found is None else found[0]

    def opened_with(self, session_id: bytes, sealed: bytes) -> tuple[bytes, bytes] | None:
        """The text, and the thumbprint of its secret; `None` for whatever was not sealed here for this session."""
        if len(sealed) > MAX_SEALED_BYTES or sealed[:1] != VERSION:
            return None
        nonce, text = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        for salt, thumbprint in zip(self._salts, self.thumbprints, strict=True):
            try:
                return AESGCM(_key(session_id, salt, self._purpose)).decrypt(nonce, text, VERSION), thumbprint
            except (InvalidTag, ValueError):
                continue
        return None

    def csrf_token(self, session_id: bytes) -> str:
        """The token that writes of this session have to show."""
        return _mac(session_id, self._salts[0]).decode("ascii")

    def csrf_good(self, session_id: bytes, token: bytes) -> bool:
        """Whether it is this session's; takes the same time for every wrong one."""
        found = [hmac.compare_digest(_mac(session_id, salt), token) for salt in self._salts]
        return any(found)


def _key(session_id: bytes, salt: bytes | None, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(session_id)


def _mac(session_id: bytes, salt: bytes | None) -> bytes:
    return urlsafe_b64encode(hmac.digest(_key(session_id, salt, _CSRF), session_id, sha256)).rstrip(b"=")
