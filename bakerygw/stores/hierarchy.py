"""Whose part a tenant is: in Redis, by way of the mirror, and in this process."""

from importlib.resources import files
from math import inf
from typing import Final, cast

from bakerygw.core.claims import is_id
from bakerygw.core.hierarchy import MAX_STEPS, ancestors_of
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.mirror import PARENT, TENANT_PREFIX, Mirror
from bakerygw.stores.mirror_table import Found
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Script
from bakerygw.stores.resilient import Seconds

MAX_ID_BYTES: Final = 64


class RedisHierarchy:
    """`Hierarchy` over one `RedisLink`; what the mirror holds costs no call."""

    def __init__(self, link: RedisLink, mirror: Mirror, clock: Seconds) -> None:
        """`clock` is the mirror's. While Redis does not answer, what it was last known to hold stands in."""
        self._link, self._mirror, self._clock = link, mirror, clock
        self._script = Script.of(files("bakerygw.stores").joinpath("hierarchy.lua").read_bytes())

    async def ancestors(self, tenant_id: str) -> tuple[str, ...]:
        """Its parent, that one's parent, and so on. Raises `StoreUnavailable`."""
        known = self._mirror.parents.held(tenant_id, self._clock.seconds())
        if known is not None:
            return known
        read = self._mirror.parents.begin(self._clock.seconds())
        try:
            found = _links(tenant_id, await self._ask(tenant_id))
        except StoreUnavailable:
            known = self._mirror.parents.last_known(tenant_id, self._clock.seconds())
            if known is None:
                raise
            return known
        self._mirror.parents.keep(read, found)
        return ancestors_of(tenant_id, lambda name: found[name].value)

    async def _ask(self, tenant_id: str) -> object:
        arguments: list[Argument] = [tenant_id, TENANT_PREFIX, f":{PARENT}", MAX_STEPS, MAX_ID_BYTES]
        return await self._link.run(self._script, [], arguments)


class MemoryHierarchy:
    """`Hierarchy` for a single instance."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    async def ancestors(self, tenant_id: str) -> tuple[str, ...]:
        """Its parent, that one's parent, and so on."""
        return ancestors_of(tenant_id, self._parents.get)

    async def set_parent(self, tenant_id: str, parent: str | None) -> None:
        """Make it part of another, or of none."""
        if parent is None:
            self._parents.pop(tenant_id, None)
        else:
            self._parents[tenant_id] = parent


def _links(tenant_id: str, reply: object) -> "dict[str, Found[str]]":  # a compiled class can't be subscripted
    """The parent of each tenant in the script's flat reply, '' for none. Raises `StoreUnavailable` for any other."""
    links: dict[str, Found[str]] = {}
    name = tenant_id
    pairs = cast("list[object]", reply)[: 2 * MAX_STEPS] if isinstance(reply, list) else []
    for parent, ttl_ms in zip(pairs[::2], pairs[1::2], strict=False):
        if not isinstance(parent, bytes) or not isinstance(ttl_ms, int) or name in links:
            raise StoreUnavailable("unreadable parents")
        text = parent.decode("latin-1")
        if text and not is_id(text):
            raise StoreUnavailable("unreadable parents")
        links[name] = Found(value=text, ttl_s=ttl_ms / 1000 if ttl_ms >= 0 else inf)
        name = text
    if not links or (name and name not in links and len(links) < MAX_STEPS):
        raise StoreUnavailable("unreadable parents")
    return links
