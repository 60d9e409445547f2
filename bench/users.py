"""Who asks when, with which token, and of which instance: a model of a population of signed-in users.

What it assumes: users ask at random moments, some far more often than others (the n-th most active one in proportion to
1/n), and signed in at different times; a client fetches a new token at its first request in the last minute of the old
one, or later, and asks with the new one from then on; a balancer sends each request to any instance, whoever asks. The
last is the worst case: a balancer that keeps a user's connection on one instance makes misses rarer.
"""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

TOKEN_S: Final = 900.0
"""How long a token lasts."""
MARGIN_S: Final = 60.0
"""How long before its end a client no longer uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request."""

    at: float
    """Seconds from the beginning of what is measured; before it negative."""
    user: int
    issued_at: float
    """When the user's token was issued, which names the token."""
    instance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """So many users, who make so many requests a minute on average, over so many instances."""

    users: int
    per_minute: float
    instances: int = 2

    @property
    def rate(self) -> float:
        """Requests of all of them in a second."""
        return self.users * self.per_minute / 60

    def visits(self, seconds: float, chance: Random) -> Iterator[Visit]:
        """All that happens from two lifetimes of a token before the beginning, in order."""
        activity = list(accumulate(1 / rank for rank in range(1, self.users + 1)))
        at = -2 * TOKEN_S
        issued = [at - chance.random() * (TOKEN_S - MARGIN_S) for _ in range(self.users)]
        while (at := at + chance.expovariate(self.rate)) < seconds:
            user = bisect(activity, chance.random() * activity[-1])
            if at > issued[user] + TOKEN_S - MARGIN_S:
                issued[user] = at
            yield Visit(at=at, user=user, issued_at=issued[user], instance=chance.randrange(self.instances))


@dataclass(frozen=True, slots=True)
class Day:
    """The visits of a run, apart by what is done with them."""

    known: list[Visit]
    """For each user and instance one visit with a token that is still in use at the beginning, if there was one."""
    measured: list[Visit]


def day_of(population: Population, seconds: float, chance: Random) -> Day:
    """What happened before the beginning as far as it matters then, and what happens after."""
    before: dict[tuple[int, int], Visit] = {}
    current: dict[int, float] = {}
    measured = []
    for visit in population.visits(seconds, chance):
        if visit.at >= 0:
            measured.append(visit)
        else:
            before[visit.user, visit.instance] = visit
            current[visit.user] = visit.issued_at
    in_use = {user: issued_at for user, issued_at in current.items() if issued_at > MARGIN_S - TOKEN_S}
    known = [visit for visit in before.values() if visit.issued_at == in_use.get(visit.user)]
    return Day(known, measured)


def expected_hits(day: Day) -> float:
    """The share of the measured visits whose token their instance has seen before, if it forgets none."""
    seen = {(visit.user, visit.issued_at, visit.instance) for visit in day.known}
    hits = 0
    for visit in day.measured:
        token = (visit.user, visit.issued_at, visit.instance)
        hits += token in seen
        seen.add(token)
    return hits / len(day.measured)
