"""Who asks."""

from collections.abc import Sequence
from typing import Literal, Protocol

from bakerygw.core.api_keys import ApiKey
from bakerygw.core.claims import Claims

Scheme = Literal["bearer", "key", "session", "ticket"]
"""How a caller identifies itself: an access token, an API key, the cookie of a browser's session, or a ticket, which
stands for one of the others."""


class TokenRefused(Exception):
    """A credential is not acceptable. `code` is a problem code, `reason` a short constant for log and metrics."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class CredentialsUnavailable(Exception):
    """Whether a credential is good can't be told at the moment."""


class Credentials(Protocol):
    """One kind of credential into claims. What was presented comes from anybody."""

    def known(self, secret: bytes) -> Claims | None:
        """Claims of a credential that this instance has verified before and that has not expired. At once."""

    def peek(self, secret: bytes) -> Claims | None:
        """What it says of itself, unverified: fit for choosing what to prefetch, never for a decision."""

    async def verify(self, secret: bytes) -> Claims:
        """Claims of a good credential, remembered for `known`. Raises `TokenRefused`, `StoreUnavailable` or
        `CredentialsUnavailable`."""


class KeyUnreadable(Exception):
    """What the shared state holds in the place of an API key's record is none."""


class KeyStore(Protocol):
    """The records of API keys. Each call raises `StoreUnavailable`."""

    async def find(self, key_id: str) -> ApiKey | None:
        """The record; `None` if there is none, or none any more. Raises `KeyUnreadable`."""

    async def create(self, record: ApiKey) -> bool:
        """Keep a new record; whether its id was free. It counts, and is listed, when the call ends."""

    async def change(self, before: ApiKey, after: ApiKey) -> bool:
        """Put `after` in the place of `before`, unless somebody else has changed it; whether it was put."""

    async def drop(self, key_id: str) -> None:
        """Forget the record, readable or not."""

    async def ids(self, tenant_id: str | None) -> list[str]:
        """The ids of all keys, or of one tenant's, in order; records that have ended meanwhile may be among them."""

    async def unlist(self, key_id: str, tenant_id: str | None) -> None:
        """Leave an id whose record has ended out of the list, and out of this tenant's if it is named."""

    async def used(self, key_id: str, at: float) -> None:
        """Remember that the key was of use at this moment, in Unix seconds."""

    async def last_used(self, key_id: str) -> float | None:
        """The moment that was remembered last."""


class SessionSealer(Protocol):
    """Keeps what must lie in the shared state from whoever can read or write that, and pages of other sites out."""

    @property
    def thumbprints(self) -> Sequence[bytes]:
        """Of the secrets that are in force; the first is the one that seals."""

    def seal(self, session_id: bytes, text: bytes) -> bytes:
        """`text` for this session, unreadable and unchangeable without its id, and good for no other session."""

    def opened_with(self, session_id: bytes, sealed: bytes) -> tuple[bytes, bytes] | None:
        """The text, and the thumbprint of its secret; `None` for whatever was not sealed here for this session."""

    def csrf_token(self, session_id: bytes) -> str:
        """The token that writes of this session have to show."""

    def csrf_good(self, session_id: bytes, token: bytes) -> bool:
        """Whether it is this session's."""
