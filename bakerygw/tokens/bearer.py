"""Access tokens as `Credentials`."""

from collections.abc import Callable
from typing import Protocol

from bakerygw.core.claims import Claims
from bakerygw.ports import TokenRefused
from bakerygw.tokens.shared import SharedTokens
from bakerygw.tokens.verifier import TokenVerifier


class Renewable(Protocol):
    """Keys of which there may be newer ones elsewhere."""

    async def look_again(self) -> None:
        """Have them fetched, if it is time. Raises `CredentialsUnavailable` while there are none at all."""


class BearerTokens:
    """`Credentials` over a `TokenVerifier`, the keys that it may lack, and what other instances have verified."""

    def __init__(
        self, verifier: TokenVerifier, *, keys: Renewable | None = None, shared: SharedTokens | None = None
    ) -> None:
        """`keys`: where the verifier's come from, if there may be others tomorrow."""
        self._verifier, self._keys, self._shared = verifier, keys, shared
        self.known: Callable[[bytes], Claims | None] = verifier.known
        """Claims of a token verified here before that has not expired; asked for every request, so without a detour."""

    def peek(self, secret: bytes) -> Claims | None:
        """What it says of itself."""
        return self._verifier.peek(secret)

    async def verify(self, secret: bytes) -> Claims:
        """Claims of a good token. Raises `TokenRefused`, and `CredentialsUnavailable` without any key."""
        if self._shared is not None:
            claims = await self._vouched(secret, self._shared)
            if claims is not None:
                return claims
        try:
            claims = self._verifier.verify(secret)
        except TokenRefused as refused:
            if self._keys is None or refused.reason != "unknown-key":
                raise
            await self._keys.look_again()
            claims = self._verifier.verify(secret)
        if self._shared is not None:
            thumbprint = self._verifier.key_of(secret)
            if thumbprint is not None:
                self._shared.vouch(secret, claims, thumbprint)
        return claims

    async def _vouched(self, secret: bytes, shared: SharedTokens) -> Claims | None:
        """Claims of a token that another instance has verified by the key that it needs here; all but the signature
        is checked again. Raises `TokenRefused`."""
        thumbprint, said = self._verifier.key_of(secret), self._verifier.peek(secret)
        if thumbprint is None or said is None or not await shared.vouches(secret, said, thumbprint):
            return None
        return self._verifier.verify(secret, vouched_by=thumbprint)
