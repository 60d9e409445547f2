"""Alerts in a storm: instances are killed, Redis pauses and restarts, readers come and go; nothing may go unsaid.

    python -m tests.chaos.alerts --alerts 50000 --rate 500

Each scenario has a real Redis with an append-only file, two gateway processes, a publisher, and readers that are cut
and resumed at random on either instance. What a reader gets must follow without hole or repeat, or a `gap` must say so;
what Redis handed to an instance while one was listening must be in the history. The exit status is 1 if not.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from statistics import quantiles
from time import monotonic
from typing import Any

from tests.chaos.publishing import Published, Publisher
from tests.chaos.reading import Ledger, Position, Reader, in_turn, unannounced
from tests.e2e.harness import Gateway
from tests.minting import Issuer
from tests.redis_server import RedisServer

PUBLISH_TOKEN = "publish-token-of-the-storm-0123456789"
SETTLED_S = 1.5
"""From the moment in which both listen, until one may be killed: what only the other has heard is then stored."""
SLACK = 400
"""By how many alerts the order of storing may differ from that of publishing."""
RAISED = {"SSE_MAX_PER_USER": "1000", "SSE_MAX_PER_TENANT": "1000", "SSE_NEW_PER_SECOND": "10000"}
"""Settings that would turn a storm of readers away."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens while alerts are published."""

    name: str
    share: float
    """Of all alerts."""
    faults: tuple[str, ...]
    keeps: int = 20_000
    """SSE_HISTORY_EVENTS"""
    gaps: frozenset[str] = frozenset()
    """Reasons of gaps that these faults can have."""
    loses: bool = False
    """Whether what was handed to an instance may be lost, if a gap says so."""


SCENARIOS = (
    Scenario(name="kills", share=0.4, faults=("kill", "kill", "hang", "calm")),
    Scenario(
        name="redis", share=0.4, faults=("pause", "restart", "kill", "calm"), gaps=frozenset({"epoch"}), loses=True
    ),
    Scenario(name="nobody", share=0.1, faults=("kill-both", "calm"), gaps=frozenset({"epoch"}), loses=True),
    Scenario(name="small", share=0.1, faults=("kill", "calm"), keeps=20, gaps=frozenset({"trimmed"})),
)


