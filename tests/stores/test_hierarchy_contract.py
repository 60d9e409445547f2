"""Whose part a tenant is: one contract for the embedded store and for Redis, and what the mirror adds to it."""

from math import inf

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, caught_up, invalidations_of, link_to, pause, trusted
from twisted.internet.task import Clock

from bakerygw.core.hierarchy import MAX_STEPS
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.hierarchy import MemoryHierarchy, RedisHierarchy
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.mirror_table import LAST_KNOWN_S, MAX_AGE_S, Found


def key(tenant_id):
    return f"tenant:{tenant_id}:parent"


class Written:
    """A Redis that other programs write parents into."""

    def __init__(self, server, hierarchy):
        self.server, self.ancestors, self._link = server, hierarchy.ancestors, hierarchy._link

    async def set_parent(self, tenant_id, parent):
        self.server.command("SET", key(tenant_id), parent) if parent else self.server.command("DEL", key(tenant_id))
        await caught_up(self._link)


class Told:
    """A Redis on the real reactor, with its hierarchy, mirror and telemetry."""

    def __init__(self, server):
        from twisted.internet import reactor  # noqa: PLC0415

        self.server, self.mirror, self.telemetry = server, Mirror(), RecordingTelemetry()
        self.link = link_to(server, self.telemetry)
        self.invalidations = invalidations_of(server, self.link, self.mirror)
        self.hierarchy = RedisHierarchy(self.link, self.mirror, reactor)

    async def cost(self, tenant_id):
        """The ancestors, and the calls that they took."""
        before = len(self.telemetry.round_trips)
        found = await self.hierarchy.ancestors(tenant_id)
        return found, len(self.telemetry.round_trips) - before


@pytest_twisted.async_yield_fixture
async def told(redis_server):
    its = Told(redis_server)
    await its.link.start()
    its.invalidations.start()
    await trusted(its.mirror)
    yield its
    await its.invalidations.stop()
    await its.link.stop()


@pytest_twisted.async_yield_fixture(params=["memory", "redis", "mirrored"])
async def tree(request):
    if request.param == "memory":
        yield MemoryHierarchy()
        return
    its = Told(request.getfixturevalue("redis_server"))
    await its.link.start()
    if request.param == "mirrored":
        its.invalidations.start()
        await trusted(its.mirror)
    yield Written(its.server, its.hierarchy)
    await its.invalidations.stop()
    await its.link.stop()


async def twice(tree, tenant_id):
    """The same, whether it is read or remembered."""
    first = await tree.ancestors(tenant_id)
    assert await tree.ancestors(tenant_id) == first
    return first


@pytest_twisted.ensureDeferred
async def test_a_tenant_of_nobody_has_no_ancestors(tree):
    assert await twice(tree, "alone") == ()


@pytest_twisted.ensureDeferred
async def test_the_nearest_comes_first(tree):
    for child, parent in (("shop", "region"), ("region", "chain"), ("chain", "group")):
        await tree.set_parent(child, parent)
    assert await twice(tree, "shop") == ("region", "chain", "group")
    assert await twice(tree, "chain") == ("group",)


@pytest_twisted.ensureDeferred
async def test_a_change_is_seen_by_those_below_it(tree):
    await tree.set_parent("shop", "region")
    assert await twice(tree, "shop") == ("region",)
    await tree.set_parent("region", "chain")
    assert await twice(tree, "shop") == ("region", "chain")
    await tree.set_parent("shop", None)
    assert await twice(tree, "shop") == ()


