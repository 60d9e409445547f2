"""One contract for the embedded store and for Redis."""

import time

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, invalidations_of, link_to, pause, store_over, trusted
from twisted.internet.defer import Deferred, gatherResults

from bakerygw.core.limits import Bucket, LimitRule, TenantLimit, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.mirror import Mirror

HOUR = LimitRule(name="default", requests=3, window_s=3600)
QUICK = LimitRule(name="quick", requests=20, window_s=1)
SHADOW = LimitRule(name="shadow", requests=1, window_s=3600, shadow=True)


@pytest_twisted.async_yield_fixture(params=["memory", "redis", "mirrored"])
async def store(request):
    if request.param == "memory":
        yield MemoryStore(lambda: time.time_ns() // 1000)
        return
    server, mirror = request.getfixturevalue("redis_server"), Mirror()
    link = link_to(server, RecordingTelemetry())
    invalidations = invalidations_of(server, link, mirror)
    await link.start()
    if request.param == "mirrored":
        invalidations.start()
        await trusted(mirror)
    yield store_over(link, mirror)
    await invalidations.stop()
    await link.stop()


def ask(*buckets, tenants=(), digests=(), verified=True):
    buckets = tuple(Bucket(key=key, rule=rule) for key, rule in buckets)
    return AdmissionAsk(buckets=buckets, tenants=tenants, digests=digests, verified=verified)


async def verdicts(store, asked, times):
    return [[level.allowed for level in (await store.admit(asked)).levels] for _ in range(times)]


@pytest_twisted.ensureDeferred
async def test_a_bucket_gives_its_tokens_and_then_refuses(store):
    states = [(await store.admit(ask(("u", HOUR)))).levels[0] for _ in range(4)]
    assert [(level.allowed, level.remaining) for level in states] == [(True, 2), (True, 1), (True, 0), (False, 0)]
    assert all(level.rule is HOUR for level in states)
    assert [level.retry_us == 0 for level in states] == [True, True, True, False]
    assert HOUR.cost_us - 5_000_000 < states[3].retry_us <= HOUR.cost_us
    assert HOUR.capacity_us - 5_000_000 < states[3].reset_us <= HOUR.capacity_us


@pytest_twisted.ensureDeferred
async def test_subjects_do_not_share_a_bucket(store):
    assert await verdicts(store, ask(("a", HOUR)), 4) == [[True], [True], [True], [False]]
    assert await verdicts(store, ask(("b", HOUR)), 1) == [[True]]


@pytest_twisted.ensureDeferred
async def test_a_token_is_back_after_the_time_told(store):
    while (level := (await store.admit(ask(("q", QUICK)))).levels[0]).allowed:
        pass
    await pause(level.retry_us / 1e6 + 0.002)
    assert (await store.admit(ask(("q", QUICK)))).levels[0].allowed


@pytest_twisted.ensureDeferred
async def test_a_refused_request_costs_none_of_its_buckets_anything(store):
    small = LimitRule(name="small", requests=1, window_s=3600)
    assert await verdicts(store, ask(("one", small), ("many", HOUR)), 5) == [[True, True]] + [[False, True]] * 4
    assert (await store.admit(ask(("many", HOUR)))).levels[0].remaining == 1


@pytest_twisted.ensureDeferred
async def test_an_empty_shadow_bucket_stops_nobody(store):
    assert await verdicts(store, ask(("s", SHADOW), ("u", HOUR)), 4) == [
        [True, True],
        [False, True],
        [False, True],
        [False, False],
    ]


@pytest_twisted.ensureDeferred
async def test_asks_of_one_turn_share_one_budget_and_keep_their_order(store):
    asks = [Deferred.fromCoroutine(store.admit(ask(("u", HOUR), tenants=(f"t{n}",)))) for n in range(10)]
    states = await gatherResults(asks)
    assert [state.levels[0].allowed for state in states] == [True] * 3 + [False] * 7
    assert [list(state.flags) for state in states] == [[f"t{n}"] for n in range(10)]


@pytest_twisted.ensureDeferred
async def test_who_is_not_verified_is_answered_as_well_alone_and_beside_who_is(store):
    await store.set_read_only("held", ReadOnly(reason="x"))
    await store.revoke("d", time.time() + 60)
    asks = [
        ask(("u", HOUR), tenants=tenants, digests=digests, verified=verified)
        for tenants, digests, verified in [
            (("a", "held"), ("c",), False),
            (("b",), ("d",), True),
            (("held", "b"), ("d",), False),
        ]
    ]
    together = await gatherResults([Deferred.fromCoroutine(store.admit(one)) for one in asks])
    alone = [await store.admit(one) for one in asks]
    held, free = TenantFlags(read_only=ReadOnly(reason="x")), TenantFlags()
    for states in (together, alone):
        assert [state.flags for state in states] == [{"a": free, "held": held}, {"b": free}, {"held": held, "b": free}]
        assert [state.revoked for state in states] == [{"c": False}, {"d": True}, {"d": True}]
    assert [state.levels[0].allowed for state in (*together, *alone)] == [True] * 3 + [False] * 3


@pytest_twisted.ensureDeferred
async def test_far_more_asks_than_one_batch_are_all_answered(store):
    rule = LimitRule(name="r", requests=300, window_s=3600)
    states = await gatherResults([Deferred.fromCoroutine(store.admit(ask(("u", rule)))) for _ in range(600)])
    assert sum(state.levels[0].allowed for state in states) == 300


@pytest_twisted.ensureDeferred
async def test_an_empty_ask_gets_an_empty_answer(store):
    state = await store.admit(AdmissionAsk())
    assert (state.levels, dict(state.flags), dict(state.revoked)) == ((), {}, {})


@pytest_twisted.ensureDeferred
async def test_an_unknown_tenant_has_no_flags(store):
    assert (await store.admit(ask(tenants=("t",)))).flags == {"t": TenantFlags()}
    assert await store.flags("t") == TenantFlags()


@pytest_twisted.ensureDeferred
async def test_a_hold_is_seen_until_it_is_cleared(store):
    hold = ReadOnly(reason="unpaid", since="2025-01-01T00:00:00Z", until="2025-02-01T00:00:00Z", by="ops")
    await store.set_read_only("t", hold)
    assert (await store.admit(ask(("u", HOUR), tenants=("t", "other")))).flags == {
        "t": TenantFlags(read_only=hold),
        "other": TenantFlags(),
    }
    await store.set_read_only("t", ReadOnly(reason="other"))
    assert (await store.flags("t")).read_only == ReadOnly(reason="other")
    await store.clear_read_only("t")
    assert await store.flags("t") == TenantFlags()


@pytest_twisted.ensureDeferred
async def test_a_hold_without_any_detail_is_a_hold(store):
    await store.set_read_only("t", ReadOnly())
    assert (await store.flags("t")).read_only == ReadOnly()


@pytest_twisted.ensureDeferred
async def test_a_holds_texts_are_bounded_and_lose_control_characters(store):
    await store.set_read_only("t", ReadOnly(reason="a\r\nb" + "x" * 9000))
    reason = (await store.flags("t")).read_only.reason
    assert reason.startswith("a bx")
    assert len(reason) < 2048


@pytest_twisted.ensureDeferred
async def test_the_moment_of_a_change_keeps_its_fraction(store):
    await store.subscription_changed("t", 1735689599.123456)
    await store.subscription_changed("u", 1735689600)
    flags = (await store.admit(ask(tenants=("t", "u")))).flags
    assert flags == {"t": TenantFlags(changed_at=1735689599.123456), "u": TenantFlags(changed_at=1735689600.0)}


@pytest_twisted.ensureDeferred
async def test_what_is_no_time_is_not_stored(store):
    with pytest.raises(ValueError, match="no time"):
        await store.subscription_changed("t", float("nan"))
    assert await store.flags("t") == TenantFlags()


@pytest_twisted.ensureDeferred
async def test_flags_are_read_also_when_the_limit_refuses(store):
    await store.set_read_only("t", ReadOnly(reason="x"))
    await verdicts(store, ask(("u", HOUR)), 3)
    state = await store.admit(ask(("u", HOUR), tenants=("t",)))
    assert not state.levels[0].allowed
    assert state.flags["t"] == TenantFlags(read_only=ReadOnly(reason="x"))


@pytest_twisted.ensureDeferred
async def test_every_change_is_in_force_with_the_next_ask_however_often_it_was_asked_before(store):
    for at in (5.0, 6.0, 7.0):
        await store.subscription_changed("t", at)
        for _ in range(2):
            assert (await store.admit(ask(tenants=("t",)))).flags == {"t": TenantFlags(changed_at=at)}
    await store.set_read_only("t", ReadOnly(reason="x"))
    assert (await store.admit(ask(tenants=("t",)))).flags["t"].read_only == ReadOnly(reason="x")
    await store.clear_read_only("t")
    assert (await store.admit(ask(tenants=("t",)))).flags["t"].read_only is None


@pytest_twisted.ensureDeferred
async def test_a_change_is_in_force_also_for_those_whose_read_was_under_way(store):
    early = Deferred.fromCoroutine(store.admit(ask(("u", HOUR), tenants=("t",))))
    await store.set_read_only("t", ReadOnly(reason="x"))
    await early
    assert (await store.admit(ask(tenants=("t",)))).flags == {"t": TenantFlags(read_only=ReadOnly(reason="x"))}


@pytest_twisted.ensureDeferred
async def test_a_token_is_revoked_from_the_call_on_and_no_other_is(store):
    both = ask(("u", HOUR), tenants=("t",), digests=("a", "b"))
    assert (await store.admit(both)).revoked == {"a": False, "b": False}
    await store.revoke("a", time.time() + 60)
    state = await store.admit(both)
    assert state.revoked == {"a": True, "b": False}
    assert (state.flags, state.levels[0].allowed) == ({"t": TenantFlags()}, True)
    assert (await store.admit(ask(digests=("a",)))).revoked == {"a": True}


@pytest_twisted.ensureDeferred
async def test_the_store_itself_can_be_asked_for_a_revocation(store):
    await store.revoke("a", time.time() + 60)
    assert [await store.revoked(digest) for digest in ("a", "b")] == [True, False]


@pytest_twisted.ensureDeferred
async def test_a_revocation_is_in_force_before_the_store_has_answered(store):
    await store.admit(ask(digests=("a",)))
    revoking = Deferred.fromCoroutine(store.revoke("a", time.time() + 60))
    assert (await store.admit(ask(digests=("a",)))).revoked == {"a": True}
    await revoking


@pytest_twisted.ensureDeferred
async def test_a_revocation_ends_at_its_time(store):
    await store.revoke("a", time.time() + 0.8)
    assert (await store.admit(ask(digests=("a",)))).revoked == {"a": True}
    await pause(0.82)
    assert (await store.admit(ask(digests=("a",)))).revoked == {"a": False}


@pytest_twisted.ensureDeferred
async def test_a_later_call_moves_the_end_of_a_revocation(store):
    await store.revoke("a", time.time() + 0.05)
    await store.revoke("a", time.time() + 60)
    await pause(0.07)
    await store.revoke("b", time.time() + 60)
    assert (await store.admit(ask(digests=("a",)))).revoked == {"a": True}


@pytest_twisted.ensureDeferred
async def test_a_revocation_that_is_over_already_is_none(store):
    await store.revoke("a", time.time() - 1)
    assert (await store.admit(ask(digests=("a",)))).revoked == {"a": False}


@pytest_twisted.ensureDeferred
async def test_asks_of_one_turn_each_learn_what_they_asked(store):
    await store.revoke("d3", time.time() + 60)
    await store.set_read_only("t4", ReadOnly(reason="x"))
    await store.admit(ask(tenants=("t1",), digests=("d1",)))
    asks = [ask(("u", HOUR), tenants=(f"t{n}",), digests=(f"d{n}",)) for n in range(6)]
    states = await gatherResults([Deferred.fromCoroutine(store.admit(one)) for one in asks])
    assert [dict(state.revoked) for state in states] == [{f"d{n}": n == 3} for n in range(6)]
    assert [state.flags[f"t{n}"].read_only is not None for n, state in enumerate(states)] == [n == 4 for n in range(6)]
    assert [state.levels[0].allowed for state in states] == [True] * 3 + [False] * 3


def limit_for(seconds=60.0, requests=2, *, shadow=False):
    until = float(int(time.time() + seconds) + 1)
    return TenantLimit(
        rule=tenant_rule(requests, 3600, shadow=shadow, until=until), reason="too much", since="2026", by="ops"
    )


def of_tenant(*buckets, demo=False, peek=False):
    buckets = tuple(Bucket(key=key, rule=rule) for key, rule in buckets)
    return AdmissionAsk(buckets=buckets, tenants=("t",), limit_of="t", verified=True, demo=demo, peek=peek)


@pytest_twisted.ensureDeferred
async def test_a_tenants_limit_for_a_time_is_taken_with_the_others_by_all_who_ask_for_it(store):
    many = LimitRule(name="many", requests=100, window_s=3600)
    limit = limit_for()
    await store.set_limit("t", limit)
    states = [await store.admit(of_tenant((user, many))) for user in ("a", "b", "c")]
    assert [[level.allowed for level in state.levels] for state in states] == [
        [True, True],
        [True, True],
        [True, False],
    ]
    assert [state.levels[1].remaining for state in states] == [1, 0, 0]
    assert all(state.levels[1].rule == limit.rule for state in states)
    assert (await store.admit(ask(("c", many)))).levels[0].remaining == 99  # what was refused has cost nothing
    assert (await store.admit(ask(("c", many), tenants=("t",)))).levels[0].allowed


@pytest_twisted.ensureDeferred
async def test_asks_of_one_turn_share_a_tenants_limit_whether_it_was_known_or_not(store):
    await store.set_limit("t", limit_for(requests=3))
    states = await gatherResults([Deferred.fromCoroutine(store.admit(of_tenant())) for _ in range(5)])
    states += [await store.admit(of_tenant())]
    assert [state.levels[0].allowed for state in states] == [True] * 3 + [False] * 3


@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_is_told_with_the_flags_until_it_is_replaced_or_ended(store):
    first, second = limit_for(), limit_for(requests=7, shadow=True)
    assert await store.limit("t") is None
    await store.set_limit("t", first)
    assert (await store.admit(ask(tenants=("t",)))).flags == {"t": TenantFlags(limit=first)}
    await store.set_limit("t", second)
    await store.set_read_only("t", ReadOnly(reason="x"))
    assert await store.limit("t") == second
    assert (await store.admit(of_tenant())).levels[0].rule == second.rule
    await store.clear_limit("t")
    state = await store.admit(of_tenant())
    assert (state.levels, state.flags["t"]) == ((), TenantFlags(read_only=ReadOnly(reason="x")))


@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_ends_by_itself(store):
    limit = TenantLimit(rule=tenant_rule(1, 3600, shadow=False, until=float(int(time.time() + 0.9) + 1)))
    await store.set_limit("t", limit)
    assert (await store.admit(of_tenant())).levels[0].rule == limit.rule
    await pause(limit.rule.until - time.time() + 0.05)
    state = await store.admit(of_tenant())
    assert (state.levels, state.flags["t"]) == ((), TenantFlags())


@pytest_twisted.ensureDeferred
async def test_demo_sessions_do_not_spend_what_a_tenants_other_callers_share(store):
    await store.set_limit("t", limit_for(requests=1))
    assert (await store.admit(of_tenant(demo=True))).levels[0].allowed
    assert (await store.admit(of_tenant())).levels[0].allowed
    assert not (await store.admit(of_tenant(demo=True))).levels[0].allowed


@pytest_twisted.ensureDeferred
async def test_looking_at_buckets_takes_nothing_and_refuses_nothing(store):
    await store.set_limit("t", limit_for(requests=1))
    look, take = of_tenant(("u", HOUR), peek=True), of_tenant(("u", HOUR))
    looks = [await store.admit(look) for _ in range(5)]
    assert [[level.remaining for level in state.levels] for state in looks] == [[3, 1]] * 5
    await store.admit(take)
    assert not (await store.admit(take)).levels[1].allowed
    levels = (await store.admit(look)).levels
    assert [(level.allowed, level.remaining) for level in levels] == [(True, 2), (True, 0)]
    assert levels[0].retry_us == 0
    assert 3_590_000_000 < levels[1].retry_us <= 3_600_000_000


@pytest_twisted.ensureDeferred
async def test_those_who_look_and_those_who_take_in_one_turn_do_not_mix(store):
    await store.set_limit("t", limit_for(requests=3))
    asks = [of_tenant(("u", HOUR), peek=number % 2 == 0) for number in range(4)]
    states = await gatherResults([Deferred.fromCoroutine(store.admit(one)) for one in asks])
    assert [[level.remaining for level in state.levels] for state in states] == [[3, 3], [2, 2], [2, 2], [1, 1]]


@pytest_twisted.ensureDeferred
async def test_what_is_no_end_is_not_stored(store):
    with pytest.raises(ValueError, match="no end"):
        await store.set_limit("t", TenantLimit(rule=tenant_rule(1, 1, shadow=False, until=float("inf"))))
    assert await store.limit("t") is None


def test_each_store_tells_its_status(redis_server):
    assert MemoryStore(lambda: 0).status == "embedded"
    assert store_over(link_to(redis_server, RecordingTelemetry())).status == "disconnected"
