"""What only the store in Redis has to see to: the script, other people's values, and one call for many."""

import random
import time

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, link_to, store_over
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock

from bakerygw.core.limits import Bucket, LimitRule, take, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, StoreUnavailable, StoreUnreadable
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.redis import MAX_BATCH, RedisStore
from bakerygw.stores.redis_wire import Script

HOUR = LimitRule(name="default", requests=3, window_s=3600)
NOW = 1_700_000_000_123_456
CLOCK = b"redis.call('TIME')"


@pytest.fixture
def telemetry():
    return RecordingTelemetry()


@pytest_twisted.async_yield_fixture
async def store(redis_server, telemetry):
    link = link_to(redis_server, telemetry)
    await link.start()
    yield store_over(link)
    await link.stop()


def ask(*buckets, tenants=(), digests=()):
    buckets = tuple(Bucket(key=key, rule=rule) for key, rule in buckets)
    return AdmissionAsk(buckets=buckets, tenants=tenants, digests=digests, verified=True)


def at_moment(store: RedisStore, now_us: int) -> None:
    """Give the script a fixed time instead of the server's."""
    source = store._script.source
    assert source.count(CLOCK) == 1
    fixed = b"{'%d', '%d'}" % divmod(now_us, 1_000_000)
    store._script = Script.of(source.replace(CLOCK, fixed))


def random_ask(rng: random.Random) -> AdmissionAsk:
    rules = [
        LimitRule(name="a", requests=3, window_s=100),
        LimitRule(name="b", requests=7, window_s=60),
        LimitRule(name="s", requests=2, window_s=300, shadow=True),
    ]
    chosen = rng.sample(rules, rng.randint(0, 3))
    asked = ask(*((f"{rule.name}:{rng.choice('xy')}", rule) for rule in chosen))
    return AdmissionAsk(buckets=asked.buckets, verified=True, peek=rng.random() < 0.2)


class Twin:
    """The same buckets in Python."""

    def __init__(self) -> None:
        self.full_at: dict[str, int] = {}

    def admit(self, asked, now_us):
        before = [self.full_at.get(bucket.key, 0) for bucket in asked.buckets]
        after, levels = take([bucket.rule for bucket in asked.buckets], before, now_us, peek=asked.peek)
        self.full_at.update(
            (bucket.key, new) for bucket, old, new in zip(asked.buckets, before, after, strict=True) if new != old
        )
        return levels


@pytest.mark.parametrize("seed", range(5))
@pytest_twisted.ensureDeferred
async def test_script_and_python_give_identical_numbers_batched_or_one_by_one(store, redis_server, seed):
    rng = random.Random(seed)
    plain, moments, now = store._script, [], NOW
    for _ in range(12):
        now += rng.choice([0, 1, 999, 20_000_000, 33_333_333, -5_000_000])
        moments.append((now, [random_ask(rng) for _ in range(rng.randint(1, 12))]))

    async def play(batched: bool):
        redis_server.command("FLUSHALL")
        seen = []
        for moment, asks in moments:
            store._script = plain
            at_moment(store, moment)
            if batched:
                states = await gatherResults([Deferred.fromCoroutine(store.admit(one)) for one in asks])
            else:
                states = [await store.admit(one) for one in asks]
            seen.append([state.levels for state in states])
        return seen

    twin = Twin()
    expected = [[twin.admit(one, moment) for one in asks] for moment, asks in moments]
    assert any(not level.allowed for turn in expected for levels in turn for level in levels)
    assert await play(batched=True) == expected
    assert await play(batched=False) == expected
    for key, full_at in twin.full_at.items():
        stored = redis_server.command("GET", "bakerygw:limit:{" + key + "}")
        assert stored == b"%d" % full_at


@pytest_twisted.ensureDeferred
async def test_all_asks_of_one_turn_cost_one_round_trip(store, telemetry):
    await store.admit(ask(("warm", HOUR)))
    before = len(telemetry.round_trips)
    await gatherResults([Deferred.fromCoroutine(store.admit(ask((f"u{n}", HOUR)))) for n in range(MAX_BATCH)])
    assert len(telemetry.round_trips) - before == 1


@pytest_twisted.ensureDeferred
async def test_keys_expire_when_their_bucket_is_full(store, redis_server):
    level = (await store.admit(ask(("u", HOUR)))).levels[0]
    left_ms = int(redis_server.command("PTTL", "bakerygw:limit:{u}")[1:])
    assert level.reset_us / 1000 - 2000 < left_ms <= level.reset_us / 1000 + 1


