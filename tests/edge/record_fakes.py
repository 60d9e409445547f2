"""Shared records that a test can take away."""

from collections.abc import Callable

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.records import MemoryRecords


class Shared(MemoryRecords):
    """Records that can be away."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.down = False

    async def get(self, key: str) -> bytes | None:
        self._check()
        return await super().get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
        self._check()
        await super().put(key, value, ttl_s=ttl_s)

    async def claim(self, key: str, value: bytes, *, ttl_s: float | None) -> bool:
        self._check()
        return await super().claim(key, value, ttl_s=ttl_s)

    async def replace(self, key: str, expected: bytes, value: bytes | None, *, ttl_s: float | None) -> bool:
        self._check()
        return await super().replace(key, expected, value, ttl_s=ttl_s)

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("away")
