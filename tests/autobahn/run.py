"""The Autobahn test suite through the bridge, both ways: its client against an echo service, its server against an echo
client, each with a real gateway between.

    python tests/autobahn/run.py [CASE…]

The suite needs CPython 2.7: `AUTOBAHN_PYTHON`, else one that a version manager holds or that is on PATH; it is
installed beside the caches of this user. Without it this says so and exits with 2; with 1 if a case fails, closes
uncleanly or by a wrong code. What the suite calls informational or not strict is listed.
"""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402
from websockets.sync.server import ServerConnection, serve  # noqa: E402

from tests.e2e.harness import Gateway, free_ports  # noqa: E402
from tests.e2e.stage import NO_LIMITS  # noqa: E402
from tests.minting import Issuer  # noqa: E402

SUITE = "autobahntestsuite==25.10.1"
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
PATH = "/api/v1/training/ws"
AGENT = "bakerygw"
AT_MOST_S = 240.0
RUN = (
    "import site, sys; site.addsitedir({lib!r}); sys.argv[0] = 'wstest'; "
    "from autobahntestsuite.wstest import run; run()"
)
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}


class Missing(Exception):
    """The suite can't run on this machine."""


def python27() -> str:
    """An interpreter of CPython 2.7 that starts. Raises `Missing`."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = os.environ.get("AUTOBAHN_PYTHON")
    held = sorted(map(str, versions.glob("2.7.*/bin/python2.7")))
    for candidate in filter(None, [named, *held, shutil.which("python2.7")]):
        with contextlib.suppress(OSError):
            asked = subprocess.run([candidate, "-c", "import pip"], capture_output=True, check=False)
            if asked.returncode == 0:
                return candidate
    raise Missing("no CPython 2.7 with pip here; name one in AUTOBAHN_PYTHON")


def suite_command(python: str) -> list[str]:
    """The command line of the suite, installed if it is not. Raises `Missing`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bakerygw" / SUITE.replace("==", "-")
    if not (cache / "complete").exists():
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        print(f"installing {SUITE} into {cache}")
        options = ["--quiet", "--disable-pip-version-check", "--target", str(cache)]
        installed = subprocess.run([python, "-m", "pip", "install", *options, SUITE], check=False, timeout=AT_MOST_S)
        if installed.returncode:
            raise Missing(f"{SUITE} could not be installed")
        (cache / "complete").touch()
    return [python, "-c", RUN.format(lib=str(cache))]


class Relay:
    """A TCP relay that rewrites the head of each connection, and passes all else as it comes."""

    def __init__(self, port: int, rewrite: Callable[[bytes], bytes]) -> None:
        self._to, self._rewrite = port, rewrite
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._to)) as server:
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            server.sendall(self._rewrite(head))
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


@contextmanager
def gateway(service_port: int) -> Iterator[tuple[Gateway, str]]:
    """A gateway before this service, and a token."""
    issuer = Issuer()
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "TRAINING_SERVICE_URL": f"http://127.0.0.1:{service_port}",
        "WS_MAX_PER_USER": "1000",
        "SSE_NEW_PER_SECOND": "10000",  # the quick cases are over in a moment
        "WS_FRAMES_PER_SECOND": "0",
        "HEALTH_CHECK_INTERVAL": "3600",
        **NO_LIMITS,
    }
    with contextlib.redirect_stdout(io.StringIO()), Gateway(settings) as running:  # its log, in the end
        yield running, issuer.token(exp=int(time.time()) + 3600)


def echo(connection: ServerConnection) -> None:
    """What the service says."""
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            connection.send(message)


