"""How many tokens are found in the cache of verified ones: 5,000 users, two instances, tokens of 15 minutes.

    python bench/token_cache.py [--users 5000] [--per-minute 6] [--seconds 60] [--quick] [--plain]

What the users do is in `users.py`, with what that assumes. The instances begin as they would be after a quarter of an
hour of it; then requests come in real time, and meanwhile the users whose token ends come back with a new one. The
share is read from the metrics of both instances. Exits with 1 under 95 %, or if a request is answered wrongly. Prints
besides what the model expects, also for users who ask less: it is their requests for each token that decide.
"""

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final

from builds import build_arguments, of
from client import Load, Planned, Tally, connect, paced_load
from rig import Rig, folder_of, free_port, http_request, machine, require, save, verdict
from users import TOKEN_S, Day, Population, Visit, day_of, expected_hits

PROMISE: Final = 95.0
CONNECTIONS: Final = 16
"""To each instance."""
SEED: Final = 20_261_123
SPARE_S: Final = 5.0
"""Visits planned beyond the end: the load counts by its rate, and the visits come by chance."""
RATES: Final = (1, 2, 3, 6, 12)
"""Requests a minute for which the model alone is asked."""


class Tokens:
    """The users' tokens, each made once."""

    def __init__(self, rig: Rig, began: float) -> None:
        """`began`: the Unix second at which the measurement begins."""
        self._rig, self._began = rig, began
        self._made: dict[tuple[int, float], bytes] = {}

    def request(self, visit: Visit) -> bytes:
        """The request of this visit."""
        key = (visit.user, visit.issued_at)
        if key not in self._made:
            issued_at = self._began + visit.issued_at
            token = self._rig.issuer.token(visit.user, issued_at=issued_at, lasts_s=TOKEN_S)
            self._made[key] = http_request("GET", f"/api/v1/sales/{visit.user}", token)
        return self._made[key]


def looked_up(admin_ports: Sequence[int]) -> tuple[int, int]:
    """(hits, misses) of all instances so far."""
    pages = [_metrics(port) for port in admin_ports]
    return _sum(pages, "gateway_auth_cache_hits_total"), _sum(pages, "gateway_auth_cache_misses_total")


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _sum(pages: Sequence[str], name: str) -> int:
    return sum(int(float(re.findall(rf"^{name} (\S+)$", page, re.MULTILINE)[0])) for page in pages)


async def warm_up(ports: Sequence[int], requests: Sequence[tuple[int, bytes]]) -> int:
    """Have each instance see what it has seen before the beginning; how many answers were not 200."""
    left = iter(requests)
    wrong = 0

    async def work() -> None:
        nonlocal wrong
        lines = [await connect(port) for port in ports]
        for instance, request in left:
            wrong += await lines[instance].ask(request) != 200
        for line in lines:
            line.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return wrong


async def measure(ports: Sequence[int], day: Day, tokens: Tokens, rate: float, seconds: float) -> list[Tally]:
    """The visits in real time, each instance's evenly."""
    loads = []
    for instance, port in enumerate(ports):
        plan = _plan([visit for visit in day.measured if visit.instance == instance], tokens)
        load = Load(port=port, rate=rate / len(ports), connections=CONNECTIONS)
        loads.append(paced_load(load, plan, seconds=seconds))
    return await asyncio.gather(*loads)


def _plan(visits: Sequence[Visit], tokens: Tokens) -> Iterator[Planned]:
    for visit in visits:
        yield Planned(request=tokens.request(visit), status=200)


def run(rig: Rig, ports: Sequence[int], admin_ports: Sequence[int], people: Population, seconds: float) -> Any:
    """Hits, misses, wrong answers by kind, and what the model expects."""
    day = day_of(people, seconds + SPARE_S, Random(SEED))
    tokens = Tokens(rig, time.time())
    before = [(visit.instance, tokens.request(visit)) for visit in day.known]
    for visit in day.measured:
        tokens.request(visit)
    print(f"{len(before)} tokens known at the beginning, {len(day.measured)} requests planned", flush=True)
    wrong_before = asyncio.run(warm_up(ports, before))
    hits_before, misses_before = looked_up(admin_ports)
    tallies = asyncio.run(measure(ports, day, tokens, people.rate, seconds))
    hits, misses = looked_up(admin_ports)
    wrong = {what: number for tally in tallies for what, number in tally.wrong.items()}
    if wrong_before:
        wrong["not 200 in the warm-up"] = wrong_before
    return hits - hits_before, misses - misses_before, wrong, 100 * expected_hits(day)


def main() -> int:
    """All of it; 0 if the promise is kept."""
    parser = build_arguments(__doc__)
    parser.add_argument("--users", type=int)
    parser.add_argument("--per-minute", type=float)
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    people = Population(users=given.users or (500 if given.quick else 5_000), per_minute=given.per_minute or 6.0)
    seconds = given.seconds or (8.0 if given.quick else 60.0)
    require("nginx", "redis-server")
    build = of(given)
    about = machine() | {"build": build.name}
    with Rig() as rig:
        rig.start_service()
        rig.start_redis()
        admin_ports = [free_port(), free_port()]
        settings = [{"ADMIN_PORT": str(port)} for port in admin_ports]
        with rig.gateway(build, settings[0]) as (_, one), rig.gateway(build, settings[1]) as (_, other):
            hits, misses, wrong, expected = run(rig, (one, other), admin_ports, people, seconds)
    for what, number in wrong.items():
        print(f"{number} x {what}")
    found = 100 * hits / max(1, hits + misses)
    print(f"{hits} hits, {misses} misses; the model expects {expected:.2f} %")
    model = {}
    for per_minute in RATES:
        others = Population(users=min(people.users, 1_000), per_minute=per_minute)
        model[per_minute] = 100 * expected_hits(day_of(others, TOKEN_S, Random(SEED)))
        print(f"model, {per_minute} requests a minute of each user: {model[per_minute]:.1f} %")
    promise = f">= {PROMISE:g} %, {people.users} users, {people.per_minute:g} requests a minute each, two instances"
    kept = found >= PROMISE and not wrong
    told = verdict("token_cache_hits", found, "%", promise, kept)
    figures = {"hits": hits, "misses": misses, "expected": expected, "model": model, "seconds": seconds}
    save("token_cache", folder_of(parser, given), {"machine": about, "verdicts": [told], **figures})
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
