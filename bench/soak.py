"""Minutes at 70 % of what the gateway can do: no error, and nothing that grows.

    python bench/soak.py [--minutes 5] [--share 0.7] [--quick] [--plain]

The capacity is measured at the start, by wrk with the same mix of requests and connections. Then the mix comes evenly,
whatever the gateway does: reads, writes, unknown routes, tokens that are missing, forged or garbage, subscriptions that
ended. After the warm-up the lowest value of the last third is compared with that of the first: resident memory, open
files, and, told by the process itself, timers and memory blocks. Prints how much memory grew; exits with 1 if anything
grew by more than is allowed, if one answer was not the right one, if the log tells of a defect or cannot be read, or if
the gateway had too little of its core while its capacity was measured.
"""

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Any, Final, Self

import wrk
from builds import build_arguments, of
from client import Load, Planned, Tally, paced_load
from procfs import cpu_seconds, open_files, rss_bytes, waited_seconds
from rig import Issuer, Rig, folder_of, http_request, machine, require, save, verdict

CONNECTIONS: Final = 50
PLANNED: Final = 2_000
"""Requests in the mix, which then begins anew."""
MIX: Final = {"read": 60, "write": 25, "unknown route": 3, "unknown sale": 2, "no good token": 5, "unpaid": 5}
"""Per cent."""
SAMPLE_S: Final = 1.0
BUSY: Final = 0.85
"""Of its core; with less, what was measured is not the gateway's capacity."""
UNEVEN: Final = 3 * CONNECTIONS
"""Answers by which a part of the mix may differ from all of it: requests under way, and the order of the mix."""

ALLOWED: Final = {
    # A page kept here and there is not a leak. In five minutes at 3,000 requests a second 600,000 of them lie between
    # the beginnings of the first and the last third: four bytes left behind by each would show.
    "rss": 2 * 1024 * 1024,
    # Memory blocks of Python: sharper. Connections of a burst, and what waits for the collector, are some thousands;
    # one left behind by each thirtieth request would show.
    "blocks": 20_000,
    # A burst has the pool open connections to the service, each with a timer, and keep up to 100 of them for seconds.
    # One left behind by each thousandth request makes 600.
    "files": 150,
    "timers": 150,
}
"""What the last third may have more than the first."""
FAULTS: Final = (
    b"Unhandled error",
    b"Traceback (most recent call last)",
    b".crashed",
    b"log.dropped",
    b'"level":"error"',
    b'"level":"critical"',
    b'"exception":',  # a list of parts in a line of JSON: no "Traceback" stands there
)
"""What a log of answers below 500 must not hold."""


def mixture(good: Sequence[str], issuer: Issuer, chance: random.Random) -> list[Planned]:
    """`PLANNED` requests at random in the proportions of `MIX`, each with the status that is right."""
    forged = Issuer().tokens()[:5]
    unpaid = [issuer.token(number, status="canceled") for number in range(1000, 1020)]
    kinds = chance.choices(list(MIX), list(MIX.values()), k=PLANNED)
    tokens = {"good": good, "bad": [*forged, "garbage", ""], "unpaid": unpaid}
    return [_planned(kind, tokens, chance) for kind in kinds]


def _planned(kind: str, tokens: Mapping[str, Sequence[str]], chance: random.Random) -> Planned:
    path, token = f"/api/v1/sales/{chance.randrange(10_000)}", chance.choice(tokens["good"])
    if kind == "write":
        body = b'{"note": "%s"}' % (b"x" * chance.randrange(1, 2_000))
        return Planned(request=http_request("POST", path, token, body), status=200)
    if kind == "unknown route":
        return Planned(request=http_request("GET", f"/nowhere/{chance.randrange(10_000)}", token), status=404)
    if kind == "unknown sale":
        return Planned(request=http_request("GET", "/api/v1/sales/missing", token), status=404)
    if kind == "no good token":
        return Planned(request=http_request("GET", path, chance.choice(tokens["bad"])), status=401)
    if kind == "unpaid":
        return Planned(request=http_request("GET", path, chance.choice(tokens["unpaid"])), status=402)
    return Planned(request=http_request("GET", path, token), status=200)


