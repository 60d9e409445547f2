"""Memories of bounded size, in which what was used longest ago makes room."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key. `use` and `put` are uses of a key; `get` is none."""

    def __init__(self, size: int) -> None:
        """With more than `size` values the one whose key was used longest ago is forgotten."""
        self._size: Final = size
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, which stays as old as it is."""
        return self._entries.get(key)

    def use(self, key: K) -> V | None:
        """The value, from here on the one used last."""
        entries = self._entries
        value = entries.get(key)
        if value is not None:
            entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember the value, in place of an earlier one."""
        entries = self._entries
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > self._size:
            entries.popitem(last=False)

    def drop(self, key: K) -> V | None:
        """Forget the value; which it was."""
        return self._entries.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All that is remembered now, the one used longest ago first."""
        return list(self._entries.items())

    def values(self) -> list[V]:
        """The same without the keys."""
        return list(self._entries.values())

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Seldom(Generic[K]):
    """Of what happens again and again tells when it is worth a word: once in `every_s` seconds for each key."""

    def __init__(self, every_s: float, size: int) -> None:
        """`size` keys are remembered; beyond it the one that was told longest ago is worth a word at once."""
        self._every_s: Final = every_s
        self._told: Recent[K, float] = Recent(size)

    def is_due(self, key: K, now: float) -> bool:
        """Whether it is to be told of `now`, which then counts; in seconds. After a clock was set back it always is."""
        told = self._told.get(key)
        if told is not None and 0 <= now - told < self._every_s:
            return False
        self._told.put(key, now)
        return True

    def __len__(self) -> int:
        return len(self._told)
