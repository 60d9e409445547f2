"""Run the gateway and its peers side by side, interleaved, and print throughput and latency.

    python bench/compare.py [--rounds 7] [--seconds 5] [--systems bakerygw,plain,haproxy,aiohttp,seed] [--quick]

One core for the system under test, the other for nginx (the service: a fixed 213-byte JSON answer), Redis and wrk.
Needs nginx, wrk, redis-server and haproxy; the Python peers need what `bench/requirements.txt` lists, in the Python
that PEERS_PYTHON names (this one, if it names none). Every system verifies the same RS256 tokens of 200 users and
limits each user, the limit set out of reach. `bakerygw` is the compiled build, which `make compiled` makes; `plain` is
the same, interpreted. The slow peers, aiohttp and seed, take part in every third round only. Each round gives one pair
with bakerygw for each system, and what counts is the median of the pairs' ratios. The raw figures are left in
`bench/results/compare.json`, from which `page.py` makes the table and the picture. "disturbed" is the share of the time
in which the system could have run and other processes had its core: a few per cent are the machine's own, with more the
figures are worth little. A run of only some systems leaves its figures apart, in `compare.subset.json`, which `page.py`
does not read. Exits with 1 if a promise is broken, answers were errors or went missing, or the systems are such that no
promise was tested.
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import builds
import wrk
from procfs import waited_seconds
from rig import (
    ANSWER,
    HERE,
    LIMIT,
    Rig,
    Unusable,
    arguments,
    folder_of,
    free_port,
    machine,
    require,
    sales_requests,
    save,
    verdict,
)

SYSTEMS: Final = ("bakerygw", "plain", "haproxy", "aiohttp", "seed")
PROMISES: Final = {"haproxy": 0.8, "aiohttp": 5.5, "seed": 30.0}
"""How many times a peer's throughput bakerygw has at least."""
SLOW_EVERY: Final = 3
SLOW: Final = frozenset({"aiohttp", "seed"})
P99_PROMISE: Final = 1.5
"""Its p99 is at most so many times HAProxy's."""

IMPORTED: Final = {
    "seed": "fastapi, httpx, jwt, prometheus_client, redis, structlog, uvicorn, uvloop",
    "aiohttp": "aiohttp, jwt, prometheus_client, redis, structlog, uvloop",
}
"""What the Python peers need."""

Runs = dict[str, list[dict[str, float]]]


def order(systems: Sequence[str], number: int) -> list[str]:
    """Who runs in round `number`, counted from 0: turned round every other time, so that drift hits no one always."""
    taking_part = [name for name in systems if name not in SLOW or number % SLOW_EVERY == 0]
    return taking_part[::-1] if number % 2 else taking_part


def ratios(runs: Runs, name: str, figure: str = "rps") -> list[float]:
    """bakerygw's `figure` by that of `name`, for each round in which both ran."""
    ours = {run["round"]: run[figure] for run in runs.get("bakerygw", [])}
    return [ours[run["round"]] / run[figure] for run in runs[name] if run["round"] in ours]


def summary(runs: Runs) -> dict[str, dict[str, float]]:
    """For each system the medians of its runs, and of the pairs' ratios: `ratio` of throughput, `p99_ratio`."""
    rows = {}
    for name, its in runs.items():
        medians = {figure: statistics.median(run[figure] for run in its) for figure in ("rps", *wrk.PERCENTILES)}
        pairs, p99 = ratios(runs, name), ratios(runs, name, "p99")
        rows[name] = {
            **medians,
            "rounds": len(its),
            "errors": sum(run["broken"] + run["not_2xx"] for run in its),
            "waiting": max(run["waiting"] for run in its),
            "ratio": statistics.median(pairs) if pairs else float("nan"),
            "ratio_low": min(pairs, default=float("nan")),
            "ratio_high": max(pairs, default=float("nan")),
            "p99_ratio": statistics.median(p99) if p99 else float("nan"),
        }
    return rows


def peer(rig: Rig, name: str, port: int) -> tuple[list[str], dict[str, str]]:
    """How to start one system on `port`, with its environment."""
    if name in ("bakerygw", "plain"):
        build = builds.compiled() if name == "bakerygw" else builds.plain()
        return build.command(), {**rig.gateway_settings(port), **build.environ}
    upstream = f"127.0.0.1:{rig.service_port}"
    environ = {"RATE_LIMIT_REQUESTS": LIMIT}
    if name == "haproxy":
        environ |= {"PEER_PORT": str(port), "UPSTREAM_ADDR": upstream}
        environ["JWT_PUBLIC_KEY_FILE"] = str(rig.folder / "key.pem")
        return ["haproxy", "-db", "-f", str(HERE / "peers" / "haproxy.cfg")], environ
    environ |= {
        "JWT_PUBLIC_KEY": rig.issuer.public_pem,
        "LOG_FILE": str(rig.folder / f"{name}.requests.log"),
        "UPSTREAM": f"http://{upstream}",
        "REDIS_URL": f"redis://127.0.0.1:{rig.redis_port}/0",
    }
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    if name == "seed":
        app = ["seed_stack:app", "--app-dir", str(HERE / "peers"), "--port", str(port), "--no-access-log"]
        return [python, "-m", "uvicorn", *app], environ
    return [python, str(HERE / "peers" / f"{name}_stack.py"), str(port)], environ