def suite_as_client(command: Sequence[str], cases: list[str], folder: Path) -> Path:
    """Suite -> gateway -> echo service. Returns where the report is."""
    with ExitStack() as running:
        service = running.enter_context(
            serve(echo, "127.0.0.1", 0, max_size=None, compression=None, ping_interval=None)
        )
        threading.Thread(target=service.serve_forever, daemon=True).start()
        here, token = running.enter_context(gateway(service.socket.getsockname()[1]))
        signed_in = b"\r\nAuthorization: Bearer %b\r\n\r\n" % token.encode()
        relay = Relay(here.port, lambda head: head.replace(b"\r\n\r\n", signed_in, 1))
        report = folder / "client"
        servers = [{"agent": AGENT, "url": f"ws://127.0.0.1:{relay.port}{PATH}", "options": {"version": 18}}]
        spec = _written(folder / "client.json", servers=servers, outdir=str(report), cases=cases)
        subprocess.run([*command, "-m", "fuzzingclient", "-s", str(spec)], check=True, timeout=AT_MOST_S, cwd=folder,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    return report


def suite_as_server(command: Sequence[str], cases: list[str], folder: Path) -> Path:
    """Echo client -> gateway -> suite, whose paths stand in the query `do`. Returns where the report is."""
    (port,) = free_ports(1)
    report = folder / "server"
    spec = _written(folder / "server.json", url=f"ws://127.0.0.1:{port}", outdir=str(report), cases=cases)
    options = ["-m", "fuzzingserver", "-s", str(spec), "--webport", "0"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, *options], cwd=folder, **quiet)
    try:
        _until_open(port)
        relay = Relay(port, lambda head: _to_suite(head, port))
        with gateway(relay.port) as (here, token):
            base = f"ws://127.0.0.1:{here.port}{PATH}"
            deadline = time.monotonic() + AT_MOST_S
            count = _ask(f"{base}?do=getCaseCount", token)
            for case in range(1, int(count) + 1):
                if time.monotonic() > deadline:
                    raise TimeoutError("the suite takes too long")
                _ask(f"{base}?do=runCase&case={case}&agent={AGENT}", token)
            _ask(f"{base}?do=updateReports&agent={AGENT}", token)
    finally:
        process.terminate()
        process.wait(10)
    return report


def _to_suite(head: bytes, port: int) -> bytes:
    """The head with the suite's own path and authority, on both of which it insists."""
    head = re.sub(rb"\r\nHost: \S+", b"\r\nHost: 127.0.0.1:%d" % port, head, count=1)
    return re.sub(rb"^GET \S+\?do=(\w+)&?(\S*)", rb"GET /\1?\2", head, count=1)


def _ask(url: str, token: str) -> str:
    """Echo whatever comes until it closes; the last message."""
    last = ""
    with contextlib.suppress(ConnectionClosed):
        headers = {"Authorization": f"Bearer {token}"}
        with connect(url, additional_headers=headers, max_size=None, compression=None, ping_interval=None) as client:
            for message in client:
                last = str(message)
                client.send(message)
    return last


def _until_open(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError("the suite does not listen")


def _written(path: Path, **spec: Any) -> Path:
    path.write_text(json.dumps({"exclude-cases": [], "exclude-agent-cases": {}, **spec}))
    return path


def judged(way: str, report: Path) -> int:
    """Print what there is to say; how many cases are not good."""
    cases: dict[str, dict[str, Any]] = json.loads((report / "index.json").read_text())[AGENT]
    results = Counter(case["behavior"] for case in cases.values())
    print(f"{way}: {len(cases)} cases, " + ", ".join(f"{number} {name}" for name, number in results.most_common()))
    bad = 0
    for name, case in sorted(cases.items(), key=lambda item: [int(part) for part in item[0].split(".")]):
        both = {case["behavior"], case["behaviorClose"]}
        if both - {"OK"}:
            print(f"  {name}: {case['behavior']}, closing {case['behaviorClose']} (code {case['remoteCloseCode']})")
        bad += bool(both - GOOD)
    return bad or not cases


def main(cases: list[str]) -> int:
    """The exit status."""
    try:
        command = suite_command(python27())
    except Missing as missing:
        print(f"THE AUTOBAHN TEST SUITE DID NOT RUN: {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bakerygw-autobahn-") as folder:
        here = Path(folder)
        bad = judged("suite -> gateway -> echo", suite_as_client(command, cases, here))
        bad += judged("echo -> gateway -> suite", suite_as_server(command, cases, here))
    print(f"{bad} bad" if bad else "The Autobahn test suite passes both ways.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or CASES))
