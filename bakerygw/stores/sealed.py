"""Answers of other services in the shared store, sealed: whoever can write there can't make the gateway believe it."""

import hmac
from collections.abc import Callable
from typing import ClassVar, Final

from twisted.logger import Logger

from bakerygw.ports import Records, StoreUnavailable

MAX_BYTES: Final = 4096
"""Longer values are not ours."""
SEAL_BYTES: Final = 32
_PURPOSE: Final = b"bakerygw lookups v1"
"""Keeps seals for other purposes under the same secret apart, and those of other forms of the text."""


class SealedRecords:
    """Implements `ports.SharedFacts` over `Records`, with an HMAC-SHA256 of key and value before each value."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, records: Records, secret: str, forged: Callable[[], None]) -> None:
        """`secret` is the same on all instances; `forged` is called for each value whose seal is not ours."""
        self._records, self._forged = records, forged
        self._key = hmac.digest(secret.encode(), _PURPOSE, "sha256")

    async def get(self, key: str) -> bytes | None:
        """The value at this key, if its seal is ours and made for this key."""
        try:
            sealed = await self._records.get(key)
        except StoreUnavailable:
            return None
        if sealed is None:
            return None
        seal, value = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
        if len(sealed) > MAX_BYTES or not hmac.compare_digest(seal, self._seal(key, value)):
            self._forged()
            self._log.warn("lookup.seal_refused", key=key)
            return None
        return value

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Offer it to all instances; a store that is away makes no difference."""
        try:
            await self._records.put(key, self._seal(key, value) + value, ttl_s=ttl_s)
        except StoreUnavailable:
            return

    def _seal(self, key: str, value: bytes) -> bytes:
        name = key.encode()
        return hmac.digest(self._key, b"%d:%b%b" % (len(name), name, value), "sha256")
