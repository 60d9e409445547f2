"""No schedule of deaths, pauses and lost connections loses an alert without an era that tells of it."""

from random import Random

import pytest

from tests.realtime.alert_sim import Instance, SimRedis, go

SEEDS = 150


class World:
    """Three places for instances, one Redis, and whoever publishes."""

    def __init__(self) -> None:
        self.redis = SimRedis()
        self.all: list[Instance] = []
        self.slots: list[Instance | None] = [None, None, None]
        self.number = 0

    def act(self, what: str, slot: int) -> None:
        """One step; what cannot be done there and then does nothing."""
        instance = self.slots[slot]
        if what == "publish":
            self.number += 1
            self.redis.alert(b"%d" % self.number)
        elif instance is None:
            if what in ("start", "go"):
                self.slots[slot] = Instance(self.redis, max_waiting=3)
                self.all.append(self.slots[slot])
        else:
            self.do(what, instance)
            if what == "kill":
                instance.kill()
                self.slots[slot] = None

    def do(self, what: str, instance: Instance) -> None:
        connection, link = instance.connection, instance.link
        if what == "tick":
            instance.clock.advance(0.11)
        elif what == "sleep":
            instance.clock.advance(20.0)
        elif what == "go":
            instance.go(0.5)
        elif what == "serve data":
            link.serve()
        elif what == "answer data":
            link.deliver()
        elif what == "time out":
            link.time_out()
        elif what in ("data lost", "data back"):
            link.set_up(what == "data back")
        elif connection is not None:
            step = {"serve": connection.serve, "deliver": connection.deliver, "cut": connection.cut}.get(what)
            if step is not None:
                step()

    def close(self) -> None:
        for instance in self.all:
            instance.close()

    @property
    def silently_lost(self) -> list[bytes]:
        return [payload for instance in self.all for payload in instance.silently_lost]


STEPS = {
    "publish": 8, "serve": 14, "deliver": 14, "serve data": 14, "answer data": 14, "tick": 10, "go": 2, "start": 3,
    "kill": 1, "cut": 2, "time out": 1, "data lost": 1, "data back": 2, "sleep": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whoever_says_that_it_listens_has_missed_nothing_that_no_era_tells_of(seed):
    chance, world = Random(seed), World()
    try:
        play(world, chance)
    finally:
        world.close()


def play(world: World, chance: Random) -> None:
    names, weights = list(STEPS), list(STEPS.values())
    for slot in range(chance.randint(0, 3)):
        world.act("start", slot)
        world.act("go", slot)
    for _ in range(20):
        slots = chance.sample(range(3), chance.randint(1, 3))  # the others are stopped meanwhile
        for what in chance.choices(names, weights, k=15):
            world.act(what, chance.choice(slots))
    assert world.silently_lost == []

    if not any(world.slots):
        world.act("start", 0)
    living = [instance for instance in world.slots if instance is not None]
    for instance in living:
        instance.link.set_up(True)
    go(living, 60.0)

    assert all(instance.is_listening for instance in living)
    assert all(instance.hub.told[-1] == "restored" for instance in living)
    assert world.silently_lost == []
    assert world.redis.silently_lost(world.redis.moment + 1) == []