def measure(rig: Rig, options: argparse.Namespace) -> Runs:
    """All rounds; every system is started anew in each, so that none profits from its age."""
    requests = wrk.write_requests(rig.folder / "requests", sales_requests(rig.tokens))
    runs: Runs = {name: [] for name in options.systems}
    for number in range(options.rounds):
        for name in order(options.systems, number):
            port = free_port()
            command, environ = peer(rig, name, port)
            with rig.running(name, command, environ, port) as pid:
                check(rig, port, name)
                wrk.load(port, requests, connections=options.connections, seconds=options.warm_up)
                waited = waited_seconds(pid)
                run = wrk.load(port, requests, connections=options.connections, seconds=options.seconds)
                waiting = (waited_seconds(pid) - waited) / run["seconds"]
            (rig.folder / f"{name}.log").unlink(missing_ok=True)
            runs[name].append({"round": number, "waiting": waiting, **run})
            shown = " ".join(f"{figure} {run[figure]:9.2f}" for figure in ("rps", "p50", "p99", "p99.9"))
            errors = run["broken"] + run["not_2xx"]
            print(f"round {number + 1} {name:9} {shown} errors {errors:g} disturbed {waiting:.0%}", flush=True)
    return runs


def require_peers(systems: Sequence[str]) -> None:
    """Raise `Unusable`, with what to do, if the Python of the peers lacks what they import."""
    modules = ", ".join(IMPORTED[name] for name in systems if name in IMPORTED)
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    if modules and subprocess.run([python, "-c", f"import {modules}"], capture_output=True, check=False).returncode:
        raise Unusable(
            f"{python} cannot import all of: {modules}\n`make bench` makes an environment for the peers; or: "
            "python -m venv peers && peers/bin/pip install -r bench/requirements.txt; "
            "export PEERS_PYTHON=$PWD/peers/bin/python"
        )


def check(rig: Rig, port: int, name: str) -> None:
    """Raise `Unusable` unless a request passes and brings the service's answer, and one without a token does not."""
    for token, expected in ((rig.tokens[0], 200), (None, 401)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", "/api/v1/sales/1", headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        if answer.status != expected or (expected == 200 and body != ANSWER):
            raise Unusable(f"{name} answers {answer.status} where {expected} is right")


def versions(systems: Sequence[str]) -> dict[str, str]:
    """The version of each system that is no file of this repository."""
    found = {"bakerygw": sys.version.split()[0]}
    if "haproxy" in systems:
        shown = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=False).stdout.split()
        found["haproxy"] = shown[2].partition("-")[0] if len(shown) > 2 else "?"
    return found


def report(rows: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Print a line for each system, and the verdicts; none is kept of a pair with errors."""
    for name, row in rows.items():
        print(
            f"{name:9} median {row['rps']:8.0f} requests/s, p50 {row['p50']:7.2f} ms, p99 {row['p99']:7.2f} ms; "
            f"bakerygw has {row['ratio']:.2f} x its throughput ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        )
    verdicts = []
    paired = [name for name in reversed(PROMISES) if name in rows and "bakerygw" in rows]
    right = {name: not (rows[name]["errors"] or rows["bakerygw"]["errors"]) for name in paired}
    if "haproxy" in paired:
        value = rows["haproxy"]["p99_ratio"]
        kept = value <= P99_PROMISE and right["haproxy"]
        verdicts.append(verdict("p99_to_haproxy", value, "x", f"<= {P99_PROMISE:g}", kept))
    for name in paired:
        value, promise = rows[name]["ratio"], PROMISES[name]
        kept = value >= promise and right[name]
        verdicts.append(verdict(f"throughput_to_{name}", value, "x", f">= {promise:g}", kept))
    return verdicts


def result_name(systems: Sequence[str]) -> str:
    """What the figures of a run are kept as; says so if they are not those of all systems."""
    left_out = [name for name in SYSTEMS if name not in systems]
    if not left_out:
        return "compare"
    print(f"without {', '.join(left_out)}: these figures are left in compare.subset.json, and not for the page")
    return "compare.subset"


def all_kept(verdicts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether promises were tested and every one of them is kept; says so if none was."""
    if not verdicts:
        print("no promise was tested: that takes bakerygw and a peer")
    return bool(verdicts) and all(it["kept"] for it in verdicts)


def asked(words: Sequence[str] | None = None) -> tuple[Path, argparse.Namespace]:
    """Where the figures go, and the options; of the command line unless `words` are given."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    options = parser.parse_args(words)
    if options.quick:
        parser.set_defaults(rounds=1, seconds=4.0, warm_up=1.0)
        options = parser.parse_args(words)
    return folder_of(parser, options), options


def main() -> int:
    """All of it; 0 if every promise is kept and nothing went wrong."""
    folder, options = asked()
    unknown = [name for name in options.systems if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    require("nginx", "wrk", "redis-server", *(["haproxy"] if "haproxy" in options.systems else []))
    require_peers(options.systems)
    if "bakerygw" in options.systems:
        builds.compiled()
    about = machine()
    with Rig() as rig:
        rig.start_service()
        rig.start_redis()
        runs = measure(rig, options)
    rows = summary(runs)
    wrong = {name: row["errors"] for name, row in rows.items() if row["errors"]}
    for name, errors in wrong.items():
        print(f"{name}: {errors:.0f} answers were errors, its figures are worth nothing")
    verdicts = report(rows)
    kept = {name: getattr(options, name) for name in ("rounds", "seconds", "warm_up", "connections")}
    told = {"machine": about, "versions": versions(options.systems), "options": kept, "verdicts": verdicts}
    save(result_name(options.systems), folder, {**told, "systems": rows, "runs": runs})
    return int(bool(wrong) or not all_kept(verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
