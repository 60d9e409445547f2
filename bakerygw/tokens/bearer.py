"""Access tokens as `Credentials`."""

from bakerygw.core.claims import Claims
from bakerygw.tokens.verifier import TokenVerifier


class BearerTokens:
    """`Credentials` over a `TokenVerifier`."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def known(self, secret: bytes) -> Claims | None:
        """Claims of a token verified here before that has not expired."""
        return self._verifier.known(secret)

    def peek(self, secret: bytes) -> Claims | None:
        """What it says of itself."""
        return self._verifier.peek(secret)

    async def verify(self, secret: bytes) -> Claims:
        """Claims of a good token. Raises `TokenRefused`."""
        return self._verifier.verify(secret)
