"""Any order of writes, reads, late messages and lost connections: the trusted mirror holds nothing but the truth,
and a token that was found revoked stays so.

A small Redis is played here: it runs commands in order, and its replies and its invalidations travel on two
connections, each in order, neither bound to the other. The mirror is driven as the store and the invalidation do it.
"""

from collections import deque
from math import inf

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bakerygw.core.tenancy import TenantFlags
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.mirror_table import MAX_AGE_S, TRUST_S, Epoch, Found, Read

TENANTS = ("t",)
DIGESTS = ("a",)
KEYS = (*(f"tenant:{name}:subscription_changed_at" for name in TENANTS), *(f"bakerygw:revoked:{d}" for d in DIGESTS))


class World:
    """One instance's mirror, its two connections, and the Redis at their other end."""

    def __init__(self) -> None:
        self.now, self.writes = 1000.0, 0
        self.values: dict[str, tuple[int, float]] = {}
        self.mirror = Mirror(max_tenants=2, max_tokens=2)
        self.questions: deque[Read] = deque()
        self.replies: deque[tuple[Read, dict[str, Found[TenantFlags | None]], dict[str, Found[bool]]]] = deque()
        self.told: deque[list[bytes] | Epoch | None] = deque()
        """On the subscriber connection, in order: changed keys, a flush, or the answer to a ping of this epoch."""
        self.epoch: Epoch | None = None
        self.pings: deque[tuple[Epoch, float]] = deque()
        self.deaf_since = inf
        """Since then the subscriber connection swallows everything, and nobody has noticed."""
        self.found: dict[str, float] = {}
        """Tokens that the instance has found revoked, and until when, unless Redis has told that they changed."""
        self.oldest: dict[tuple[bool, str], Read] = {}
        """Of the reads of a token under way, verified or not, the one that counts."""
        self.swapped_at = -inf
        """When the values were last changed in a way that Redis does not tell of."""

    # the Redis

    def alive(self) -> dict[str, tuple[int, float]]:
        return {key: its for key, its in self.values.items() if self.now < its[1]}

    def tell(self, message: list[bytes] | Epoch | None) -> None:
        if self.epoch is not None and self.deaf_since == inf:
            self.told.append(message)

    def write(self, key: str, ttl_s: float) -> None:
        self.writes += 1
        self.values[key] = (self.writes, self.now + ttl_s)
        self.tell([key.encode()])

    def delete(self, key: str) -> None:
        if self.values.pop(key, None):
            self.tell([key.encode()])

    def flush(self) -> None:
        self.values.clear()
        self.tell(None)

    def swap(self) -> None:
        self.writes += 1
        self.values = {} if self.values else dict.fromkeys(KEYS, (self.writes, inf))
        self.swapped_at = self.now

    def answer(self) -> None:
        if self.questions:
            read = self.questions.popleft()
            flags = {tenant: self.flags(tenant) for tenant in read.tenants}
            self.replies.append((read, flags, {digest: self.revoked(digest) for digest in read.digests}))

    # the instance

    def ask(self, tenants: tuple[str, ...], digests: tuple[str, ...]) -> None:
        if self.mirror.held(tenants, digests, self.now) is None:
            self.begin(tenants, digests)

    def begin(self, tenants: tuple[str, ...], digests: tuple[str, ...], *, verified: bool = True) -> None:
        read = self.mirror.begin(tenants, digests, self.now, verified=verified)
        self.questions.append(read)
        for digest in digests:
            self.oldest.setdefault((verified, digest), read)

    def glance(self) -> None:
        """A question of somebody who is not verified."""
        self.begin(TENANTS, DIGESTS, verified=False)

    def receive(self) -> None:
        if not self.replies:
            return
        read, flags, revoked = self.replies.popleft()
        for digest, its in revoked.items():
            if self.oldest.get((read.verified, digest)) is read:
                del self.oldest[read.verified, digest]
                if its.value:
                    self.found[digest] = read.at + its.ttl_s
        self.mirror.keep(read, flags, revoked)
        self.mirror.end(read)

    def hear(self) -> None:
        if not self.told:
            return
        message = self.told.popleft()
        if isinstance(message, Epoch):
            self.mirror.confirm(*self.pings.popleft())
        else:
            self.mirror.invalidate(message)
            if message is None:
                self.oldest.clear()
            for digest in DIGESTS:
                if message and f"bakerygw:revoked:{digest}".encode() in message:
                    self.found.pop(digest, None)
                    for verified in (True, False):
                        self.oldest.pop((verified, digest), None)

    def ping(self) -> None:
        if self.epoch is not None:
            if self.deaf_since == inf:
                self.pings.append((self.epoch, self.now))
            self.tell(self.epoch)

    def deafen(self) -> None:
        if self.epoch is not None:
            self.deaf_since = min(self.deaf_since, self.now)

    def lose(self, which: str) -> None:
        self.epoch = None
        self.oldest.clear()
        self.mirror.broken()
        if which == "subscriber":
            self.told.clear()
            self.pings.clear()
            self.deaf_since = inf
        else:
            for read in (*self.questions, *(read for read, _, _ in self.replies)):
                self.mirror.end(read)
            self.questions.clear()
            self.replies.clear()

    def track(self) -> None:
        if self.epoch is None and self.deaf_since == inf:  # else the change of its own would not come back
            self.oldest.clear()
            self.epoch = self.mirror.whole(self.now)

    def read(self) -> None:
        """A whole read, unless others are under way before it."""
        self.ask(TENANTS, DIGESTS)
        self.answer()
        self.receive()

    # what must hold

    def flags(self, tenant: str) -> "Found[TenantFlags | None]":
        changed_at, until = self.alive().get(f"tenant:{tenant}:subscription_changed_at", (None, inf))
        return Found(value=TenantFlags(changed_at=changed_at), ttl_s=until - self.now)

    def revoked(self, digest: str) -> "Found[bool]":
        its = self.alive().get(f"bakerygw:revoked:{digest}")
        return Found(value=its is not None, ttl_s=inf if its is None else its[1] - self.now)

    def check(self) -> None:
        """What is held is true, unless the message that it is not is on its way, or has just been swallowed.

        What Redis does not tell of may be held wrongly for `MAX_AGE_S`.
        """
        if self.now < self.swapped_at + MAX_AGE_S:
            return
        if self.deaf_since < inf:
            assert self.now < self.deaf_since + TRUST_S or not self.mirror.trusted(self.now)
            return
        under_way = [message for message in self.told if not isinstance(message, Epoch)]
        flushed = None in under_way
        changed = {key for message in under_way if message for key in message}
        for tenant in TENANTS:
            known = self.mirror.held((tenant,), (), self.now)
            if known and not flushed and f"tenant:{tenant}:subscription_changed_at".encode() not in changed:
                assert known[0][tenant] == self.flags(tenant).value
        for digest in DIGESTS:
            known = self.mirror.held((), (digest,), self.now)
            if known and not flushed and f"bakerygw:revoked:{digest}".encode() not in changed:
                found = self.now < self.found.get(digest, -inf)
                assert known[1][digest] == (found or self.revoked(digest).value)


