"""One table of the mirror: values by id, of known age, and the reads that may bring new ones."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeVar

from bakerygw.core.values import value

TRUST_S: Final = 0.6
"""How long after the last sign of life Redis is trusted to have told of every change."""
MAX_AGE_S: Final = 60.0
"""How long a value is taken for true without being read again: Redis does not tell of SWAPDB."""
LAST_KNOWN_S: Final = 60.0
"""How long a value may stand in for one that cannot be read, after it was surely true."""

V = TypeVar("V")


class Epoch:
    """A time without a gap in what Redis tells; only what was read in the present one can be true."""

    __slots__ = ("confirmed_at",)

    def __init__(self, confirmed_at: float) -> None:
        self.confirmed_at = confirmed_at
        """The last moment at which all that was read in it was surely true."""


class Read:
    """One read of Redis under way, and what it may bring into the mirror."""

    __slots__ = ("at", "digests", "tenants", "verified")

    def __init__(self, tenants: tuple[str, ...], digests: tuple[str, ...], at: float, *, verified: bool) -> None:
        self.tenants, self.digests, self.at, self.verified = tenants, digests, at, verified


@value
class Found(Generic[V]):
    """What a read found under one id."""

    value: V
    ttl_s: float
    """Seconds until Redis lets it expire, infinite if it does not."""


@value
class Entry(Generic[V]):
    value: V
    read_at: float
    until: float
    """When it is no longer taken for true, whatever Redis tells."""
    expires_at: float
    """When Redis lets it expire; it is not even last known then."""
    epoch: Epoch


class Table(Generic[V]):
    """Values by id, the least recently used going first, and the reads that may bring new ones."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[str, Entry[V]] = OrderedDict()
        self._reading: dict[str, Read] = {}

    def true(self, names: Iterable[str], epoch: Epoch, now: float) -> dict[str, V] | None:
        """All their values, if all are of this epoch, read within `MAX_AGE_S`, and have not expired."""
        entries, found = self._entries, {}
        for name in names:
            entry = entries.get(name)
            if entry is None or entry.epoch is not epoch or now >= entry.until:
                return None
            entries.move_to_end(name)
            found[name] = entry.value
        return found

    def newest(self, name: str, aside: "Table[V]") -> Entry[V] | None:
        """What was read last of it, into this table or into `aside`."""
        entry, other = self._entries.get(name), aside._entries.get(name)
        return other if entry is None or (other is not None and other.read_at > entry.read_at) else entry

    def begin(self, names: Iterable[str], read: Read) -> None:
        """Of several reads of an id under way at once the oldest counts, so that one of them always ends."""
        for name in names:
            self._reading.setdefault(name, read)

    def keep(self, read: Read, found: Mapping[str, Found[V]], epoch: Epoch) -> None:
        """Keep what `read` has found, less what it was not begun for and what has changed since."""
        entries, read_again_at = self._entries, read.at + MAX_AGE_S
        for name, its in found.items():
            if self._reading.get(name) is read:
                expires_at = read.at + its.ttl_s
                until = min(expires_at, read_again_at)
                entries[name] = Entry(value=its.value, read_at=read.at, until=until, expires_at=expires_at, epoch=epoch)
                entries.move_to_end(name)
        while len(entries) > self._size:
            entries.popitem(last=False)

    def end(self, names: Iterable[str], read: Read) -> None:
        """The read is over, however it ended."""
        for name in names:
            if self._reading.get(name) is read:
                del self._reading[name]

    def drop(self, name: str) -> None:
        """It has changed: forget it, and keep nothing that is being read now."""
        self._entries.pop(name, None)
        self._reading.pop(name, None)

    def clear(self) -> None:
        """Everything may have changed."""
        self._entries.clear()
        self._reading.clear()

    def keep_nothing_read_now(self) -> None:
        """What is being read now is of no known age."""
        self._reading.clear()


def last_known(entry: Entry[V] | None, now: float) -> V | None:
    """The value, if it was true not long ago and has not expired."""
    if entry is None or now >= entry.expires_at:
        return None
    return entry.value if now - max(entry.read_at, entry.epoch.confirmed_at) <= LAST_KNOWN_S else None
