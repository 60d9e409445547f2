"""The store and its mirror on a real Redis: what is asked, what is not, and changes by other programs."""

import re
import time
from pathlib import Path

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, caught_up, invalidations_of, link_to, pause, store_over, trusted
from twisted.internet.defer import Deferred, gatherResults

from bakerygw.core.limits import Bucket, LimitRule, TenantLimit, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, StoreUnavailable
from bakerygw.stores.audit_stream import RedisAudit
from bakerygw.stores.learning import Learner
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.records import RedisRecords
from bakerygw.stores.signals import SIGNALS, RedisSignals
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

OPERATORS = Path(__file__).parents[2] / "docs" / "operators.md"
RULE = LimitRule(name="r", requests=1000, window_s=3600)
HELD = TenantFlags(read_only=ReadOnly(reason="held"))
LIMITED = TenantFlags(limit=TenantLimit(rule=tenant_rule(5, 60, shadow=False, until=9_999_999_999.0)))
ROOM = 50
SOON_S = 2.0
"""At once, on a machine that is busy with other things."""
"""Tenants, and tokens, that an instance's mirror holds."""
READING = ("getrange", "exists", "pttl")
"""What the script calls for flags and revocations alone."""


class Instance:
    """A link, a mirror, what keeps it true, and the store over them."""

    def __init__(self, server: RedisServer, **credentials: str) -> None:
        self.server, self.telemetry = server, RecordingTelemetry()
        self.mirror = Mirror(max_tenants=ROOM, max_tokens=ROOM)
        self.link = link_to(server, self.telemetry, **credentials)
        self.signals: list[object] = []
        self.invalidations = invalidations_of(
            server, self.link, self.mirror, signals=self.signals.append, **credentials
        )
        self.store = store_over(self.link, self.mirror)
        Learner(self.store.look, self.mirror)

    async def start(self) -> "Instance":
        await self.link.start()
        self.invalidations.start()
        return self

    async def stop(self) -> None:
        await self.invalidations.stop()
        await self.link.stop()

    async def ask(self, *tenants, user: str | None = "u", digests=(), verified=True):
        buckets = (Bucket(key=user, rule=RULE),) if user else ()
        ask = AdmissionAsk(buckets=buckets, tenants=tenants, digests=digests, verified=verified)
        return await self.store.admit(ask)

    async def flags(self, tenant: str = "t") -> TenantFlags | None:
        return (await self.ask(tenant)).flags[tenant]

    async def sees(self, flags: TenantFlags, within_s: float = PATIENCE_S) -> float:
        """Wait for tenant t's flags, also while there is no connection; returns the seconds it took."""
        begun = time.monotonic()
        while True:
            try:
                seen: object = await self.flags()
            except StoreUnavailable as error:
                seen = error
            if seen == flags:
                return time.monotonic() - begun
            assert time.monotonic() - begun < within_s, f"still {seen!r} after {within_s} s"
            await pause(0.005)


