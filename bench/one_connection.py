"""What the gateway adds to a request of a single client: the median over asking the service (nginx) directly.

    python bench/one_connection.py [--pairs 7] [--seconds 3] [--quick] [--plain]

One connection, one request at a time; pairs of runs, direct and through the gateway, in turn. The figure is the median
of the pairs' differences between median latencies. Exits with 1 above 0.6 ms, or if a request was not answered as it
should be; one without an answer for half of a run counts as such.
"""

import statistics
from typing import Final

import wrk
from builds import build_arguments, of
from rig import Rig, folder_of, machine, require, sales_requests, save, verdict

PROMISE_MS: Final = 0.6


def main() -> int:
    """All of it; 0 if the promise is kept."""
    parser = build_arguments(__doc__)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    pairs = given.pairs or (3 if given.quick else 7)
    seconds = given.seconds or (1.0 if given.quick else 3.0)
    require("nginx", "wrk", "redis-server")
    build = of(given)
    about = machine() | {"build": build.name}
    runs = []
    with Rig() as rig:
        rig.start_service()
        rig.start_redis()
        requests = wrk.write_requests(rig.folder / "requests", sales_requests(rig.tokens))
        with rig.gateway(build) as (_, port):
            wrk.load(port, requests, connections=1, seconds=1)
            for number in range(pairs):
                direct = wrk.load(rig.service_port, requests, connections=1, seconds=seconds)
                through = wrk.load(port, requests, connections=1, seconds=seconds)
                runs.append({"direct": direct, "through": through})
                shown = f"direct {direct['p50']:.3f} ms, through the gateway {through['p50']:.3f} ms"
                print(f"pair {number + 1}: {shown}, p99 {through['p99']:.3f} ms", flush=True)
    errors = sum(run["broken"] + run["not_2xx"] for pair in runs for run in pair.values())
    if errors:
        print(f"{errors:g} answers were errors: the figure is worth nothing")
    added = statistics.median(pair["through"]["p50"] - pair["direct"]["p50"] for pair in runs)
    kept = added <= PROMISE_MS and not errors
    told = verdict("one_connection_added", added, "ms", f"<= {PROMISE_MS:g} ms", kept)
    save("one_connection", folder_of(parser, given), {"machine": about, "verdicts": [told], "runs": runs})
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
