"""`wrk` as the load: requests in turn over a number of connections, as fast as they are answered."""

import json
import math
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sockets
from rig import HERE, Unusable

PERCENTILES: Final = ("p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9")
PATIENCE_S: Final = 10.0
"""After which an answer counts as broken in a long run; slow systems take seconds when they are full."""
BEFORE_END_S: Final = 0.15
"""When it is looked for requests without an answer: wrk itself forgets those at its end, and tells of none."""
_MARK: Final = "wrk-result "


def write_requests(path: Path, requests: Sequence[bytes]) -> Path:
    """The file that `requests.lua` reads: each request after its length in bytes."""
    path.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in requests))
    return path


def patience(seconds: float) -> float:
    """Seconds after which an answer counts as broken, in a run of `seconds`: half of it, and `PATIENCE_S` at most."""
    return min(PATIENCE_S, seconds / 2)


def parse(output: str, hung: int = 0) -> dict[str, float]:
    """What `requests.lua` printed: requests, seconds, not_2xx, broken, latencies in ms, and `rps`, requests a second.

    `hung` requests, which had no answer at the end, are broken, too. Raises `ValueError` if the result is not there, or
    if not one request was answered.
    """
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise ValueError(f"wrk told no result:\n{output[-1000:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix(_MARK))
    if not found["requests"]:
        raise ValueError("not one request of wrk was answered")
    return {**found, "broken": found["broken"] + hung, "rps": found["requests"] / found["seconds"]}


def load(port: int, requests: Path, *, connections: int, seconds: float) -> dict[str, float]:
    """One run, on this process's core; gives what `parse` does. Lasts whole seconds, as wrk knows no others.

    Raises `ValueError` if wrk fails, or nothing was answered.
    """
    seconds = math.ceil(seconds)
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    wrk += ["--timeout", f"{math.ceil(patience(seconds))}s", "-s", str(HERE / "requests.lua")]
    command = ["setpriv", "--pdeathsig", "KILL", *wrk, f"http://127.0.0.1:{port}"]
    environ = {**os.environ, "REQUESTS": str(requests)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(seconds - BEFORE_END_S)
            hung = _hung(process.pid, port, patience(seconds) - BEFORE_END_S)
            output, complaint = process.communicate(timeout=30)
        finally:
            process.kill()
    if process.returncode:
        raise ValueError(f"wrk ended with {process.returncode}:\n{complaint[-1000:]}")
    return parse(output, hung)


def _hung(pid: int, port: int, longer_than_s: float) -> int:
    try:
        return sockets.silent(pid, port, longer_than_s)
    except OSError as error:
        raise Unusable(f"requests that hang cannot be told from others: {error}") from error
