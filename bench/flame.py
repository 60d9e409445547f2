"""Where the gateway's time goes: sampled under full load, as a table by part and as a picture.

    python bench/flame.py [--seconds 20] [--quick]

The load is that of `compare.py`. The kernel tells the time on the processor for each request, before anything looks;
it is shared among the parts as samples of the stack tell. The process takes these itself, by its own time on the
processor (see `inside.py`). Compiled functions are no part of such stacks, so what is looked at is the plain build. The
figures are left in `bench/results/flame.json`, from which `page.py` makes table and picture. Prints the cost of one
request; exits with 1 if answers were errors, with or without sampling, if the load failed, or if nothing was sampled.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import wrk
from builds import plain
from flamegraph import condensed, costs, parse
from procfs import cpu_seconds
from rig import Rig, Unusable, arguments, folder_of, machine, require, sales_requests, save, verdict, wait_for

CONNECTIONS: Final = 50
WRITTEN_S: Final = 10.0


def sample(pid: int, seconds: float, stacks: Path) -> str:
    """What the process tells of so many seconds. Raises `Unusable` if it does not."""
    os.kill(pid, signal.SIGUSR2)
    time.sleep(seconds)
    os.kill(pid, signal.SIGUSR2)
    if not wait_for(stacks.exists, WRITTEN_S):
        raise Unusable("the gateway wrote no stacks")
    return stacks.read_text(encoding="utf-8")


def amiss(runs: Sequence[Mapping[str, float]], samples: int) -> list[str]:
    """Why the figures are worth nothing: errors in any of the runs, or no samples."""
    errors = sum(run["broken"] + run["not_2xx"] for run in runs)
    found = [f"{errors:.0f} answers were errors"] if errors else []
    return found if samples else [*found, "no sample was taken"]


def main() -> int:
    """All of it; 0 unless answers were errors, or the sampled load did nothing."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    seconds = given.seconds or (4.0 if given.quick else 20.0)
    require("nginx", "wrk", "redis-server")
    about = machine() | {"build": "plain"}
    with Rig() as rig:
        rig.start_service()
        rig.start_redis()
        requests = wrk.write_requests(rig.folder / "requests", sales_requests(rig.tokens))
        with rig.gateway(plain(), inside={"STACKS_FILE": str(rig.folder / "stacks")}) as (pid, port):
            wrk.load(port, requests, connections=CONNECTIONS, seconds=2)
            before = cpu_seconds(pid)
            run = wrk.load(port, requests, connections=CONNECTIONS, seconds=seconds / 2)
            spent = [now - then for now, then in zip(cpu_seconds(pid), before, strict=True)]
            user, system = (1e6 * each / run["requests"] for each in spent)
            with ThreadPoolExecutor(1) as pool:
                loading = pool.submit(wrk.load, port, requests, connections=CONNECTIONS, seconds=seconds + 2)
                time.sleep(0.5)
                raw = sample(pid, seconds, rig.folder / "stacks")
                under = loading.result()
    stacks = parse(raw)
    parts = {part: share * (user + system) for part, share in costs(stacks).items()}
    for part, micros in parts.items():
        print(f"{part:40} {micros:6.1f} us")
    print(f"{'all of it':40} {user + system:6.1f} us, of which {system:.1f} us in the kernel")
    wrong = amiss([run, under], sum(stacks.values()))
    for what in wrong:
        print(what)
    told = verdict("request_cost", user + system, "us", "no errors", not wrong)
    kept = [[[[frame.name, frame.file] for frame in condensed(stack)], count] for stack, count in stacks.items()]
    figures = {"user_us": user, "system_us": system, "rps": run["rps"], "parts": parts, "stacks": kept}
    save("flame", folder_of(parser, given), {"machine": about, "verdicts": [told], **figures})
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
