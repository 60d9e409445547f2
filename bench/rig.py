"""What every script here needs: cores, processes that end with it, tokens, a service, the gateway, figures, verdicts.

One core for the system under test, another for everything else: load, service (nginx, or raw sockets in the script
itself) and Redis. Everything listens on loopback, on ports that are free.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from folders import temporary_folder

if TYPE_CHECKING:
    from builds import Build

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
RESULTS: Final = HERE / "results"

USERS: Final = 200
LIMIT: Final = "1000000"
"""Requests in a minute: out of reach, so that the limit is checked and never met."""
ANSWER: Final = json.dumps({"id": 1, "product": "Pain au levain", "note": "x" * 164})

ALWAYS: Final = ("setpriv", "taskset")
"""Programs that start every other."""
PACKAGES: Final = dict.fromkeys(ALWAYS, "util-linux")
"""Programs, and the Debian packages that bring them, where these are named otherwise."""
START_S: Final = 20.0
STOP_S: Final = 10.0

NGINX: Final = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; client_max_body_size 0;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} backlog=2048; default_type application/json;
    location / {{ return 200 '{answer}'; }}
    location /api/v1/sales/missing {{ return 404 '{{}}'; }}
  }}
}}
"""


class Unusable(SystemExit):
    """The machine lacks something; the text says what, and how to get it. The process ends with 1."""


def require(*programs: str) -> None:
    """Raise `Unusable`, with the line that installs them, unless all `programs` and `ALWAYS` are on the path."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has servers, and users do not look
    missing = [name for name in (*ALWAYS, *programs) if shutil.which(name, path=path) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES.get(name, name) for name in missing))
        raise Unusable(f"not installed: {', '.join(missing)}\nOn Debian or Ubuntu: sudo apt install {packages}")
    os.environ["PATH"] = path


@functools.cache  # found once, before this process ties itself to one of them
def cores() -> tuple[int, int]:
    """The core of the system under test, and that of everything else."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Unusable("two cores are needed: one for the system under test, one for load and services")
    return usable[0], usable[1]


def settle_down() -> None:
    """Tie this process to the load's core, allow it all open files it may have, and let SIGTERM end it tidily."""
    os.sched_setaffinity(0, {cores()[1]})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def require_files(connections: int) -> None:
    """Raise `Unusable` unless a gateway that is started here may hold so many connections."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < connections * 4 // 3 + 200:
        raise Unusable(f"{connections} connections need more open files than the {files} allowed: raise ulimit -Hn")


def free_port() -> int:
    """A loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Issuer:
    """An auth service with a fresh RSA key, whose tokens hold for a day."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = self._key.public_key()
        self.public_pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()

    def token(
        self, number: int, *, status: str = "active", issued_at: float | None = None, lasts_s: float = 86_400
    ) -> str:
        """The token of user `number`, one of five in its tenant; `status` is that of the tenant's subscription.

        `issued_at` is the Unix second from which it lasts, by default this one.
        """
        now = int(time.time() if issued_at is None else issued_at)
        claims = {
            "user_id": f"user-{number}",
            "email": f"user-{number}@bakery.example",
            "tenant_id": f"tenant-{number % 40}",
            "tenant_role": "owner",
            "subscription": {"tier": "professional", "status": status, "valid_until": "2099-12-31T23:59:59Z"},
            "tenant_access": [],
            "exp": now + int(lasts_s),
            "iat": now - 5,
            "iss": "bakery-auth",
        }
        return jwt.encode(claims, self._key, algorithm="RS256")

    def tokens(self) -> list[str]:
        """One for each of the users that every load has."""
        return [self.token(number) for number in range(USERS)]


def http_request(method: str, path: str, token: str | None = None, body: bytes = b"") -> bytes:
    """A whole HTTP/1.1 request as a browser's script would send it, in bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway.example"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def sales_requests(tokens: Sequence[str]) -> list[bytes]:
    """The ordinary load: each user asks for one sale."""
    return [http_request("GET", f"/api/v1/sales/{number}", token) for number, token in enumerate(tokens, 1)]