def calls(server: RedisServer) -> dict[str, int]:
    """How often Redis has run each command."""
    stats = server.command("INFO", "commandstats").decode()
    return {name: int(count) for name, count in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


@pytest_twisted.async_yield_fixture
async def instance(own_redis):
    instance = await Instance(own_redis).start()
    await trusted(instance.mirror)
    yield instance
    await instance.stop()


@pytest_twisted.ensureDeferred
async def test_of_known_tenants_and_tokens_nothing_but_the_limit_is_asked(own_redis, instance):
    await instance.ask("t", "u", digests=("d",))
    before = calls(own_redis)
    for _ in range(50):
        state = await instance.ask("t", "u", digests=("d",))
    after = calls(own_redis)
    assert (dict(state.flags), dict(state.revoked)) == ({"t": TenantFlags(), "u": TenantFlags()}, {"d": False})
    assert after["evalsha"] - before["evalsha"] == 50
    assert [after.get(name, 0) - before.get(name, 0) for name in READING] == [0, 0, 0]
    assert (instance.mirror.hits, instance.mirror.misses) == (50, 1)


@pytest_twisted.ensureDeferred
async def test_without_a_bucket_to_take_from_nothing_is_asked_at_all(own_redis, instance):
    await instance.ask("t", digests=("d",))
    before = calls(own_redis)["evalsha"]
    for _ in range(50):
        state = await instance.ask("t", user=None, digests=("d",))
    assert (state.levels, dict(state.flags), dict(state.revoked)) == ((), {"t": TenantFlags()}, {"d": False})
    assert calls(own_redis)["evalsha"] == before


@pytest_twisted.ensureDeferred
async def test_known_and_unknown_ones_share_a_call_which_reads_the_unknown_alone(own_redis, instance):
    await instance.ask("known", digests=("known",))
    own_redis.command("SET", "tenant:new:read_only", "held")
    before = calls(own_redis)
    asks = [instance.ask(name, digests=(name,)) for name in ("known", "new", "known", "new", "other")]
    states = await gatherResults([Deferred.fromCoroutine(ask) for ask in asks])
    after = calls(own_redis)
    assert [list(state.flags.values()) for state in states] == [
        [TenantFlags()], [HELD], [TenantFlags()], [HELD], [TenantFlags()],
    ]  # fmt: skip
    assert [dict(state.revoked) for state in states] == [
        {name: False} for name in ("known", "new", "known", "new", "other")
    ]
    assert [state.levels[0].remaining for state in states] == [998, 997, 996, 995, 994]
    assert after["evalsha"] - before["evalsha"] == 1
    assert after["getrange"] - before["getrange"] == 6  # three for each of "new" and "other"


@pytest_twisted.ensureDeferred
async def test_what_was_asked_by_who_is_not_verified_is_read_again_and_pushes_nothing_out(own_redis, instance):
    await instance.ask("mine", digests=("mine",))
    made_up = [instance.ask(f"t{n}", digests=(f"d{n}",), verified=False) for n in range(2 * ROOM)]
    states = await gatherResults([Deferred.fromCoroutine(ask) for ask in made_up])
    assert all(state.revoked == {f"d{n}": False} for n, state in enumerate(states))
    before = calls(own_redis)
    await instance.ask("mine", digests=("mine",))
    assert calls(own_redis).get("pttl", 0) == before["pttl"]
    await instance.ask("t1", digests=("d1",))
    assert calls(own_redis)["pttl"] > before["pttl"]


@pytest_twisted.ensureDeferred
async def test_a_read_of_who_is_not_verified_does_not_stand_in_the_way_of_one_that_is_kept(instance):
    asks = []
    for verified in (False, True, False):
        asks.append(Deferred.fromCoroutine(instance.ask("t", digests=("d",), verified=verified)))
        await pause(0)
    await gatherResults(asks)
    misses = instance.mirror.misses
    await instance.ask("t", digests=("d",))
    assert instance.mirror.misses == misses


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (("SET", "tenant:t:read_only", "held"), HELD),
        (("SET", "tenant:t:demo", "1"), TenantFlags(demo=True)),
        (("SET", "tenant:t:subscription_changed_at", "5"), TenantFlags(changed_at=5.0)),
        (("SET", "bakerygw:limits:t", "5 60 0 9999999999"), LIMITED),
        (("RENAME", "other", "tenant:t:read_only"), HELD),
        (("EVAL", "redis.call('SET', 'tenant:t:read_only', 'held')", "0"), HELD),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest_twisted.ensureDeferred
async def test_a_change_by_another_program_is_in_force_at_once(own_redis, instance, command, flags):
    own_redis.command("SET", "other", "held")
    for _ in range(3):
        assert await instance.flags() == TenantFlags()
    own_redis.command(*command)
    assert await instance.sees(flags) < SOON_S
    assert await instance.flags() == flags
    names = ("read_only", "demo", "subscription_changed_at")
    own_redis.command("DEL", "bakerygw:limits:t", *(f"tenant:t:{name}" for name in names))
    assert await instance.sees(TenantFlags()) < SOON_S


@pytest.mark.parametrize("flush", ["FLUSHALL", "FLUSHDB"])
@pytest_twisted.ensureDeferred
async def test_a_flush_is_in_force_at_once(own_redis, instance, flush):
    own_redis.command("SET", "tenant:t:read_only", "held")
    assert await instance.sees(HELD) < SOON_S
    own_redis.command(flush)
    assert await instance.sees(TenantFlags()) < SOON_S
    assert instance.mirror.trusted(instance.store._reactor.seconds())


@pytest_twisted.ensureDeferred
async def test_an_expiry_is_in_force_at_its_moment_though_redis_tells_of_it_late(own_redis, instance):
    own_redis.command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    ends = time.monotonic() + 1
    own_redis.command("SET", "tenant:t:read_only", "held", "PX", "1000")
    own_redis.command("SET", "bakerygw:revoked:d", "1", "PX", "1000")
    ended = time.monotonic() + 1.02
    while True:
        state = await instance.ask("t", digests=("d",))
        if time.monotonic() >= ends:
            break
        assert (state.flags["t"], state.revoked["d"]) == (HELD, True)
        await pause(0.01)
    await pause(max(0.0, ended - time.monotonic()))
    state = await instance.ask("t", digests=("d",))
    assert (state.flags["t"], state.revoked["d"]) == (TenantFlags(), False)
    assert instance.mirror.hits > 10


@pytest_twisted.ensureDeferred
async def test_an_expiry_that_is_set_moved_or_taken_away_later_counts(own_redis, instance):
    own_redis.command("SET", "tenant:t:read_only", "held")
    await instance.sees(HELD)
    own_redis.command("PEXPIRE", "tenant:t:read_only", "1000")
    await pause(0.05)
    assert await instance.flags() == HELD
    own_redis.command("PERSIST", "tenant:t:read_only")
    await pause(1.05)
    assert await instance.flags() == HELD
    own_redis.command("PEXPIRE", "tenant:t:read_only", "500")
    assert await instance.sees(TenantFlags()) >= 0.05


@pytest_twisted.ensureDeferred
async def test_a_revocation_by_one_instance_is_in_force_on_the_others(own_redis, instance):
    other = await Instance(own_redis).start()
    await trusted(other.mirror)
    assert not (await instance.ask(digests=("d",))).revoked["d"]
    await other.store.revoke("d", time.time() + 60)
    begun = time.monotonic()
    while not (await instance.ask(digests=("d",))).revoked["d"]:
        assert time.monotonic() - begun < SOON_S
        await pause(0.002)
    await other.stop()


@pytest_twisted.ensureDeferred
async def test_a_revocation_that_redis_has_lost_is_kept_by_the_instance_that_made_it(own_redis, instance):
    await instance.store.revoke("d", time.time() + 60)
    own_redis.command("FLUSHALL")
    await pause(0.05)
    for _ in range(2):
        assert (await instance.ask(digests=("d",))).revoked == {"d": True}


@pytest_twisted.ensureDeferred
async def test_a_revocation_that_redis_has_lost_is_kept_by_who_was_there_when_it_was_made(own_redis, instance):
    digest = "ab" * 32
    own_redis.command("SET", f"bakerygw:revoked:{digest}", "1", "EX", "60")
    begun = time.monotonic()
    while not instance.mirror.revoked_here(digest, instance.store._reactor.seconds()):
        assert time.monotonic() - begun < PATIENCE_S
        await pause(0.005)
    own_redis.command("FLUSHALL")
    await pause(0.05)
    for _ in range(2):
        assert (await instance.ask(digests=(digest,))).revoked == {digest: True}


@pytest_twisted.ensureDeferred
async def test_a_revocation_that_somebody_takes_back_is_in_force_no_longer(own_redis, instance):
    own_redis.command("SET", "bakerygw:revoked:d", "1", "EX", "60")
    assert (await instance.ask(digests=("d",))).revoked == {"d": True}
    own_redis.command("DEL", "bakerygw:revoked:d")
    begun = time.monotonic()
    while (await instance.ask(digests=("d",))).revoked["d"]:
        assert time.monotonic() - begun < PATIENCE_S
        await pause(0.005)


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
@pytest_twisted.ensureDeferred
async def test_a_connection_killed_by_the_server_costs_no_truth(own_redis, instance, kind):
    assert await instance.flags() == TenantFlags()
    own_redis.command("CLIENT", "KILL", "TYPE", kind)
    own_redis.command("SET", "tenant:t:read_only", "held")
    assert await instance.sees(HELD) < SOON_S
    await trusted(instance.mirror)
    own_redis.command("DEL", "tenant:t:read_only")
    assert await instance.sees(TenantFlags()) < SOON_S


@pytest_twisted.ensureDeferred
async def test_a_restarted_redis_is_mirrored_again_and_nothing_of_before_is_left(own_redis, instance):
    own_redis.command("SET", "tenant:t:read_only", "held")
    await instance.sees(HELD)
    own_redis.restart()
    await trusted(instance.mirror, wanted=False)
    await trusted(instance.mirror)
    assert await instance.flags() == TenantFlags()


@pytest_twisted.ensureDeferred
async def test_a_hung_redis_is_distrusted_in_time_and_mirrored_again(own_redis, instance):
    assert await instance.flags() == TenantFlags()
    own_redis.suspend()
    await trusted(instance.mirror, wanted=False)
    own_redis.resume()
    await trusted(instance.mirror)
    own_redis.command("SET", "tenant:t:read_only", "held")
    assert await instance.sees(HELD) < SOON_S


@pytest.mark.parametrize("missing", ["client", "subscribe"])
@pytest_twisted.ensureDeferred
async def test_a_redis_that_may_not_tell_of_changes_is_asked_each_time(missing):
    with RedisServer() as server:
        assert server.command("ACL", "SETUSER", "gw", "on", ">pw", "~*", "&*", "+@all", f"-{missing}") == b"+OK"
        instance = await Instance(server, username="gw", password="pw").start()
        for value, flags in (("held", HELD), (None, TenantFlags())) * 3:
            server.command("SET", "tenant:t:read_only", value) if value else server.command("DEL", "tenant:t:read_only")
            assert await instance.flags() == flags
        assert not instance.mirror.trusted(instance.store._reactor.seconds())
        assert instance.mirror.hits == 0
        assert instance.telemetry.failures == []
        await instance.stop()


@pytest_twisted.ensureDeferred
async def test_the_documented_user_of_redis_may_do_all_that_is_needed():
    line = re.search(r"^    ACL SETUSER bakerygw (.+)$", OPERATORS.read_text(), re.MULTILINE)
    assert line is not None
    with RedisServer() as server:
        assert server.command("ACL", "SETUSER", "bakerygw", *line[1].split()) == b"+OK"
        instance = await Instance(server, username="bakerygw", password="PASSWORD").start()
        await trusted(instance.mirror)
        await instance.store.set_read_only("t", ReadOnly(reason="held"))
        assert await instance.flags() == HELD
        await instance.store.clear_read_only("t")
        await instance.store.subscription_changed("t", 5.0)
        await instance.store.revoke("d", time.time() + 60)
        state = await instance.ask("t", digests=("d", "e"))
        assert (state.flags["t"], dict(state.revoked)) == (TenantFlags(changed_at=5.0), {"d": True, "e": False})
        records = RedisRecords(instance.store._link)
        assert await records.claim("apikey:x", b"1", ttl_s=60)
        assert await records.replace("apikey:x", b"1", b"2", ttl_s=None)
        await records.put("apikey-used:x", await records.get("apikey:x") or b"", ttl_s=60)
        for listing in ("apikeys", "apikeys:t"):
            await records.add(listing, "x")
            assert await records.members(listing) == {"x"}
            await records.remove(listing, "x")
        await records.delete("apikey:x")
        audit = RedisAudit(instance.link, RedisSignals(instance.link), days=1)
        await audit.append("events", [b"1"])
        assert await audit.latest("events", 1) == [b"1"]
        assert [entry async for entry in audit.entries("events")] == [b"1"]
        assert await audit.keys({"name": b"key"}) == {"name": b"key"}
        assert await audit.erase("name")
        server.command("PUBLISH", SIGNALS, "heard")
        await caught_up(instance.link)
        assert instance.signals[-1] == b"heard"
        assert instance.telemetry.failures == []
        await instance.stop()


@pytest_twisted.ensureDeferred
async def test_a_limit_for_a_time_holds_though_the_mirror_knows_that_a_flag_beside_it_cannot_be_read(
    own_redis, instance
):
    own_redis.command("SET", "tenant:t:subscription_changed_at", "soon")
    own_redis.command("SET", "bakerygw:limits:t", f"3 3600 0 {int(time.time()) + 1000}")
    asked = AdmissionAsk(tenants=("t",), limit_of="t", verified=True)
    states = [await instance.store.admit(asked) for _ in range(5)]
    assert [state.levels[0].allowed for state in states] == [True] * 3 + [False] * 2


@pytest_twisted.ensureDeferred
async def test_a_known_tenants_limit_is_taken_without_reading_it_again(own_redis, instance):
    own_redis.command("SET", "bakerygw:limits:t", f"3 3600 0 {int(time.time()) + 1000}")
    asked = AdmissionAsk(tenants=("t",), limit_of="t", verified=True)
    await instance.store.admit(asked)
    before = calls(own_redis)
    states = [await instance.store.admit(asked) for _ in range(3)]
    assert [state.levels[0].allowed for state in states] == [True, True, False]
    assert calls(own_redis).get("getrange", 0) == before.get("getrange", 0)
