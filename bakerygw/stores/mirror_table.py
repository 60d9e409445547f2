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

    def awaits(self, name: str, read: Read) -> bool:
        """Whether `keep` would take what `read` has found under this name: nothing has changed since it began."""
        return self._reading.get(name) is read

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

    def put_over(self, name: str, value: V, until: float) -> None:
        """What is held under this name, if anything is, becomes this value until then at most."""
        entry = self._entries.get(name)
        if entry is not None:
            self._entries[name] = Entry(
                value=value,
                read_at=entry.read_at,
                until=min(entry.until, until),
                expires_at=min(entry.expires_at, until),
                epoch=entry.epoch,
            )

    def clear(self) -> None:
        """Everything may have changed."""
        self._entries.clear()
        self._reading.clear()

    def keep_nothing_read_now(self) -> None:
        """What is being read now is of no known age."""
        self._reading.clear()


class Kept:
    """Names of which something holds until a moment, whatever is read of them; the oldest go first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._until: OrderedDict[str, float] = OrderedDict()

    def put(self, name: str, until: float) -> None:
        """It holds until then."""
        self._until[name] = until
        self._until.move_to_end(name)
        while len(self._until) > self._size:
            self._until.popitem(last=False)

    def until(self, name: str, now: float) -> float:
        """Until when it holds; `now` if it does not."""
        until = self._until.get(name)
        if until is None:
            return now
        if now < until:
            return until
        del self._until[name]
        return now

    def drop(self, name: str) -> None:
        """It holds no longer."""
        self._until.pop(name, None)


def last_known(entry: Entry[V] | None, now: float) -> V | None:
    """The value, if it was true not long ago and has not expired."""
    if entry is None or now >= entry.expires_at:
        return None
    return entry.value if now - max(entry.read_at, entry.epoch.confirmed_at) <= LAST_KNOWN_S else None
