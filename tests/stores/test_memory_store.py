"""What only the embedded store has to see to: its memory and its clock."""

from deferreds import success_of
from twisted.internet.defer import Deferred

from bakerygw.core.limits import Bucket, LimitRule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, Changed
from bakerygw.stores.memory import MemoryStore

RULE = LimitRule(name="r", requests=2, window_s=2)


class Micros:
    now = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now


def admit(store: MemoryStore, key: str) -> bool:
    ask = AdmissionAsk(buckets=(Bucket(key=key, rule=RULE),))
    return success_of(Deferred.fromCoroutine(store.admit(ask))).levels[0].allowed


def test_the_number_of_buckets_is_bounded_and_the_oldest_go_first() -> None:
    store = MemoryStore(Micros(), max_keys=10)
    for number in range(50):
        admit(store, f"k{number}")
        admit(store, f"k{number}")
    assert len(store) == 10
    assert not admit(store, "k49")
    assert admit(store, "k0")


def test_full_buckets_go_by_themselves() -> None:
    clock = Micros()
    store = MemoryStore(clock)
    for number in range(20):
        admit(store, f"k{number}")
    clock.now += 3_000_000
    for _ in range(20):
        admit(store, "other")
        clock.now += 1_000_000
    assert len(store) == 1


def test_a_bucket_refills_on_the_given_clock() -> None:
    clock = Micros()
    store = MemoryStore(clock)
    assert [admit(store, "k") for _ in range(3)] == [True, True, False]
    clock.now += 999_999
    assert not admit(store, "k")
    clock.now += 1
    assert admit(store, "k")


def test_a_clock_set_back_does_not_lock_out() -> None:
    clock = Micros()
    store = MemoryStore(clock)
    admit(store, "k")
    clock.now -= 3_600_000_000
    assert not admit(store, "k")
    clock.now += 1_000_000
    assert admit(store, "k")


def test_a_demo_mark_is_seen_until_it_is_taken_away() -> None:
    store = MemoryStore(Micros())
    success_of(Deferred.fromCoroutine(store.set_demo("t", True)))
    assert success_of(Deferred.fromCoroutine(store.flags("t"))) == TenantFlags(demo=True)
    success_of(Deferred.fromCoroutine(store.set_demo("t", False)))
    assert success_of(Deferred.fromCoroutine(store.flags("t"))) == TenantFlags()


def revoke(store: MemoryStore, digest: str, until_unix_s: float) -> None:
    success_of(Deferred.fromCoroutine(store.revoke(digest, until_unix_s)))


def revoked(store: MemoryStore, digest: str) -> bool | None:
    ask = AdmissionAsk(digests=(digest,))
    return success_of(Deferred.fromCoroutine(store.admit(ask))).revoked[digest]


def test_a_revocation_ends_on_the_given_clock_and_leaves_nothing_behind() -> None:
    clock = Micros()
    store = MemoryStore(clock)
    now_s = clock.now / 1e6
    for number in range(100):
        revoke(store, f"d{number}", now_s + 1 + number)
    assert revoked(store, "d0")
    clock.now += 1_000_000
    assert not revoked(store, "d0")
    assert revoked(store, "d1")
    clock.now += 98_000_000
    revoke(store, "last", now_s + 1000)
    assert revoked(store, "d99")
    assert len(store._revoked) == len(store._endings) == 2


def test_the_number_of_revocations_is_bounded_and_those_that_end_first_go_first() -> None:
    clock = Micros()
    store = MemoryStore(clock, max_revoked=3)
    for number in (9, 2, 5, 7):
        revoke(store, f"d{number}", clock.now / 1e6 + number)
    assert [revoked(store, f"d{number}") for number in (2, 5, 7, 9)] == [False, True, True, True]


def test_a_bucket_in_use_outlives_those_that_are_not() -> None:
    store = MemoryStore(Micros(), max_keys=3)
    admit(store, "mine")
    admit(store, "a")
    admit(store, "b")
    admit(store, "mine")
    admit(store, "c")
    admit(store, "d")
    assert not admit(store, "mine")


def test_whoever_watches_is_told_of_each_change() -> None:
    store = MemoryStore(lambda: 0)
    told: list[Changed | None] = []
    store.on_change(told.append)
    for change in (
        store.set_read_only("t", ReadOnly()),
        store.clear_read_only("t"),
        store.subscription_changed("t", 1.0),
        store.set_demo("t", True),
        store.revoke("d", 60.0),
    ):
        success_of(Deferred.fromCoroutine(change))

    assert told == [Changed(tenants=("t",))] * 4 + [Changed(digests=("d",))]
