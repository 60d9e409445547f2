"""Every measurement in turn, then the page; what `make bench` runs.

    python bench/everything.py [--quick] [--without soak,flame]

A whole run takes about a quarter of an hour and writes `docs/performance.md`; a quick one takes about a minute, writes
nothing there, and its figures say only that all of it works. Exits with 1 if any script does.

Scripts ended by a signal tidy up after themselves; what SIGKILL left in the temporary folder (`bakerygw-bench-*`) is
deleted by a script that starts an hour later or more.
"""

import subprocess
import sys
from contextlib import suppress
from typing import Final

import builds
from rig import HERE, RESULTS, arguments, require

SCRIPTS: Final = (
    "compare",
    "one_connection",
    "idle",
    "slow_reader",
    "upload",
    "websocket",
    "token_cache",
    "subscription",
    "streams",
    "flame",
    "soak",
)
STOP_S: Final = 20.0


def run(script: str, quick: bool) -> int:
    """One script, to its end; its exit status. Should this process be ended, the script ends itself."""
    print(f"=== {script}", flush=True)
    command = [sys.executable, str(HERE / f"{script}.py"), *(["--quick"] if quick else [])]
    with subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command]) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the script had the same Ctrl-C, and is ending what it started
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.terminate()
            raise


def main() -> int:
    """All of them, those that fail included."""
    parser = arguments(__doc__)
    parser.add_argument("--without", type=lambda text: text.split(","), default=[])
    given = parser.parse_args()
    folder = RESULTS / "quick" if given.quick else RESULTS
    for script in SCRIPTS:  # what fails this time must not be told with the figures of last time
        if script not in given.without:
            (folder / f"{script}.json").unlink(missing_ok=True)
    require("nginx", "wrk", "haproxy", "redis-server")
    builds.compiled()  # which most scripts measure: if there is none, said at once
    failed = [script for script in SCRIPTS if script not in given.without and run(script, given.quick)]
    failed += ["page"] if run("page", given.quick) else []
    print(f"=== promises broken, or failed: {', '.join(failed)}" if failed else "=== every promise kept")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
