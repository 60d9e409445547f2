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
NONCE_BYTES: Final = 12
MAX_SEALED_BYTES: Final = 64 * 1024
"""Longer than two tokens can make it; whatever else lies there is not looked at."""


class SessionSeal:
    """Implements `ports.SessionSealer` by AES-256-GCM and HMAC-SHA256 (RFC 5116 5.2, RFC 2104).

    Each secret gives two keys of its own by HKDF (RFC 5869), one for either purpose. The first secret seals and
    makes tokens; what was made with any of them is good.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        """`secrets`: at least one, each at least 32 characters of chance."""
        self._ciphers = [AESGCM(_key(secret, b"session seal")) for secret in secrets]
        self._csrf_keys = [_key(secret, b"session csrf") for secret in secrets]

    def seal(self, digest: str, text: bytes) -> bytes:
        """`text` for the session of this digest, unreadable and unchangeable, and good for no other session."""
        nonce = urandom(NONCE_BYTES)
        return VERSION + nonce + self._ciphers[0].encrypt(nonce, text, _bound_to(digest))

    def opened(self, digest: str, sealed: bytes) -> bytes | None:
        """The text; `None` for whatever was not sealed here for this session."""
        if len(sealed) > MAX_SEALED_BYTES or sealed[:1] != VERSION:
            return None
        nonce, text = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, text, _bound_to(digest))
            except (InvalidTag, ValueError):
                continue
        return None

    def csrf_token(self, session_id: bytes) -> str:
        """The token that writes of this session have to show."""
        return _mac(self._csrf_keys[0], session_id).decode("ascii")

    def csrf_good(self, session_id: bytes, token: bytes) -> bool:
        """Whether it is this session's; takes the same time for every wrong one."""
        found = [hmac.compare_digest(_mac(key, session_id), token) for key in self._csrf_keys]
        return any(found)


def _key(secret: str, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"bakerygw " + purpose + b" 1").derive(secret.encode())


def _bound_to(digest: str) -> bytes:
    return b"bakerygw session " + VERSION + digest.encode()


def _mac(key: bytes, session_id: bytes) -> bytes:
    return urlsafe_b64encode(hmac.digest(key, session_id, sha256)).rstrip(b"=")
