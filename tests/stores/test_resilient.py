"""What holds while the shared store is away."""

from math import inf

import pytest
from deferreds import failure_of, success_of
from store_fakes import RecordingTelemetry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.limits import Bucket, LimitRule, TenantLimit, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, AdmissionState, StoreUnavailable
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.mirror_table import LAST_KNOWN_S, Found
from bakerygw.stores.resilient import ResilientAdmission

TENANTS = 100
RULE = LimitRule(name="r", requests=2, window_s=3600)
HELD = TenantFlags(read_only=ReadOnly(reason="unpaid"))


class Primary:
    """An `AdmissionStore` that can be away, and tells the mirror what it reads."""

    def __init__(self, mirror: Mirror, clock: Clock) -> None:
        self.mirror, self.clock = mirror, clock
        self.away = False
        self.known: dict[str, TenantFlags | None] = {}
        self.revoked: set[str] = set()

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        if self.away:
            raise StoreUnavailable("away")
        flags = {t: self.known.get(t, TenantFlags()) for t in ask.tenants}
        revoked = {digest: digest in self.revoked for digest in ask.digests}
        read = self.mirror.begin(ask.tenants, ask.digests, self.clock.seconds())
        self.mirror.keep(
            read,
            {name: Found(value=its, ttl_s=inf) for name, its in flags.items()},
            {name: Found(value=its, ttl_s=inf) for name, its in revoked.items()},
        )
        self.mirror.end(read)
        return AdmissionState(levels=(), flags=flags, revoked=revoked)


class Bench:
    def __init__(self, on_failure="local") -> None:
        self.clock, self.telemetry, self.mirror = Clock(), RecordingTelemetry(), Mirror(max_tenants=TENANTS)
        self.clock.advance(1000)
        self.primary = Primary(self.mirror, self.clock)
        self.store = ResilientAdmission(
            self.primary,
            on_failure=on_failure,
            local=MemoryStore(lambda: int(self.clock.seconds() * 1e6)),
            mirror=self.mirror,
            clock=self.clock,
            telemetry=self.telemetry,
        )

    def start(self, *keys, tenants=(), digests=()):
        buckets = tuple(Bucket(key=key, rule=RULE) for key in keys)
        ask = AdmissionAsk(buckets=buckets, tenants=tenants, digests=digests)
        return Deferred.fromCoroutine(self.store.admit(ask))

    def admit(self, *keys, tenants=(), digests=()):
        return success_of(self.start(*keys, tenants=tenants, digests=digests))


def test_the_primary_answers_while_it_can():
    bench = Bench()
    bench.primary.known["t"] = HELD
    assert bench.admit(tenants=("t",)).flags == {"t": HELD}
    assert bench.telemetry.degradations == []


def test_local_buckets_hold_the_limit():
    bench = Bench("local")
    bench.primary.away = True
    assert [bench.admit("u").levels[0].allowed for _ in range(3)] == [True, True, False]


def test_open_lets_all_pass_and_shows_full_buckets():
    bench = Bench("open")
    bench.primary.away = True
    levels = [bench.admit("u").levels[0] for _ in range(5)]
    assert {(level.allowed, level.remaining, level.reset_us) for level in levels} == {(True, 2, 0)}


def test_closed_says_so_where_a_limit_was_asked():
    bench = Bench("closed")
    bench.primary.away = True
    failure_of(bench.start("u"), StoreUnavailable)
    assert bench.admit(tenants=("t",)).flags == {"t": None}


@pytest.mark.parametrize("age", [0.0, LAST_KNOWN_S])
def test_flags_last_seen_stand_in_for_a_while(age):
    bench = Bench()
    bench.primary.known["t"] = HELD
    bench.admit(tenants=("t", "clean"))
    bench.primary.away = True
    bench.clock.advance(age)
    assert bench.admit(tenants=("t", "clean", "never")).flags == {"t": HELD, "clean": TenantFlags(), "never": None}


def test_flags_seen_too_long_ago_are_unknown():
    bench = Bench()
    bench.admit(tenants=("t",))
    bench.primary.away = True
    bench.clock.advance(LAST_KNOWN_S + 0.1)
    assert bench.admit(tenants=("t",)).flags == {"t": None}


