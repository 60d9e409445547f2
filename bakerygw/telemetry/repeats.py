"""Equal events of one minute as one: a flood of refusals must not fill what is kept for a year."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from bakerygw.telemetry.entries import Entry, fresh_id
from bakerygw.telemetry.subjects import name_of

WINDOW_S: Final = 60.0
MAX_GROUPS: Final = 1000
"""Different refusals told apart within one window, twice as many of known users; beyond it only code and route are."""
VARYING: Final = frozenset({"request_id", "when", "path", "duration_ms"})
"""In what equal events may differ."""

Key = tuple[object, ...]


class _Group:
    __slots__ = ("count", "entry", "since", "until", "when")

    def __init__(self, entry: Entry, until: float) -> None:
        self.entry, self.until, self.count = entry, until, 0
        self.since = self.when = entry.when


class Repeats:
    """Lets the first of equal events pass, counts the others, and tells of them when the window is over."""

    def __init__(self, seconds: Callable[[], float], *, max_groups: int = MAX_GROUPS) -> None:
        """`seconds` is a monotonic clock."""
        self._seconds, self._max = seconds, max_groups
        self._groups: dict[Key, _Group] = {}

    def again(self, key: Key, *, code: str | None, route: str, known: bool, stamp: Callable[[], str]) -> bool:
        """Whether an event with this key is being counted, and so is this one. Takes 1 us, however many there are.

        The key tells all in which events may differ and begins with the event; `known`: of a user who is known.
        """
        group = self._groups.get(key)
        if group is None and self._full(known):
            group = self._groups.get((key[0], code, route, ANYBODY))
        if group is None:
            return False
        group.count += 1
        group.when = stamp()
        return True

    def first(self, entry: Entry, key: Key | None = None) -> bool:
        """Whether this event is to be told of now; else it is counted. `key`: as for `again`."""
        key = key or _key(entry)
        group = self._groups.get(key)
        if group is None and self._full(entry.user_id is not None):
            key = entry.event, entry.fields.get("code"), entry.fields.get("route"), ANYBODY
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Group(_anybody(entry), self._seconds() + WINDOW_S)
        if group is None:
            self._groups[key] = _Group(entry, self._seconds() + WINDOW_S)
            return True
        group.count += 1
        group.when = entry.when
        return False

    def _full(self, known: bool) -> bool:
        """Callers who are known keep room of their own: nobody else can provoke refusals of theirs."""
        return len(self._groups) >= (2 * self._max if known else self._max)

    def over(self) -> Iterator[Entry]:
        """What was counted in windows that are over, each group as one entry with `count` and `since`."""
        now = self._seconds()
        return self._ended([key for key, group in self._groups.items() if group.until <= now])

    def all(self) -> Iterator[Entry]:
        """The same of every window."""
        return self._ended(list(self._groups))

    def of(self, name: str) -> Iterator[Entry]:
        """The same of every window of the user whose key has this name: further events of theirs begin anew."""
        groups = self._groups.items()
        whose = [(key, group.entry.user_id) for key, group in groups]
        return self._ended([key for key, user_id in whose if user_id is not None and name_of(user_id) == name])

    def _ended(self, keys: list[Key]) -> Iterator[Entry]:
        for key in keys:
            group = self._groups.pop(key)
            if group.count:
                fields = {**group.entry.fields, "count": group.count, "since": group.since}
                yield replace(group.entry, id=fresh_id(), when=group.when, fields=fields)


ANYBODY: Final = "anybody"


def _key(entry: Entry) -> Key:
    whose = tuple(f"{name}={value}" for name, value in sorted(entry.personal.items()) if name not in VARYING)
    other = tuple(f"{name}={value}"[:512] for name, value in sorted(entry.fields.items()) if name not in VARYING)
    return entry.event, entry.user_id, whose, other, entry.fields.get("who")


def _anybody(entry: Entry) -> Entry:
    """The same, of no one in particular."""
    kept = {name: value for name, value in entry.fields.items() if name in ("code", "route", "outcome")}
    return Entry(
        ledger=entry.ledger,
        when=entry.when,
        event=entry.event,
        user_id=None,
        personal={},
        fields={**kept, "who": ANYBODY},
    )
