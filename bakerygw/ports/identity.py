"""Who asks."""

from typing import Literal, Protocol

from bakerygw.core.claims import Claims

Scheme = Literal["bearer", "key", "session"]
"""How a caller identifies itself: an access token, an API key, or the cookie of a browser's session."""


class TokenRefused(Exception):
    """A credential is not acceptable. `code` is a problem code, `reason` a short constant for log and metrics."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Credentials(Protocol):
    """One kind of credential into claims. What was presented comes from anybody."""

    def known(self, secret: bytes) -> Claims | None:
        """Claims of a credential that this instance has verified before and that has not expired. At once."""

    def peek(self, secret: bytes) -> Claims | None:
        """What it says of itself, unverified: fit for choosing what to prefetch, never for a decision."""

    async def verify(self, secret: bytes) -> Claims:
        """Claims of a good credential, remembered for `known`. Raises `TokenRefused` or `StoreUnavailable`."""


class Sealer(Protocol):
    """Keeps what must lie in the shared state from whoever can read or write that, and pages of other sites out."""

    def seal(self, digest: str, text: bytes) -> bytes:
        """`text` for the session of this digest, unreadable and unchangeable, and good for no other session."""

    def opened(self, digest: str, sealed: bytes) -> bytes | None:
        """The text; `None` for whatever was not sealed here for this session."""

    def csrf_token(self, session_id: bytes) -> str:
        """The token that writes of this session have to show."""

    def csrf_good(self, session_id: bytes, token: bytes) -> bool:
        """Whether it is this session's."""