def test_revocations_last_seen_stand_in_for_a_while_and_then_are_unknown():
    bench = Bench()
    bench.primary.revoked = {"bad"}
    bench.admit(digests=("good", "bad"))
    bench.primary.away = True
    bench.clock.advance(LAST_KNOWN_S)
    assert bench.admit(digests=("good", "bad", "never")).revoked == {"good": False, "bad": True, "never": None}
    bench.clock.advance(0.1)
    assert bench.admit(digests=("good",)).revoked == {"good": None}


def test_what_this_instance_has_revoked_stays_so_while_the_store_is_away():
    bench = Bench()
    bench.mirror.revoke("mine", bench.clock.seconds() + 600)
    bench.primary.away = True
    bench.clock.advance(599)
    assert bench.admit(digests=("mine",)).revoked == {"mine": True}


def test_what_was_mirrored_to_the_last_counts_from_the_end_of_the_mirror():
    bench = Bench()
    epoch = bench.mirror.whole(bench.clock.seconds())
    bench.primary.known["t"] = HELD
    bench.admit(tenants=("t",))
    bench.clock.advance(600)
    bench.mirror.confirm(epoch, bench.clock.seconds())
    bench.mirror.broken()
    bench.primary.away = True
    bench.clock.advance(LAST_KNOWN_S)
    assert bench.admit(tenants=("t",)).flags == {"t": HELD}
    bench.clock.advance(0.1)
    assert bench.admit(tenants=("t",)).flags == {"t": None}


def test_an_outage_does_not_make_old_flags_young():
    bench = Bench()
    bench.admit(tenants=("t",))
    bench.primary.away = True
    for _ in range(7):
        bench.clock.advance(10)
        flags = bench.admit(tenants=("t",)).flags
    assert flags == {"t": None}


def test_an_unreadable_value_is_unknown_and_not_replaced_by_an_older_one():
    bench = Bench()
    bench.admit(tenants=("t",))
    bench.primary.known["t"] = None
    assert bench.admit(tenants=("t",)).flags == {"t": None}


def test_the_number_of_tenants_remembered_is_bounded():
    bench = Bench()
    bench.admit(tenants=("first",))
    bench.admit(tenants=tuple(f"t{n}" for n in range(TENANTS)))
    bench.primary.away = True
    assert bench.admit(tenants=("first", "t0")).flags == {"first": None, "t0": TenantFlags()}


def test_changes_are_told_once_each():
    bench = Bench()
    for away in (False, True, True, False, False, True):
        bench.primary.away = away
        bench.admit("u")
    assert bench.telemetry.degradations == [True, False, True]


def test_a_tenant_seen_again_outlives_those_that_were_not():
    bench = Bench()
    bench.admit(tenants=("mine", "old"))
    bench.admit(tenants=("mine",))
    bench.admit(tenants=tuple(f"t{n}" for n in range(TENANTS - 1)))
    bench.primary.away = True
    assert bench.admit(tenants=("mine", "old")).flags == {"mine": TenantFlags(), "old": None}


def test_a_tenants_limit_holds_locally_as_long_as_it_is_last_known():
    bench = Bench()
    limit = TenantLimit(rule=tenant_rule(1, 3600, shadow=False, until=1e9))
    bench.primary.known["t"] = TenantFlags(limit=limit)
    bench.admit(tenants=("t",))
    bench.primary.away = True
    asked = AdmissionAsk(buckets=(Bucket(key="u", rule=RULE),), tenants=("t",), limit_of="t", verified=True)
    levels = [success_of(Deferred.fromCoroutine(bench.store.admit(asked))).levels for _ in range(2)]
    assert [[level.allowed for level in its] for its in levels] == [[True, True], [True, False]]
    assert levels[1][1].rule == limit.rule
    bench.clock.advance(LAST_KNOWN_S + 1)
    assert len(success_of(Deferred.fromCoroutine(bench.store.admit(asked))).levels) == 1


def test_looking_at_local_buckets_takes_nothing_either():
    bench = Bench()
    bench.primary.away = True
    look = AdmissionAsk(buckets=(Bucket(key="u", rule=RULE),), peek=True)
    levels = [success_of(Deferred.fromCoroutine(bench.store.admit(look))).levels[0] for _ in range(3)]
    assert [level.remaining for level in levels] == [2, 2, 2]