@pytest_twisted.ensureDeferred
async def test_a_refused_request_writes_nothing(store, redis_server):
    small = LimitRule(name="small", requests=1, window_s=3600)
    await store.admit(ask(("one", small)))
    before = redis_server.command("GET", "bakerygw:limit:{one}")
    assert not (await store.admit(ask(("fresh", HOUR), ("one", small)))).levels[1].allowed
    assert redis_server.command("GET", "bakerygw:limit:{one}") == before
    assert redis_server.command("EXISTS", "bakerygw:limit:{fresh}") == b":0"


@pytest_twisted.ensureDeferred
async def test_a_clock_set_back_does_not_lock_out(store):
    plain = store._script
    at_moment(store, NOW)
    await store.admit(ask(("u", HOUR)))
    store._script = plain
    at_moment(store, NOW - 86_400_000_000)
    refused = (await store.admit(ask(("u", HOUR)))).levels[0]
    assert (refused.allowed, refused.retry_us) == (False, HOUR.cost_us)
    store._script = plain
    at_moment(store, NOW - 86_400_000_000 + HOUR.cost_us)
    assert (await store.admit(ask(("u", HOUR)))).levels[0].allowed


@pytest.mark.parametrize(
    "command",
    [
        ("LPUSH", "bakerygw:limit:{u}", "1"),
        ("HSET", "bakerygw:limit:{u}", "a", "1"),
        ("SET", "bakerygw:limit:{u}", "garbage"),
        ("SET", "bakerygw:limit:{u}", "nan"),
        ("SET", "bakerygw:limit:{u}", "9" * 300),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_bucket_under_our_key_is_a_full_one_and_overwritten(store, redis_server, command):
    redis_server.command(*command)
    verdicts = [(await store.admit(ask(("u", HOUR), ("v", HOUR)))).levels[0].allowed for _ in range(4)]
    assert verdicts == [True, True, True, False]
    assert int(redis_server.command("GET", "bakerygw:limit:{u}")) > NOW


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (("SET", "tenant:t:subscription_changed_at", "1735689599"), TenantFlags(changed_at=1735689599.0)),
        (("SET", "tenant:t:subscription_changed_at", "2024-12-31T23:59:59Z"), TenantFlags(changed_at=1735689599.0)),
        (("SET", "tenant:t:subscription_changed_at", "soon"), None),
        (("SET", "tenant:t:subscription_changed_at", ""), None),
        (("SET", "tenant:t:subscription_changed_at", "1735689599" + " " * 100), None),
        (("LPUSH", "tenant:t:subscription_changed_at", "1735689599"), None),
        (("SET", "tenant:t:read_only", ""), TenantFlags(read_only=ReadOnly())),
        (("SET", "tenant:t:read_only", "unpaid"), TenantFlags(read_only=ReadOnly(reason="unpaid"))),
        (("SET", "tenant:t:read_only", "x" * 10_000_000), TenantFlags(read_only=ReadOnly(reason="x" * 2048))),
        (("HSET", "tenant:t:read_only", "reason", "unpaid"), TenantFlags(read_only=ReadOnly())),
        (("SET", "tenant:t:demo", "0"), TenantFlags(demo=True)),
        (("SADD", "tenant:t:demo", "x"), TenantFlags(demo=True)),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
@pytest_twisted.ensureDeferred
async def test_flags_are_read_as_others_wrote_them_without_harm_to_other_tenants(store, redis_server, command, flags):
    redis_server.command(*command)
    redis_server.command("SET", "tenant:good:read_only", "held")
    bad, good = await gatherResults(
        [Deferred.fromCoroutine(store.admit(ask(("u", HOUR), tenants=(tenant,)))) for tenant in ("t", "good")]
    )
    assert bad.flags == {"t": flags}
    assert bad.levels[0].allowed
    assert good.flags == {"good": TenantFlags(read_only=ReadOnly(reason="held"))}


@pytest.mark.parametrize("name", ["subscription_changed_at", "read_only", "demo"])
@pytest_twisted.ensureDeferred
async def test_the_first_expiry_among_a_tenants_keys_bounds_what_is_kept_of_it(redis_server, telemetry, name):
    for key in ("subscription_changed_at", "read_only", "demo"):
        redis_server.command("SET", f"tenant:t:{key}", "1", *(("PX", "5000") if key == name else ("EX", "500")))
        redis_server.command("SET", f"tenant:forever:{key}", "1")
    link, mirror, clock = link_to(redis_server, telemetry), Mirror(), Clock()
    await link.start()
    store = RedisStore(link, mirror, clock, time.time)
    asking = Deferred.fromCoroutine(store.admit(ask(tenants=("t", "forever"))))
    clock.advance(0)
    await asking
    for seconds, held in ((0, True), (4.5, True), (5.0, False)):
        known = mirror.last_known(("t", "forever"), (), clock.seconds() + seconds)[0]
        assert (known["t"] is not None, known["forever"] is not None) == (held, True)
    await link.stop()


@pytest_twisted.ensureDeferred
async def test_a_revocation_is_written_with_its_end_under_its_digest(store, redis_server):
    await store.revoke("d1", time.time() + 100)
    left_ms = int(redis_server.command("PTTL", "bakerygw:revoked:d1")[1:])
    assert 98_000 < left_ms <= 100_001
    redis_server.command("SET", "bakerygw:revoked:d2", "x")
    redis_server.command("LPUSH", "bakerygw:revoked:d3", "x")
    state = await store.admit(ask(digests=("d1", "d2", "d3", "d4")))
    assert state.revoked == {"d1": True, "d2": True, "d3": True, "d4": False}


@pytest_twisted.ensureDeferred
async def test_an_operator_is_told_which_flag_cannot_be_read(store, redis_server):
    redis_server.command("SET", "tenant:t:subscription_changed_at", "soon")
    with pytest.raises(StoreUnreadable, match=r"^tenant:.*:subscription_changed_at in Redis is no time$"):
        await store.flags("t")
    await store.subscription_changed("t", 5.5)
    assert (await store.flags("t")).changed_at == 5.5


@pytest_twisted.ensureDeferred
async def test_flushing_scripts_or_keys_is_not_noticed_but_as_fresh_buckets(store, redis_server, telemetry):
    await store.admit(ask(("u", HOUR)))
    redis_server.command("SCRIPT", "FLUSH")
    assert (await store.admit(ask(("u", HOUR)))).levels[0].remaining == 1
    redis_server.command("FLUSHALL")
    assert (await store.admit(ask(("u", HOUR)))).levels[0].remaining == 2
    assert telemetry.failures == []


@pytest_twisted.ensureDeferred
async def test_who_gives_up_before_the_call_takes_no_token_and_harms_no_one(store):
    leaver = Deferred.fromCoroutine(store.admit(ask(("u", HOUR))))
    stayer = Deferred.fromCoroutine(store.admit(ask(("u", HOUR))))
    leaver.cancel()
    with pytest.raises(CancelledError):
        await leaver
    assert (await stayer).levels[0].remaining == 2


@pytest_twisted.ensureDeferred
async def test_a_key_that_cannot_be_written_fails_its_callers_and_leaves_none_waiting(store, logged_failures):
    broken = Deferred.fromCoroutine(store.admit(ask(("\ud800", HOUR))))
    with pytest.raises(StoreUnavailable):
        await broken
    assert [failure.type for failure in logged_failures] == [UnicodeEncodeError]
    logged_failures.clear()
    assert (await store.admit(ask(("u", HOUR)))).levels[0].allowed


@pytest_twisted.ensureDeferred
async def test_an_own_change_is_in_the_mirror_when_it_is_confirmed_without_being_told(redis_server, telemetry):
    link, mirror = link_to(redis_server, telemetry), Mirror()
    await link.start()
    mirror.whole(float("inf"))  # trusted for ever, and nobody tells of changes
    store = store_over(link, mirror)
    changes = [
        (lambda: store.set_read_only("t", ReadOnly(reason="x")), TenantFlags(read_only=ReadOnly(reason="x"))),
        (lambda: store.clear_read_only("t"), TenantFlags()),
        (lambda: store.subscription_changed("t", 5.0), TenantFlags(changed_at=5.0)),
    ]
    for change, flags in changes:
        await store.admit(ask(tenants=("t",)))
        await change()
        assert (await store.admit(ask(tenants=("t",)))).flags == {"t": flags}
    await link.stop()


@pytest_twisted.ensureDeferred
async def test_an_operator_sees_what_is_in_redis_and_not_in_the_mirror(redis_server, telemetry):
    link, mirror = link_to(redis_server, telemetry), Mirror()
    await link.start()
    mirror.whole(float("inf"))
    store = store_over(link, mirror)
    assert await store.flags("t") == TenantFlags()
    redis_server.command("SET", "tenant:t:read_only", "x")
    assert (await store.flags("t")).read_only == ReadOnly(reason="x")
    await link.stop()


@pytest_twisted.ensureDeferred
async def test_a_call_that_fails_leaves_no_read_behind(redis_server, telemetry, logged_failures):
    link, mirror = link_to(redis_server, telemetry), Mirror()
    await link.start()
    mirror.whole(float("inf"))
    store = store_over(link, mirror)
    with pytest.raises(StoreUnavailable):
        await store.admit(ask(("\ud800", HOUR), tenants=("t",)))
    logged_failures.clear()
    for _ in range(2):
        await store.admit(ask(tenants=("t",)))
    assert mirror.hits == 1
    await link.stop()


def limited(tenant_id="t"):
    return AdmissionAsk(tenants=(tenant_id,), limit_of=tenant_id, verified=True)


FAR = int(time.time()) + 1000


@pytest.mark.parametrize(
    "value",
    [
        "", "x", "5", "5 60", "5 60 0", "0 60 0 9999999999", "1000001 60 0 9999999999", "5 0 0 9999999999",
        "5 86401 0 9999999999", "5 60 2 9999999999", "5 60 0 1700000000", "-5 60 0 9999999999", "5.5 60 0 9999999999",
        "0x5 60 0 9999999999", "1e3 60 0 9999999999", "5 60 0 99999999990000", "5 60 0 9999999999x",
        " 5 60 0 9999999999", "5 60 0 253402300800",
        "00000005 60 0 9999999999", "5 60 0 9999999999 " + "x" * 2000, "\u0665 60 0 9999999999",
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_what_others_write_in_place_of_a_limit_for_a_time_is_none(store, redis_server, value):
    redis_server.command("SET", "bakerygw:limits:t", value)
    state = await store.admit(limited())
    assert (state.levels, state.flags) == ((), {"t": TenantFlags()})


@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_of_another_type_is_none(store, redis_server):
    redis_server.command("HSET", "bakerygw:limits:t", "a", "b")
    assert (await store.admit(limited())).levels == ()


@pytest.mark.parametrize("rest", ["", " ", " {}", " not JSON", ' {"reason": 5}', ' {"reason": "a\\nb"}', " [1]"])
@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_is_its_numbers_whatever_stands_behind_them(store, redis_server, rest):
    redis_server.command("SET", "bakerygw:limits:t", f"5 60 1 {FAR}{rest}")
    state = await store.admit(limited())
    expected = tenant_rule(5, 60, shadow=True, until=float(FAR))
    assert [level.rule for level in state.levels] == [expected]
    assert state.flags["t"].limit.rule == expected


@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_holds_though_a_flag_beside_it_cannot_be_read(store, redis_server):
    redis_server.command("SET", "tenant:t:subscription_changed_at", "soon")
    redis_server.command("SET", "bakerygw:limits:t", f"1 60 0 {FAR}")
    states = [await store.admit(limited()) for _ in range(2)]
    assert [state.levels[0].allowed for state in states] == [True, False]
    assert states[0].flags == {"t": None}


@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_that_is_not_known_yet_costs_no_round_trip_more(store, redis_server, telemetry):
    redis_server.command("SET", "bakerygw:limits:t", f"1 60 0 {FAR}")
    await store.admit(ask(("warm", HOUR)))
    before = len(telemetry.round_trips)
    assert not [level for level in (await store.admit(limited())).levels if not level.allowed]
    assert [level.allowed for level in (await store.admit(limited())).levels] == [False]
    assert len(telemetry.round_trips) - before == 2


@pytest.mark.parametrize("seed", range(3))
@pytest_twisted.ensureDeferred
async def test_a_tenants_limit_counts_alike_in_the_script_and_in_python(store, redis_server, seed):
    rng = random.Random(seed)
    plain, now, full_at = store._script, NOW, 0
    for _ in range(40):
        now += rng.choice([0, 1, 999, 7_000_000, -2_000_000])
        requests, window_s = rng.choice([(3, 10), (7, 60), (999_983, 86_399)])
        redis_server.command("SET", "bakerygw:limits:t", f"{requests} {window_s} 0 {NOW // 1_000_000 + 10_000}")
        store._script = plain
        at_moment(store, now)
        level = (await store.admit(limited())).levels[0]
        (full_at,), expected = take([level.rule], [full_at], now)
        assert (level,) == expected
