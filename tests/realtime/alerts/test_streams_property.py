"""Random lives of clients on two instances over one history: nothing is lost, nothing is told twice."""

from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from bakerygw.core.alerts import Position, parse_position
from bakerygw.realtime.alerts.stream import Stream
from tests.realtime.stream_fakes import History, Instance, Reading


class Person:
    """One dashboard over all its connections, and what it may expect next."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self.at: Position | None = None
        self.reading: Reading | None = None
        self.fresh = False

    def connect(self, instance: Instance, last_id: str | None) -> None:
        self.fresh = last_id is None
        self.reading = instance.open(last_id)
        if last_id is not None and parse_position(last_id.encode()) is None:
            self.at = None

    def read(self, history: History, up_to: int | None = None) -> None:
        reading = self.reading
        if reading is None:
            return
        known = len(reading.client.events)
        reading.read(up_to)
        for event in reading.client.events[known:]:
            position = parse_position(event.last_id.encode()) if event.last_id else None
            if event.kind == "hello":
                if self.fresh:
                    assert position is not None
                    self.at, self.fresh = position, False
                elif event.json["recovered"] and position is not None and self.at is not None:
                    assert position == self.at, "hello names what was not told"
            elif event.kind == "gap":
                assert position == Position(epoch=event.json["epoch"], offset=event.json["offset"])
                self.at = position
            elif event.kind == "alert":
                assert self.at is not None, "an alert before anything says where"
                assert position == Position(epoch=self.at.epoch, offset=self.at.offset + 1), (self.at, position)
                assert event.data.encode() == history.truth[position]
                self.at = position
        if reading.client.last_id:
            self.last_id = reading.client.last_id

    def cut(self, history: History, random: Random) -> None:
        if self.reading is not None:
            size = sum(map(len, self.reading.exchange.written))
            self.read(history, random.randint(0, size))
            self.reading.leave()
            self.reading = None


class World:
    def __init__(self, random: Random) -> None:
        self.random, self.history = random, History()
        self.instances = [Instance(self.history, slow=True) for _ in range(2)]
        for instance in self.instances:
            instance.log.page_events = random.choice([1, 3, 50])
            instance.hub.bounds = random.choice([(2, 10_000), (10, 300), (1000, 100_000)])
        self.people = [Person() for _ in range(4)]
        self.unheard: list[tuple[Instance, Position]] = []
        self.number = 0

    def step(self) -> None:
        random = self.random
        deeds: dict[Callable[[], None], float] = {
            self.publish: 8, self.hear: 10, self.look: 8, self.answer: 8, self.connect: 4, self.cut: 2, self.block: 2,
            self.unblock: 4, self.turn: 8, self.read: 4, self.trim: 0.5, self.era: 0.3, self.trouble: 0.5,
        }  # fmt: skip
        (deed,) = random.choices(list(deeds), list(deeds.values()))
        deed()

    def publish(self) -> None:
        for _ in range(self.random.choice([1, 1, 1, 5])):
            self.number += 1
            position = self.history.add(b'{"n": %d}' % self.number)
            for instance in self.instances:
                if self.random.random() < 0.9:  # else it was not heard here
                    self.unheard.append((instance, position))

    def hear(self) -> None:
        if self.unheard:
            at = self.random.choice([0, 0, 0, self.random.randrange(len(self.unheard))])
            instance, position = self.unheard[at]
            if self.random.random() < 0.9:  # else it comes again
                del self.unheard[at]
            instance.hear(position)

    def look(self) -> None:
        for instance in self.instances:
            for asked in instance.log.asked:
                if self.random.random() < 0.5:
                    asked.look()

    def answer(self) -> None:
        instance = self.random.choice(self.instances)
        if instance.log.asked:
            self.random.choice(instance.log.asked).answer()

    def connect(self) -> None:
        person = self.random.choice(self.people)
        if person.reading is None or person.reading.end is not None:
            person.cut(self.history, self.random)
            last_id = self.random.choice([person.last_id, person.last_id, person.last_id, None])
            person.connect(self.random.choice(self.instances), last_id)

    def cut(self) -> None:
        self.random.choice(self.people).cut(self.history, self.random)

    def block(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.pause()

    def unblock(self) -> None:
        stream = self._stream()
        if stream is not None and stream.blocked:
            stream.resume()

    def _stream(self) -> Stream | None:
        return self._stream_of(self.random.choice(self.people))

    @staticmethod
    def _stream_of(person: Person) -> Stream | None:
        reading = person.reading
        return None if reading is None or reading.end is not None else reading.stream

    def turn(self) -> None:
        self.random.choice(self.instances).turn(self.random.choice([0, 0, 0.03, 0.6]))

    def read(self) -> None:
        self.random.choice(self.people).read(self.history)

    def trim(self) -> None:
        self.history.trim(self.random.randint(0, 10))

    def era(self) -> None:
        self.history.begin_era()

    def trouble(self) -> None:
        instance = self.random.choice(self.instances)
        if instance.hub.listening:
            instance.hub.degraded()
            instance.log.away = True
        else:
            instance.log.away = False
            instance.hub.restored()

    def settle(self) -> None:
        for instance in self.instances:
            instance.log.away = False
            instance.hub.restored()
        for _ in range(300):
            for person in self.people:
                stream = self._stream_of(person)
                if stream is not None and stream.blocked:
                    stream.resume()
            for instance in self.instances:
                instance.turn(0.1)
                for asked in list(instance.log.asked):
                    asked.answer()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**40))
def test_each_reader_gets_every_alert_once_and_in_order_or_is_told_of_a_gap(seed: int) -> None:
    world = World(Random(seed))
    for _ in range(200):
        world.step()
    world.settle()

    for person in world.people:
        reading = person.reading
        if reading is not None and reading.end is None:
            person.read(world.history)
            assert person.at == world.history.head
    for person in world.people:
        person.cut(world.history, world.random)
    for instance in world.instances:
        assert instance.told.open == 0
        instance.turn(60)
        instance.turn(60)
        assert instance.hub.feeds == {}
        assert instance.clock.getDelayedCalls() == []