def growth(samples: Sequence[float]) -> float:
    """The lowest of the last third less that of the first. `nan` with fewer than six samples.

    A burst lifts some samples, and what was opened for it stays a few seconds; a leak lifts the lowest, too.
    """
    third = len(samples) // 3
    if third < 2:
        return float("nan")
    return min(samples[-third:]) - min(samples[:third])


def grown(samples: "dict[str, list[float]]") -> dict[str, float]:
    """What grew by more than is allowed, or could not be told, and by how much."""
    found = {name: growth(samples.get(name, [])) for name in ALLOWED}
    return {name: value for name, value in found.items() if not value <= ALLOWED[name]}


class LogWatch:
    """Reads the gateway's log from a pipe as it comes, so that minutes of it need no disk, and counts faults."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        self.faults: Counter[str] = Counter()
        self.first_fault = b""
        self.lines = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self.write)
        self._thread.join(5)

    def _watch(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := os.read(self._read, 1 << 20):
                whole, _, rest = (rest + data).rpartition(b"\n")
                self.lines += whole.count(b"\n") + bool(whole)
                self.look(whole)
        os.close(self._read)

    def look(self, lines: bytes) -> None:
        """Count the faults in whole lines."""
        for mark in FAULTS:
            if mark in lines:
                self.faults[mark.decode()] += lines.count(mark)
                self.first_fault = self.first_fault or lines[lines.index(mark) :][:2000]


@dataclass(slots=True)
class Samples:
    """What is looked at each second: from outside, and what the process tells."""

    pid: int
    inside: Path
    series: dict[str, list[float]] = field(default_factory=lambda: {"rss": [], "files": []})
    _told: int = 0

    async def take(self) -> None:
        """Look until cancelled."""
        self._told = len(self._lines())
        while True:
            await asyncio.sleep(SAMPLE_S)
            with contextlib.suppress(OSError, ValueError):  # it has ended, and its requests fail
                self.series["rss"].append(rss_bytes(self.pid))
                self.series["files"].append(open_files(self.pid))

    def read_inside(self) -> None:
        """Add what the process has told since `take` began."""
        told = [loads(line) for line in self._lines()[self._told :]]
        for name in ("timers", "blocks"):
            self.series[name] = [line[name] for line in told]

    def _lines(self) -> list[str]:
        return self.inside.read_text(encoding="ascii").splitlines() if self.inside.exists() else []


def endless(planned: Sequence[Planned]) -> Iterator[Planned]:
    """The mix, again and again."""
    while True:
        yield from planned


async def soak(load: Load, planned: Sequence[Planned], *, warm_s: float, seconds: float, samples: Samples) -> Tally:
    """Warm up, then load and look; gives what became of the requests, those of the warm-up if they went wrong."""
    warm = await paced_load(load, endless(planned), seconds=warm_s)
    looking = asyncio.ensure_future(samples.take())
    try:
        tally = await paced_load(load, endless(planned), seconds=seconds)
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
    tally.wrong.update({f"in the warm-up: {what}": number for what, number in warm.wrong.items()})
    return tally


def report(tally: Tally, samples: Samples, log: LogWatch, wrong: Sequence[str] = ()) -> dict[str, Any]:
    """Print what was found, what had been `wrong` before included; gives it as data."""
    series = samples.series
    answered = sum(tally.answers.values())
    shown = ", ".join(f"{status}: {number}" for status, number in sorted(tally.answers.items()))
    print(f"{answered} answers, {answered / tally.seconds:.0f} a second ({shown})")
    print(f"latency p50 {tally.percentile(0.5):.2f}, p99 {tally.percentile(0.99):.2f} ms; ", end="")
    print(f"the load was late by {tally.latest_tick_ms:.0f} ms at worst; {log.lines} log lines")
    for name, values in series.items():
        thirds = f"{growth(values):+.0f} from the first third to the last"
        print(f"{name}: {values[0] if values else float('nan'):.0f} at first, {thirds}, allowed {ALLOWED[name]}")
    wrong = [*wrong, *(f"{number} x {what}" for what, number in tally.wrong.most_common(10))]
    wrong += [] if answered else ["not one request was answered"]
    wrong += [] if log.lines else ["not one line of the log was read"]
    wrong += [f"{number} x {what} in the log" for what, number in log.faults.items()]
    wrong += [f"{name} grew by {value:.0f}" for name, value in grown(series).items()]
    for what in wrong:
        print(what)
    if log.first_fault:
        print(log.first_fault.decode(errors="replace"))
    return {"answers": answered, "p50": tally.percentile(0.5), "p99": tally.percentile(0.99), "wrong": wrong, **series}


def capacity(
    port: int, pid: int, rig: Rig, planned: Sequence[Planned], seconds: float
) -> tuple[float, float, list[str]]:
    """Requests a second as fast as they are answered, the share of its core that the gateway had, and what is wrong."""
    requests = wrk.write_requests(rig.folder / "mix", [it.request for it in planned])
    wrk.load(port, requests, connections=CONNECTIONS, seconds=2)
    began, before = time.monotonic(), sum(cpu_seconds(pid))
    run = wrk.load(port, requests, connections=CONNECTIONS, seconds=seconds)
    busy = (sum(cpu_seconds(pid)) - before) / (time.monotonic() - began)
    print(f"capacity: {run['rps']:.0f} requests/s, the gateway on its core for {busy:.0%} of the time", flush=True)
    refused = sum(it.status >= 400 for it in planned) / len(planned)
    return run["rps"], busy, list(not_a_capacity(run, busy, refused))


def not_a_capacity(run: Mapping[str, float], busy: float, refused: float) -> Iterator[str]:
    """Why a run does not tell what the gateway can do, if so; `refused` is the right share of answers from 400 on."""
    if busy < BUSY:
        yield f"capacity: the gateway had {busy:.0%} of its core: something else had it, or the load was too slow"
    if run["broken"]:
        yield f"capacity: {run['broken']:.0f} requests broken"
    if abs(run["not_2xx"] - refused * run["requests"]) > UNEVEN:
        yield f"capacity: {run['not_2xx']:.0f} of {run['requests']:.0f} answers from 400 on, {refused:.1%} are right"


def main() -> int:
    """All of it; 0 if nothing went wrong and nothing grew."""
    parser = build_arguments(__doc__)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--share", type=float, default=0.7)
    given = parser.parse_args()
    seconds = 60 * given.minutes if given.minutes else (12.0 if given.quick else 300.0)
    warm_s = 3.0 if given.quick else 30.0
    require("nginx", "wrk", "redis-server")
    build = of(given)
    about = machine() | {"build": build.name}
    with Rig() as rig, LogWatch() as log:
        rig.start_service()
        rig.start_redis()
        planned = mixture(rig.tokens, rig.issuer, random.Random(1))
        inside = rig.folder / "inside"
        with rig.gateway(build, output=log.write, inside={"INSIDE_FILE": str(inside)}) as (pid, port):
            most, busy, wrong = capacity(port, pid, rig, planned, 2.0 if given.quick else 10.0)
            rate = given.share * most
            load = Load(port=port, rate=rate, connections=CONNECTIONS)
            samples = Samples(pid, inside)
            began, own, waited = time.monotonic(), time.process_time(), waited_seconds(pid)
            tally = asyncio.run(soak(load, planned, warm_s=warm_s, seconds=seconds, samples=samples))
            took = time.monotonic() - began
            load_busy, waiting = (time.process_time() - own) / took, (waited_seconds(pid) - waited) / took
            samples.read_inside()
    print(f"{rate:.0f} requests/s for {seconds:.0f} s; the load was on its core for {load_busy:.0%} of the time; for")
    print(f"{waiting:.0%} of it the gateway could have run and other processes had its core")
    found = report(tally, samples, log, wrong)
    mib = growth(samples.series["rss"]) / 1024 / 1024
    promise = f"<= {ALLOWED['rss'] // 1024 // 1024} MiB, {seconds / 60:g} min at {given.share:.0%} without an error"
    told = verdict("soak_growth", mib, "MiB", promise, not found["wrong"])
    figures = {"capacity": most, "rate": rate, "seconds": seconds}
    shares = {"gateway_busy": busy, "load_busy": load_busy, "waiting": waiting}
    save("soak", folder_of(parser, given), {"machine": about, "verdicts": [told], **figures, **shares, **found})
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    raise SystemExit(main())
