"""The records of API keys (`KeyStore`), each under a key of its own, and sets of ids to list them by."""

from collections.abc import Callable
from typing import Final

from bakerygw.core.api_keys import ApiKey, is_key_id, record_from, record_json
from bakerygw.core.claims import MAX_UNIX_S
from bakerygw.ports import KeyUnreadable, Records

ALL: Final = "apikeys"
KEEP_S: Final = 30 * 86_400
"""How long a key that has ended is remembered, so that whoever still presents it is told why it is refused."""
USED_TTL_S: Final = 400 * 86_400


class StoredKeys:
    """`KeyStore` over `Records`; `now` is Unix seconds."""

    def __init__(self, records: Records, now: Callable[[], float]) -> None:
        self._records, self._now = records, now

    async def find(self, key_id: str) -> ApiKey | None:
        """The record."""
        data = await self._records.get(_record(key_id))
        if data is None:
            return None
        try:
            return record_from(data, key_id)
        except ValueError as error:
            raise KeyUnreadable(key_id) from error

    async def create(self, record: ApiKey) -> bool:
        """Keep a new record, then list it: a record that is never listed was never told to anybody."""
        data = record_json(record)
        if not await self._records.claim(_record(record.key_id), data, ttl_s=self._ttl_s(record)):
            return False
        for listing in (_of_tenant(record.tenant_id), ALL):
            await self._records.add(listing, record.key_id)
        return True

    async def change(self, before: ApiKey, after: ApiKey) -> bool:
        """Put one in the other's place."""
        return await self._records.replace(
            _record(before.key_id), record_json(before), record_json(after), ttl_s=self._ttl_s(after)
        )

    async def drop(self, key_id: str) -> None:
        """Forget the record; the tenant's list drops it when it is read."""
        await self._records.delete(_record(key_id))
        await self._records.remove(ALL, key_id)

    async def ids(self, tenant_id: str | None) -> list[str]:
        """The ids that are listed; what somebody else has put there is left out."""
        members = await self._records.members(ALL if tenant_id is None else _of_tenant(tenant_id))
        return sorted(filter(is_key_id, members))

    async def unlist(self, key_id: str, tenant_id: str | None) -> None:
        """Leave an id out."""
        await self._records.remove(ALL, key_id)
        if tenant_id is not None:
            await self._records.remove(_of_tenant(tenant_id), key_id)

    async def used(self, key_id: str, at: float) -> None:
        """Remember the moment."""
        await self._records.put(_used(key_id), b"%.0f" % at, ttl_s=USED_TTL_S)

    async def last_used(self, key_id: str) -> float | None:
        """The moment; `None` for what is none."""
        data = await self._records.get(_used(key_id))
        if data is None or not data.isdigit() or len(data) > 12:
            return None
        return min(float(data), MAX_UNIX_S)

    def _ttl_s(self, record: ApiKey) -> float | None:
        ends = [end for end in (record.expires_at, record.revoked_at) if end is not None]
        return max(1.0, min(ends) + KEEP_S - self._now()) if ends else None


def _record(key_id: str) -> str:
    return f"apikey:{key_id}"


def _used(key_id: str) -> str:
    return f"apikey-used:{key_id}"


def _of_tenant(tenant_id: str) -> str:
    return f"{ALL}:{tenant_id}"
