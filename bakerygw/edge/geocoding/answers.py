"""The geocoder's answers: kept for weeks, shared by all instances, and found at once where they were found before."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from bakerygw.core.places import Place, PlacesUnreadable, parse_json, read_places
from bakerygw.core.values import value
from bakerygw.ports import Records, StoreUnavailable

KEPT_S: Final = 30 * 86_400.0
EMPTY_KEPT_S: Final = 86_400.0
"""What was not found may be on the map tomorrow."""
MAX_SHARED_BYTES: Final = 64 * 1024
"""A longer answer is not shared; Nominatim's have about 1 KiB a result."""
MAX_LOCAL_BYTES: Final = 8 * 1024 * 1024
"""Of all answers in this process."""
_CLOCK_ERROR_S: Final = 60.0
"""So far ahead another instance's clock may be."""
_OVERHEAD_BYTES: Final = 500
"""What an answer takes beside its bytes."""


@value
class Answer:
    """What was found, ready to be sent."""

    results: bytes
    """A JSON array."""
    until: float
    """Unix seconds at which it must be forgotten."""


class Answers:
    """Answers by the digest of their question, in this process and in `Records`."""

    def __init__(
        self, records: Records | None, *, now: Callable[[], float], max_local_bytes: int = MAX_LOCAL_BYTES
    ) -> None:
        """`records`: where they are shared, `None`: nowhere. `now` gives Unix seconds."""
        self._records, self._now, self._max_bytes = records, now, max_local_bytes
        self._local: OrderedDict[str, Answer] = OrderedDict()
        self._bytes = 0

    def recall(self, key: str) -> bytes | None:
        """The results that this process knows."""
        answer = self._local.get(key)
        if answer is None:
            return None
        if answer.until <= self._now():
            self._forget(key)
            return None
        self._local.move_to_end(key)
        return answer.results

    async def look_up(self, key: str) -> bytes | None:
        """The results that any instance has kept. Raises `StoreUnavailable`."""
        if self._records is None:
            return self.recall(key)
        answer = self._read(await self._records.get(_record(key)))
        if answer is None:
            return None
        self._remember(key, answer)
        return answer.results

    async def keep(self, key: str, places: Sequence[Place]) -> bytes:
        """Keep what was found just now, for all instances if the store can be reached; the results."""
        results = _encoded(places)
        now = self._now()
        ttl_s = KEPT_S if places else EMPTY_KEPT_S
        self._remember(key, Answer(results=results, until=now + ttl_s))
        if self._records is not None and len(results) <= MAX_SHARED_BYTES:
            try:
                await self._records.put(_record(key), b'{"at":%d,"results":%b}' % (now, results), ttl_s=ttl_s)
            except StoreUnavailable:
                return results  # found already; the next who asks is answered from here
        return results

    def _read(self, kept: bytes | None) -> Answer | None:
        """A shared answer; `None` for what is none, since others can write there."""
        if kept is None or len(kept) > MAX_SHARED_BYTES + 100:
            return None
        try:
            document = parse_json(kept)
            if not isinstance(document, dict):
                return None
            places = read_places(document.get("results"))
        except PlacesUnreadable:
            return None
        at, now = document.get("at"), self._now()
        if not isinstance(at, int) or isinstance(at, bool) or at > now + _CLOCK_ERROR_S:
            return None
        until = at + (KEPT_S if places else EMPTY_KEPT_S)
        return Answer(results=_encoded(places), until=until) if until > now else None

    def _remember(self, key: str, answer: Answer) -> None:
        self._forget(key)
        self._local[key] = answer
        self._bytes += len(answer.results) + _OVERHEAD_BYTES
        while self._bytes > self._max_bytes and self._local:
            self._forget(next(iter(self._local)))

    def _forget(self, key: str) -> None:
        answer = self._local.pop(key, None)
        if answer is not None:
            self._bytes -= len(answer.results) + _OVERHEAD_BYTES


def _record(key: str) -> str:
    return f"geocode:answer:{key}"


def _encoded(places: Sequence[Place]) -> bytes:
    document = [place.as_json() for place in places]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
