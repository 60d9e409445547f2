"""Shared answers: nobody who can write to the store makes an instance believe them."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.records import MemoryRecords
from bakerygw.stores.sealed import MAX_BYTES, SEAL_BYTES, SealedRecords
from tests.deferreds import success_of


class Place:
    """Records that several instances share."""

    def __init__(self, secret: str = "s" * 32) -> None:
        self.records = MemoryRecords(lambda: 0.0)
        self.refused = 0
        self.sealed = self.instance(secret)

    def instance(self, secret: str) -> SealedRecords:
        return SealedRecords(self.records, secret, self._refuse)

    def _refuse(self) -> None:
        self.refused += 1

    def put(self, key: str, value: bytes) -> None:
        run(self.sealed.put(key, value, ttl_s=60))

    def raw(self, key: str) -> bytes:
        found = run(self.records.get(key))
        assert found is not None
        return found

    def write(self, key: str, data: bytes) -> None:
        run(self.records.put(key, data, ttl_s=60))


def run(coroutine: Any) -> Any:
    return success_of(Deferred.fromCoroutine(coroutine))


def test_every_instance_with_the_secret_reads_what_one_has_put():
    place = Place()
    place.put("k", b"value")
    assert run(place.instance("s" * 32).get("k")) == b"value"
    assert run(place.sealed.get("other")) is None
    assert place.refused == 0


@pytest.mark.parametrize(
    "forge",
    [
        lambda raw: b"value",
        lambda raw: b"",
        lambda raw: raw[:SEAL_BYTES],
        lambda raw: raw[:-1],
        lambda raw: raw + b"!",
        lambda raw: raw[:SEAL_BYTES] + b"VALUE",
        lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
        lambda raw: b"\0" * SEAL_BYTES + raw[SEAL_BYTES:],
        lambda raw: raw + b" " * MAX_BYTES,
        lambda raw: b"x" * 10_000_000,
    ],
)
def test_an_altered_value_is_as_if_nothing_were_there_and_is_counted(forge):
    place = Place()
    place.put("k", b"value")
    place.write("k", forge(place.raw("k")))
    assert run(place.sealed.get("k")) is None
    assert place.refused == 1


def test_a_value_belongs_to_its_key():
    place = Place()
    place.put("rich", b"value")
    place.write("poor", place.raw("rich"))
    assert run(place.sealed.get("poor")) is None
    assert place.refused == 1


def test_another_secret_seals_nothing():
    place = Place()
    run(place.instance("t" * 32).put("k", b"value", ttl_s=60))
    assert run(place.sealed.get("k")) is None


def test_a_store_that_is_away_holds_nothing_and_breaks_nothing():
    class Away(MemoryRecords):
        async def get(self, key: str) -> bytes | None:
            raise StoreUnavailable

        async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
            raise StoreUnavailable

    sealed = SealedRecords(Away(lambda: 0.0), "s" * 32, lambda: None)
    run(sealed.put("k", b"v", ttl_s=1))
    assert run(sealed.get("k")) is None


def test_what_is_too_long_for_an_answer_is_not_even_looked_at():
    place = Place()
    place.put("k", b"x" * MAX_BYTES)
    assert run(place.sealed.get("k")) is None