@dataclass
class Report:
    """What came of a scenario."""

    scenario: str
    published: int = 0
    delivered: int = 0
    lost: int = 0
    """Handed to an instance or not answered, and in no history; a gap has said so."""
    unheard: int = 0
    cuts: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    delay_p50_s: float = 0.0
    delay_p99_s: float = 0.0
    delay_max_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Storm:
    """One scenario on its way."""

    def __init__(self, scenario: Scenario, running: ExitStack, chance: Random, *, tenants: int, readers: int) -> None:
        self.scenario, self._chance = scenario, chance
        issuer = Issuer()
        self.redis = running.enter_context(RedisServer("--appendonly", "yes", "--appendfsync", "everysec"))
        settings = {
            **RAISED,
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "REDIS_HOST": self.redis.host,
            "REDIS_PORT": str(self.redis.port),
            "PUBLISH_TOKEN": PUBLISH_TOKEN,
            "SSE_HISTORY_EVENTS": str(scenario.keeps),
            "RATE_LIMIT_REQUESTS": "10000000",
            "TENANT_MAX_CONCURRENT": "100000",
        }
        self.instances = [running.enter_context(Gateway(settings, expect_exit=None)) for _ in range(2)]
        self.down: set[int] = set()
        names = [f"bakery-{number}" for number in range(tenants)]
        self.ledgers = {name: Ledger(name, scenario.keeps) for name in names}
        self.readers = [Reader(f"{name}/{number}", self.ledgers[name]) for name in names for number in range(readers)]
        self._tokens = {
            name: issuer.token(tenant_id=name, tenant_access=[], exp=issuer.claims()["iat"] + 86_400) for name in names
        }
        self.publisher = Publisher(
            (self.redis.host, self.redis.port), names, admins=self._admins, token=PUBLISH_TOKEN, chance=chance
        )
        self.report = Report(scenario.name)
        self._over = False

    def _admins(self) -> list[int]:
        return [it.admin_port for index, it in enumerate(self.instances) if index not in self.down]

    async def run(self, alerts: int, rate: float) -> Report:
        """The whole scenario."""
        await self._both_listen()
        reading = [asyncio.create_task(self._read(reader)) for reader in self.readers]
        await self._wait(lambda: all(reader.last is not None for reader in self.readers), 60, "readers do not begin")
        faults = asyncio.create_task(self._fail())
        await self.publisher.run(alerts, rate, posted=0.02)
        self._over = True
        await faults
        await self._both_listen()
        await self._catch_up()
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        return self._judge()

    # readers

    async def _read(self, reader: Reader) -> None:
        token = self._tokens[reader.ledger.tenant]
        while True:
            port = self._chance.choice(self.instances).port
            connection = asyncio.create_task(reader.read("127.0.0.1", port, token, self.report.statuses))
            lives_s = (
                3600.0 if self._over else self._chance.choice((0.05, 0.5, 2.0, 6.0)) * (0.5 + self._chance.random())
            )
            try:
                deadline = monotonic() + lives_s
                while not connection.done() and (monotonic() < deadline or self._over):
                    await asyncio.wait([connection], timeout=0.1 if lives_s > 0.2 else lives_s)
            finally:
                if not connection.done():
                    self.report.cuts += 1
                    connection.cancel()
                with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
                    await connection
            await asyncio.sleep(0.05 if self._over else self._chance.choice((0.0, 0.1, 2.0)) * self._chance.random())

    async def _catch_up(self) -> None:
        """Each reader gets to one last alert, and with it all before; or to a gap that was told instead of them."""
        for tenant, its in self.publisher.published.items():
            async with asyncio.timeout(60):
                await self.publisher.post(tenant)
            end = Position.of(its.stored[its.count - 1])
            readers = [reader for reader in self.readers if reader.ledger.tenant == tenant]
            with contextlib.suppress(TimeoutError):
                await self._wait(lambda readers=readers, end=end: all(it.is_at(end) for it in readers), 60, "")
            self.report.wrong += [
                f"{it.name} does not come to the end: at {it.last}, the end is {end}"
                for it in readers
                if not it.is_at(end)
            ]

    # faults

    async def _fail(self) -> None:
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "calm": self._calm,
            "kill": self._kill,
            "hang": self._hang,
            "kill-both": self._kill_both,
            "pause": self._pause,
            "restart": self._restart,
        }
        each_once = iter(self.scenario.faults)
        while not self._over:
            name = next(each_once, None) or self._chance.choice(self.scenario.faults)
            self.report.faults[name] += 1
            await acts[name]()
            await asyncio.sleep(0.5 * self._chance.random())

    async def _calm(self) -> None:
        await asyncio.sleep(1.0)

    async def _kill(self) -> None:
        """One instance, while the other has listened for long enough."""
        await self._both_listen()
        await asyncio.sleep(SETTLED_S)
        index = self._chance.randrange(2)
        await self._down(index)
        await asyncio.sleep(2 * self._chance.random())
        await self._up(index)

    async def _hang(self) -> None:
        """One instance does nothing for a while, and then goes on as if nothing had been."""
        await self._both_listen()
        instance = self._chance.choice(self.instances)
        instance.signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.choice((0.5, 3.0)))
        instance.signal(signal.SIGCONT)

    async def _kill_both(self) -> None:
        for index in (0, 1):
            await self._down(index)
        await asyncio.sleep(0.5 + self._chance.random())
        for index in (0, 1):
            await self._up(index)
        await self._both_listen()

    async def _pause(self) -> None:
        self.redis.suspend()
        await asyncio.sleep(self._chance.choice((0.2, 1.0, 4.0)))
        self.redis.resume()
        await asyncio.sleep(1.0)

    async def _restart(self) -> None:
        await asyncio.to_thread(self.redis.kill)
        await asyncio.sleep(self._chance.choice((0.0, 0.5, 2.0)))
        await asyncio.to_thread(self.redis.start)
        await asyncio.sleep(1.0)

    async def _down(self, index: int) -> None:
        self.down.add(index)
        await asyncio.to_thread(self.instances[index].kill)

    async def _up(self, index: int) -> None:
        await asyncio.to_thread(self.instances[index].start)
        self.down.discard(index)

    async def _both_listen(self) -> None:
        for instance in self.instances:
            await self._wait(lambda instance=instance: _listens(instance), 60, "not both instances listen")

    async def _wait(self, holds: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = monotonic() + within_s
        while not await asyncio.to_thread(holds):
            if monotonic() > deadline:
                raise TimeoutError(otherwise)
            await asyncio.sleep(0.05)

    # judgement

    def _judge(self) -> Report:
        report = self.report
        for name, ledger in self.ledgers.items():
            readers = [reader for reader in self.readers if reader.ledger is ledger]
            report.wrong += ledger.faults
            report.gaps += ledger.gaps
            report.delivered += ledger.delivered
            self._judge_tenant(self.publisher.published[name], ledger, readers)
        for reader in self.readers:
            report.said += reader.said
        for reason in report.gaps.keys() - self.scenario.gaps:
            report.wrong.append(f"{report.gaps[reason]} gaps: {reason}, which nothing that happened explains")
        delays = sorted(delay for ledger in self.ledgers.values() for delay in ledger.delays)
        if len(delays) > 1:
            parts = quantiles(delays, n=100)
            report.delay_p50_s, report.delay_p99_s, report.delay_max_s = parts[49], parts[98], delays[-1]
        for instance in self.instances:
            report.wrong += [f"in a log: {line[:2000]}" for line in instance.faults()]
        return report

    def _judge_tenant(self, published: Published, ledger: Ledger, readers: Sequence[Reader]) -> None:
        report = self.report
        report.published += published.count
        report.unheard += len(published.unheard)
        placed = ledger.places.keys()
        for number, where in published.stored.items():
            if number in placed and str(ledger.places[number]) != where:
                report.wrong.append(
                    f"{ledger.tenant}: {number} was stored at {where}, and came as {ledger.places[number]}"
                )
        lost = sorted((published.heard | published.unheard | published.unknown | published.stored.keys()) - placed)
        certain = [number for number in lost if number in published.heard or number in published.stored]
        report.lost += len(certain)
        if certain and not self.scenario.loses and not self.scenario.gaps:
            report.wrong.append(f"{ledger.tenant}: lost, though somebody listened: {certain[:20]}")
        seen = {reader.name: in_turn(reader.seen, published.stored) for reader in readers}
        report.wrong += [
            f"{name}: {number} is missing, and no gap says so"
            for number in lost
            if number not in published.unknown
            for name, its in seen.items()
            if unannounced(number, its, SLACK)
        ]


def _listens(instance: Gateway) -> bool:
    """Whether it hears all that is published, as far as it knows."""
    connection = http.client.HTTPConnection("127.0.0.1", instance.admin_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return b"\ngateway_alerts_listening 1.0\n" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def scenarios(names: str) -> Iterator[Scenario]:
    """Those that are named, or all."""
    wanted = set(filter(None, names.split(",")))
    return (it for it in SCENARIOS if not wanted or it.name in wanted)


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--alerts", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=500.0, help="alerts a second")
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--readers", type=int, default=4, help="of each tenant")
    parser.add_argument("--scenarios", default="", help="comma separated; default: all")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    chosen = list(scenarios(asked.scenarios))
    whole, good = sum(it.share for it in chosen), True
    for scenario in chosen:
        with ExitStack() as running:
            storm = Storm(scenario, running, Random(asked.seed), tenants=asked.tenants, readers=asked.readers)
            report = asyncio.run(storm.run(round(asked.alerts * scenario.share / whole), asked.rate))
        good = good and not report.wrong
        print(json.dumps(_shown(report), indent=2), flush=True)
    print("all is well" if good else "SOMETHING IS WRONG")
    return 0 if good else 1


def _shown(report: Report) -> dict[str, Any]:
    shown = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    shown = {name: round(it, 3) if isinstance(it, float) else it for name, it in shown.items()}
    return {**shown, "wrong": report.wrong[:40], "wrong_in_all": len(report.wrong)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