class Rig:
    """A temporary folder and the processes started in it; as a context manager, all of them end with the block.

    They run in sessions of their own, so that Ctrl-C reaches only this process, which then ends them one by one; should
    it be killed, the kernel ends them, and the folder stays until a later start deletes it.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(temporary_folder())
        self.issuer = Issuer()
        self.tokens = self.issuer.tokens()
        self.service_port = self.redis_port = 0
        (self.folder / "key.pem").write_text(self.issuer.public_pem)

    def __enter__(self) -> Self:
        settle_down()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def start_redis(self) -> None:
        """A Redis without persistence, on `redis_port`, until the end."""
        self.redis_port = free_port()
        command = ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no"]
        self._stack.enter_context(self.running("redis", command, port=self.redis_port, core=cores()[1]))

    def start_service(self) -> None:
        """nginx with a fixed answer, on `service_port`, until the end."""
        self.service_port = free_port()
        conf = self.folder / "nginx.conf"
        conf.write_text(NGINX.format(folder=self.folder, port=self.service_port, answer=ANSWER))
        command = ["nginx", "-c", str(conf)]
        self._stack.enter_context(self.running("nginx", command, port=self.service_port, core=cores()[1]))

    @contextlib.contextmanager
    def running(  # noqa: PLR0917
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str] | None = None,
        port: int = 0,
        core: int | None = None,
        output: int | None = None,
    ) -> Iterator[int]:
        """A process tied to a core (the first, if none is named), from when it accepts on `port` until the block ends.

        Gives its process id. What it prints goes to `output`, or else to the file `<name>.log`. Raises `Unusable` if
        it does not come up.
        """
        log = self.folder / f"{name}.log"
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONUNBUFFERED": "1", **(environ or {})}
        pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(cores()[0] if core is None else core)]
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*pinned, *command],
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file if output is None else output,
                stderr=file if output is None else output,
                start_new_session=True,
            )
        try:
            wait_for(lambda: _accepts(port) or process.poll() is not None, START_S)
            if not _accepts(port):
                raise Unusable(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            yield process.pid
        finally:
            _end(process)

    @contextlib.contextmanager
    def gateway(
        self,
        build: "Build",
        settings: Mapping[str, str] | None = None,
        *,
        output: int | None = None,
        inside: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[int, int]]:
        """A gateway of this build: its process id and port. `settings` add to those of every run.

        With `inside`, the variables of `inside.py`, it also tells what only the process itself knows.
        """
        port = free_port()
        environ = {**self.gateway_settings(port), **build.environ, **(settings or {})}
        command = build.command()
        if inside is not None:
            environ |= inside
            command = [str(build.python), str(HERE / "inside.py"), *command[1:]]
        with self.running("bakerygw", command, environ, port, output=output) as pid:
            yield pid, port

    def gateway_settings(self, port: int) -> dict[str, str]:
        """The settings of every run; all others have their defaults."""
        settings = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "ADMIN_PORT": "0",
            "ADMIN_TOKEN": "bench",
            "JWT_PUBLIC_KEY": self.issuer.public_pem,
            "RATE_LIMIT_REQUESTS": LIMIT,
            "DRAIN_GRACE_SECONDS": "0",
            "DRAIN_TIMEOUT_SECONDS": "2",
        }
        if self.redis_port:
            settings |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(self.redis_port)}
        if self.service_port:
            settings["SALES_SERVICE_URL"] = f"http://127.0.0.1:{self.service_port}"
        return settings


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:  # after a second Ctrl-C, too
        process.kill()
        process.wait()


def wait_for(reached: Callable[[], bool], at_most_s: float, every_s: float = 0.05) -> bool:
    """Look every `every_s` seconds until `reached()`, for `at_most_s` at most; whether it came to that."""
    deadline = time.monotonic() + at_most_s
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def machine() -> dict[str, Any]:
    """What a reader must know of the machine to make sense of its figures."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    siblings = Path(f"/sys/devices/system/cpu/cpu{cores()[0]}/topology/thread_siblings_list")
    shared = siblings.read_text(encoding="ascii").strip() if siblings.exists() else str(cores()[0])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "hyperthreads": shared not in {str(cores()[0]), ""},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short and coarse: to see that it works")
    return parser


def folder_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Path:
    """Where a run with these options leaves its figures: `results` only if it measured what is promised.

    Fewer minutes, rounds or connections keep a promise more easily; such figures, and those of a quick run, are apart.
    """
    if given.quick:
        return RESULTS / "quick"
    own = [name for name, value in vars(given).items() if name != "plain" and value != parser.get_default(name)]
    if not own:
        return RESULTS
    print(f"with its own {', '.join(own)}: these figures are left in results/own, and not for the page")
    return RESULTS / "own"


def save(name: str, folder: Path, result: Mapping[str, Any]) -> None:
    """Keep the raw figures in `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def verdict(name: str, value: float, unit: str, promise: str, kept: bool) -> dict[str, Any]:
    """Print the line that each script ends with; gives it as data."""
    print(f"{name} {value:.4g} {unit} (promise: {promise}) {'ok' if kept else 'BROKEN'}", flush=True)
    return {"name": name, "value": value, "unit": unit, "promise": promise, "kept": kept}