@pytest_twisted.ensureDeferred
async def test_no_more_than_eight_are_told(tree):
    for number in range(MAX_STEPS + 4):
        await tree.set_parent(f"t{number}", f"t{number + 1}")
    assert await twice(tree, "t0") == tuple(f"t{number}" for number in range(1, MAX_STEPS + 1))
    assert await twice(tree, "t3") == tuple(f"t{number}" for number in range(4, MAX_STEPS + 4))


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ({"a": "a"}, ()),
        ({"a": "b", "b": "a"}, ("b",)),
        ({"a": "b", "b": "c", "c": "b"}, ("b", "c")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_circle_ends(tree, links, expected):
    for child, parent in links.items():
        await tree.set_parent(child, parent)
    assert await twice(tree, "a") == expected


@pytest.mark.parametrize("parent", ["a b", "x" * 65, "ü", "a/b", "a:parent", "{}", "a\n", "*"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_id_ends_the_chain(tree, parent):
    await tree.set_parent("a", "b")
    await tree.set_parent("b", parent)
    await tree.set_parent("x" * 64, "c")
    assert await twice(tree, "a") == ("b",)


@pytest_twisted.ensureDeferred
async def test_ids_as_long_and_as_odd_as_allowed_are_followed(tree):
    long, odd = "x" * 64, "A.b_c-9"
    await tree.set_parent("a", long)
    await tree.set_parent(long, odd)
    assert await twice(tree, "a") == (long, odd)


@pytest_twisted.ensureDeferred
async def test_a_value_of_another_type_ends_the_chain(told):
    told.server.command("RPUSH", key("a"), "b")
    assert await twice(told.hierarchy, "a") == ()


@pytest_twisted.ensureDeferred
async def test_a_known_chain_costs_nothing_and_neither_does_a_part_of_it(told):
    told.server.command("MSET", key("shop"), "region", key("region"), "chain")
    await caught_up(told.link)
    assert await told.cost("shop") == (("region", "chain"), 1)
    assert await told.cost("shop") == (("region", "chain"), 0)
    assert await told.cost("region") == (("chain",), 0)


@pytest_twisted.ensureDeferred
async def test_a_parent_that_expires_is_none_from_that_moment(told):
    told.server.command("SET", key("shop"), "chain", "PX", "1000")
    await caught_up(told.link)
    assert await told.cost("shop") == (("chain",), 1)
    await pause(1.01)
    assert (await told.hierarchy.ancestors("shop")) == ()


@pytest_twisted.ensureDeferred
async def test_a_change_while_a_chain_is_read_is_not_overlooked(told):
    told.server.command("MSET", key("shop"), "region", key("region"), "chain")
    await caught_up(told.link)
    real = told.hierarchy._ask

    async def slow(tenant_id):
        reply = await real(tenant_id)
        told.server.command("DEL", key("region"))
        await caught_up(told.link)  # what Redis tells of it arrives before the answer is taken
        return reply

    told.hierarchy._ask = slow
    await told.hierarchy.ancestors("shop")
    told.hierarchy._ask = real
    assert await told.cost("shop") == (("region",), 1)


@pytest_twisted.ensureDeferred
async def test_while_nobody_tells_of_changes_each_use_is_read(told):
    told.server.command("SET", key("shop"), "chain")
    await caught_up(told.link)
    await told.hierarchy.ancestors("shop")
    await told.invalidations.stop()
    told.server.command("SET", key("shop"), "other")
    assert await told.cost("shop") == (("other",), 1)
    assert await told.cost("shop") == (("other",), 1)


class Answers:
    """A link that answers as the test says."""

    def __init__(self, reply=None):
        self.reply, self.calls = reply, 0

    async def run(self, script, keys, args):
        self.calls += 1
        if self.reply is None:
            raise StoreUnavailable("away")
        return self.reply


def over(link):
    mirror, clock = Mirror(), Clock()
    mirror.whole(clock.seconds())
    return RedisHierarchy(link, mirror, clock), mirror, clock


@pytest_twisted.ensureDeferred
async def test_with_redis_away_the_last_known_chain_stands_in_for_a_minute():
    link = Answers([b"chain", -1, b"", -2])
    tree, mirror, clock = over(link)
    assert await tree.ancestors("shop") == ("chain",)
    link.reply = None
    mirror.broken()
    clock.advance(LAST_KNOWN_S)
    assert await tree.ancestors("shop") == ("chain",)
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        await tree.ancestors("shop")


@pytest_twisted.ensureDeferred
async def test_with_redis_away_a_chain_that_is_known_in_part_is_not_known():
    link = Answers([b"chain", -1, b"", 5000])
    tree, mirror, clock = over(link)
    await tree.ancestors("shop")
    link.reply = None
    mirror.broken()
    clock.advance(6)
    with pytest.raises(StoreUnavailable):
        await tree.ancestors("shop")
    with pytest.raises(StoreUnavailable):
        await tree.ancestors("never seen")


@pytest_twisted.ensureDeferred
async def test_what_redis_has_told_to_be_changed_is_not_last_known():
    link = Answers([b"chain", -1, b"", -2])
    tree, mirror, _ = over(link)
    await tree.ancestors("shop")
    mirror.invalidate([b"tenant:shop:parent"])
    link.reply = None
    with pytest.raises(StoreUnavailable):
        await tree.ancestors("shop")


@pytest.mark.parametrize("told", [None, [b"tenant:shop:parent"], [b"tenant:chain:parent"], [b"tenant:other:parent"]])
@pytest_twisted.ensureDeferred
async def test_a_chain_is_read_again_after_a_change_of_one_of_its_links_and_no_other(told):
    link = Answers([b"chain", -1, b"", -2])
    tree, mirror, _ = over(link)
    await tree.ancestors("shop")
    mirror.invalidate(told)
    await tree.ancestors("shop")
    assert link.calls == (1 if told == [b"tenant:other:parent"] else 2)


@pytest_twisted.ensureDeferred
async def test_nothing_is_taken_for_true_longer_than_a_minute_whatever_redis_tells():
    link = Answers([b"chain", -1, b"", -2])
    tree, mirror, clock = over(link)
    epoch = mirror.whole(0)
    await tree.ancestors("shop")
    clock.advance(MAX_AGE_S - 1)
    mirror.confirm(epoch, clock.seconds())
    await tree.ancestors("shop")
    assert link.calls == 1
    clock.advance(1)
    mirror.confirm(epoch, clock.seconds())
    await tree.ancestors("shop")
    assert link.calls == 2


@pytest.mark.parametrize(
    "reply",
    [
        [],
        b"chain",
        5,
        [b"chain"],
        [b"chain", -1],
        [b"chain", b"x", b"", -2],
        ["chain", -1, b"", -2],
        [5, -1],
        [b"a b", -1, b"", -2],
        [b"x" * 65, -1, b"", -2],
        [b"tenant\r\nx", -1, b"", -2],
        [b"chain", -1, b"other", -1],
        [None, -1],
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_makes_no_sense_grants_nothing(reply):
    tree, mirror, _ = over(Answers(reply))
    with pytest.raises(StoreUnavailable):
        await tree.ancestors("shop")
    assert mirror.parents.last_known("shop", 0) is None


@pytest_twisted.ensureDeferred
async def test_an_endless_answer_is_cut():
    endless = [part for number in range(5000) for part in (b"t%d" % number, -1)]
    tree, mirror, _ = over(Answers(endless))
    assert await tree.ancestors("shop") == tuple(f"t{number}" for number in range(MAX_STEPS))
    assert mirror.parents.last_known("t100", 0) is None


def test_what_was_read_across_a_gap_in_what_redis_tells_is_not_kept():
    mirror = Mirror()
    mirror.whole(0)
    read = mirror.parents.begin(0)
    mirror.broken()
    mirror.whole(0)
    mirror.parents.keep(read, {"shop": Found(value="chain", ttl_s=inf), "chain": Found(value="", ttl_s=inf)})
    assert mirror.parents.held("shop", 0) is None
    after = mirror.parents.begin(0)
    mirror.parents.keep(after, {"shop": Found(value="chain", ttl_s=inf), "chain": Found(value="", ttl_s=inf)})
    assert mirror.parents.held("shop", 0) == ("chain",)
