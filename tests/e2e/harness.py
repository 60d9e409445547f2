"""The gateway as a real process, seen from outside: `twistd -n bakerygw` in a folder of its own, on free ports.

The wire (`raw_request`), the recording service and its answers come along from here.
"""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Self

import httpx

from tests.e2e.recording import Answer, Recorded, RecordingUpstream, answer
from tests.e2e.wire import raw_request
from tests.patience import PATIENCE_S
from tests.ports import free_ports

__all__ = ["Answer", "Gateway", "Recorded", "RecordingUpstream", "answer", "free_ports", "raw_request", "run_twistd"]

REPOSITORY = Path(__file__).resolve().parents[2]
TWISTD = Path(sys.executable).with_name("twistd")
FAULTS = re.compile(r"Unhandled error|Traceback \(most recent call last\)")

Environment = Mapping[str, str | None]


def clean_environment(settings: Environment, home: Path) -> dict[str, str]:
    """A process environment with nothing of the caller's but where programs are; a setting of `None` is left out.

    A `PYTHONPATH` among the settings comes before the checkout's own.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    base = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    given = {name: value for name, value in settings.items() if value is not None}
    paths = [*filter(None, [given.pop("PYTHONPATH", None)]), *([] if is_installed() else [str(REPOSITORY)])]
    if paths:
        base["PYTHONPATH"] = os.pathsep.join(paths)
    return {**kept, **base, **given}


def is_installed(places: Sequence[str] | None = None, checkout: Path = REPOSITORY) -> bool:
    """Whether a gateway started elsewhere finds the package in one of these places, by default where this process does.

    What lies in the checkout itself does not count: a build leaves a `bakerygw.egg-info` there.
    """
    outside = [place for place in (sys.path if places is None else places) if Path(place).resolve() != checkout]
    return any(distributions(name="bakerygw", path=outside))


def twistd_command(args: Sequence[str], *, demo: bool = False, config: Path | None = None) -> list[str]:
    """The command line of the gateway."""
    options = ["--demo"] if demo else []
    options += ["--config", str(config)] if config is not None else []
    return [str(TWISTD), "-n", "--pidfile=", "bakerygw", *options, *args]


def run_twistd(
    *args: str, env: Environment | None = None, config: Path | None = None, timeout_s: float = 2 * PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run the gateway to its end, for `--check` and for starts that must fail; stderr goes to stdout.

    Raises `subprocess.TimeoutExpired` if it goes on.
    """
    with tempfile.TemporaryDirectory(prefix="bakerygw-") as folder:
        return subprocess.run(
            twistd_command(args, config=config),
            cwd=folder,
            env=clean_environment(env or {}, Path(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )


class Gateway:
    """One gateway process. As a context manager it is ready inside, and afterwards must have ended as it should.

    `env` adds to and replaces the settings (`None` removes one), on free ports of 127.0.0.1, without a wait before
    the drain, and with more patience for Redis than by default: few tests are about how fast it is. At the end the
    process gets SIGTERM and must exit 0, and its log must hold no unhandled error and no traceback, unless
    `expect_exit` (`None`: anything) and `allow_faults` say otherwise. `open_files` is the process's limit of them, soft
    and hard.
    """

    def __init__(
        self,
        env: Environment | None = None,
        *,
        demo: bool = False,
        config: Path | None = None,
        args: Sequence[str] = (),
        expect_exit: int | None = 0,
        allow_faults: bool = False,
        ready_s: float = 2 * PATIENCE_S,
        open_files: int | None = None,
    ) -> None:
        public, admin = free_ports(2)
        settings: dict[str, str | None] = {
            "HOST": "127.0.0.1",
            "PORT": str(public),
            "ADMIN_PORT": str(admin),
            "ADMIN_TOKEN": secrets.token_urlsafe(24),
            "DRAIN_GRACE_SECONDS": "0",
            "DRAIN_TIMEOUT_SECONDS": "5",
            "REDIS_TIMEOUT_MS": "1000",
            **(env or {}),
        }
        self.port, self.admin_port = int(settings["PORT"] or 8000), int(settings["ADMIN_PORT"] or 9000)
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.admin_token = settings["ADMIN_TOKEN"] or ""
        self.folder = Path(tempfile.mkdtemp(prefix="bakerygw-"))
        self._env = clean_environment(settings, self.folder)
        self._command = twistd_command(args, demo=demo, config=config)
        if open_files is not None:
            self._command = ["sh", "-c", f'ulimit -n {open_files}; exec "$0" "$@"', *self._command]
        self._expect_exit, self._allow_faults, self._ready_s = expect_exit, allow_faults, ready_s
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        """The running or ended process. RuntimeError before `start`."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """All that it has printed so far, standard error included."""
        with self._arrived:
            return "".join(self._lines)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log events so far; printed lines that are no JSON objects are left out."""
        return [event for line in self.output.splitlines() if (event := _parsed(line)) is not None]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log events of this name, so far."""
        return [event for event in self.log if event.get("event") == name]

    def wait_for_event(
        self, name: str, suits: Callable[[dict[str, Any]], bool] = lambda _: True, timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """The first log event of this name that suits. Raises `TimeoutError` with the log if none comes."""
        deadline, looked_at = time.monotonic() + timeout_s, 0
        with self._arrived:  # all the while, but while it waits: a line between look and wait would wake nobody
            while True:
                fresh = self._lines[looked_at:]
                looked_at += len(fresh)
                found = next((it for it in map(_parsed, fresh) if it and it.get("event") == name and suits(it)), None)
                if found is not None:
                    return found
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"no {name} in\n{''.join(self._lines)}")
                self._arrived.wait(left_s)

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        """An HTTP client of the public port, with this bearer token; close it, or use it as a context manager."""
        return _client(self.base_url, token, options)

    def admin(self, **options: Any) -> httpx.Client:
        """An HTTP client of the admin port, with its token; close it, or use it as a context manager."""
        return _client(self.admin_url, self.admin_token, options)

    def raw(self, data: bytes | Sequence[bytes], timeout_s: float = PATIENCE_S, *, answers: int | None = 1) -> bytes:
        """`raw_request` to the public port."""
        return raw_request("127.0.0.1", self.port, data, timeout_s, answers=answers)

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, unless told otherwise, wait until it is ready. AssertionError with its log if it is not.

        RuntimeError if it runs already.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("already started")
        self._process = subprocess.Popen(
            self._command,
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if wait:
            self.wait_until_ready(self._ready_s)
        return self

    def wait_until_ready(self, timeout_s: float = 2 * PATIENCE_S) -> None:
        """Until `/ready` of the admin port is 200. AssertionError with the log if it is not in time."""
        deadline = time.monotonic() + timeout_s
        while self.status_of("/ready") != 200:
            if self.process.poll() is not None:
                self.kill()
                raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.output}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the gateway is not ready after {timeout_s} s:\n{self.output}")
            time.sleep(0.02)

    def status_of(self, path: str) -> int | None:
        """The status that the admin port answers to a GET without token; `None` if nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The return code, once it has ended and all its output is read. Killed, with an AssertionError, if late."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the gateway did not end within {timeout_s} s:\n{self.output}") from None
        if self._reader is not None:
            self._reader.join(PATIENCE_S)
        return code

    def terminate(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM; the return code when it has ended."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it at once. Its return code is not looked at any more."""
        if self.process.poll() is None:
            self._expect_exit = None
            self.process.kill()
        self.wait()

    def rss(self) -> int:
        """Bytes of memory that the process holds resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def faults(self) -> list[str]:
        """Lines of the output that no gateway should print: unhandled errors, tracebacks, critical events."""
        return [line for line in self.output.splitlines() if FAULTS.search(line) or _is_fault(_parsed(line))]

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._clean_up()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                self.kill()
                return
            code = self.terminate()
            assert self._expect_exit in (None, code), f"exit status {code}:\n{self.output}"
            assert self._allow_faults or not self.faults(), f"faults in the log: {self.faults()}"
        finally:
            print(f"--- output of the gateway\n{self.output}")  # pytest shows it where a test fails
            self._clean_up()

    def _clean_up(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with self._arrived:
                    self._lines.append(line)
                    self._arrived.notify_all()


def _client(base_url: str, token: str | None, options: dict[str, Any]) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(
        base_url=base_url,
        trust_env=False,
        **{"timeout": PATIENCE_S, **options, "headers": {**headers, **options.get("headers", {})}},
    )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _is_fault(event: dict[str, Any] | None) -> bool:
    return event is not None and (event.get("level") == "critical" or "exception" in event)
