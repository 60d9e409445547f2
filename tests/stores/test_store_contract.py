"""One contract for the embedded store and for Redis."""

import time

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, link_to, pause
from twisted.internet.defer import Deferred, gatherResults

from bakerygw.core.limits import Bucket, LimitRule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.redis import RedisStore

HOUR = LimitRule(name="default", requests=3, window_s=3600)
QUICK = LimitRule(name="quick", requests=20, window_s=1)
SHADOW = LimitRule(name="shadow", requests=1, window_s=3600, shadow=True)


@pytest_twisted.async_yield_fixture(params=["memory", "redis"])
async def store(request):
    if request.param == "memory":
        yield MemoryStore(lambda: time.time_ns() // 1000)
        return
    from twisted.internet import reactor  # noqa: PLC0415

    link = link_to(request.getfixturevalue("redis_server"), RecordingTelemetry())
    await link.start()
    yield RedisStore(link, reactor)
    await link.stop()


def ask(*buckets, tenants=()):
    return AdmissionAsk(buckets=tuple(Bucket(key=key, rule=rule) for key, rule in buckets), tenants=tenants)


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
async def test_far_more_asks_than_one_batch_are_all_answered(store):
    rule = LimitRule(name="r", requests=300, window_s=3600)
    states = await gatherResults([Deferred.fromCoroutine(store.admit(ask(("u", rule)))) for _ in range(600)])
    assert sum(state.levels[0].allowed for state in states) == 300


@pytest_twisted.ensureDeferred
async def test_an_empty_ask_gets_an_empty_answer(store):
    state = await store.admit(AdmissionAsk())
    assert (state.levels, dict(state.flags)) == ((), {})


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


def test_each_store_tells_its_status(redis_server):
    from twisted.internet import reactor  # noqa: PLC0415

    assert MemoryStore(lambda: 0).status == "embedded"
    assert RedisStore(link_to(redis_server, RecordingTelemetry()), reactor).status == "disconnected"