STEPS = st.sampled_from(
    [
        *(("write", key, ttl_s) for key in KEYS for ttl_s in (inf, 0.2)),
        *(("delete", key) for key in KEYS),
        ("flush",),
        *[("ask", tenants, digests) for tenants in (TENANTS, ()) for digests in (DIGESTS, ())],
        *[("read",), ("answer",), ("receive",), ("hear",)] * 2,
        *[("ping",), ("track",)] * 2,
        ("lose", "data"),
        ("lose", "subscriber"),
        ("deafen",),
        ("glance",),
        *(("wait", seconds) for seconds in (0.001, 0.18, 0.22, TRUST_S, MAX_AGE_S)),
    ]
)


def play(world: World, step: tuple) -> None:
    name, *words = step
    if name == "wait":
        world.now += words[0]
    else:
        getattr(world, name)(*words)


KEY, ASK = KEYS[0], ("ask", TENANTS, DIGESTS)
SHORT = ("write", KEY, 0.2)


@example([("write", KEY, inf), ("hear",), ASK, ("answer",), ("flush",), ("hear",), ("receive",)])
@example([ASK, ("answer",), ("lose", "subscriber"), ("write", KEY, inf), ("track",), ("receive",)])
@example([SHORT, ("hear",), ASK, ("answer",), ("wait", 0.18), ("receive",), ("ping",), ("hear",), ("wait", 0.022)])
@example([("ping",), ("lose", "data"), ("read",), ("hear",), ("write", KEY, inf)])
@example([("glance",), ("answer",), ("write", KEY, inf), ("hear",), ("receive",)])
@example([("write", KEYS[1], inf), ("hear",), ("read",), ("flush",), ("hear",), ("read",)])
@settings(max_examples=1000, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=60))
def test_nothing_stale_is_held_in_any_order_of_events(steps):
    play_all(steps)


@example([("read",), ("swap",), ("wait", MAX_AGE_S), ("ping",), ("hear",)])
@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS | st.just(("swap",)), min_size=10, max_size=60))
def test_what_redis_does_not_tell_of_is_held_for_a_minute_at_most(steps):
    play_all(steps)


def play_all(steps: list[tuple]) -> None:
    """Check after each step, and after all that is still under way has arrived."""
    world = World()
    world.track()
    for step in steps:
        play(world, step)
        world.check()
    while world.questions:
        world.answer()
    while world.replies:
        world.receive()
        world.check()
    while world.told:
        world.hear()
        world.check()


def test_the_play_can_tell_a_right_mirror_from_one_that_keeps_what_changed_during_the_read():
    """Without the marks of reads under way this is the order that goes wrong; and in play the mirror does answer."""
    world = World()
    for step in (
        ("track",),
        ("ask", ("t",), ()),
        ("answer",),
        ("write", KEYS[0], inf),
        ("hear",),
        ("receive",),
    ):
        play(world, step)
    assert world.mirror.held(("t",), (), world.now) is None
    for step in (("ask", ("t",), ()), ("answer",), ("receive",)):
        play(world, step)
    assert world.mirror.held(("t",), (), world.now) == ({"t": TenantFlags(changed_at=1)}, {})
    world.check()
