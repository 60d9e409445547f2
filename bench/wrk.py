"""`wrk` as the load: requests in turn over a number of connections, as fast as they are answered."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rig import HERE

PERCENTILES: Final = ("p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9")
TIMEOUT: Final = "10s"
"""After which an answer counts as broken; slow systems take seconds when they are full."""
_MARK: Final = "wrk-result "


def write_requests(path: Path, requests: Sequence[bytes]) -> Path:
    """The file that `requests.lua` reads: each request after its length in bytes."""
    path.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in requests))
    return path


def parse(output: str) -> dict[str, float]:
    """What `requests.lua` printed: requests, seconds, not_2xx, broken, latencies in ms, and `rps`, requests a second.

    Raises `ValueError` if it is not there.
    """
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise ValueError(f"wrk told no result:\n{output[-1000:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix(_MARK))
    return {**found, "rps": found["requests"] / found["seconds"]}


def load(port: int, requests: Path, *, connections: int, seconds: float) -> dict[str, float]:
    """One run, on this process's core; gives what `parse` does."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        TIMEOUT,
        "-s",
        str(HERE / "requests.lua"),
    ]
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", *command, f"http://127.0.0.1:{port}"],
        env={**os.environ, "REQUESTS": str(requests)},
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
    )
    return parse(done.stdout)
