"""Big bodies through the gateway, with raw sockets at both ends, so that either end can stop reading."""

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol, Self

from builds import build_arguments, of
from client import parse_answer
from procfs import PeakMemory
from rig import Rig, folder_of, machine, require, save, verdict, wait_for

MIB: Final = 1024 * 1024
PROMISE_MIB: Final = 16.0
READ_FIRST: Final = MIB
"""Bytes that the slow end reads before it stops."""
STILL_S: Final = 1.0
"""After no byte has moved for so long, everything that buffers is full."""
SOCKET_S: Final = 60.0
_BLOCK: Final = random.Random(1).randbytes(MIB)


def content(total: int) -> Iterator[bytes]:
    """`total` bytes in pieces, no two alike, so that none can be lost, doubled or moved unnoticed."""
    number = 0
    while total > 0:
        piece = (number.to_bytes(8, "big") + _BLOCK[8:])[:total]
        yield piece
        total -= len(piece)
        number += 1


def digest_of(total: int) -> str:
    """The SHA-256 of that content, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in content(total):
        digest.update(piece)
    return digest.hexdigest()


class Sending:
    """Sends the content, and tells how far it has come; from a thread of its own, for it may be made to wait."""

    def __init__(self, sock: socket.socket, total: int) -> None:
        self.sent, self.failed = 0, ""
        self._sock, self._total = sock, total

    def run(self) -> None:
        """Send all of it, or remember why not."""
        try:
            for piece in content(self._total):
                view = memoryview(piece)
                while view:
                    count = self._sock.send(view[: 64 * 1024])
                    self.sent += count
                    view = view[count:]
        except OSError as error:
            self.failed = f"{type(error).__name__}: {error}"


def until_still(sending: Callable[[], int], at_most_s: float = 30.0) -> int:
    """Wait until `sending()` has stood still for a while; what it is then. RuntimeError if it never does."""
    seen, since = -1, time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        now = sending()
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > STILL_S

    if not wait_for(still, at_most_s):
        raise RuntimeError("the sender was never held back")
    return seen


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """(the head with its empty line, what was read beyond). ConnectionError if the peer closes before."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = sock.recv(64 * 1024)
        if not data:
            raise ConnectionError(f"closed within a head: {got[:200]!r}")
        got += data
    head, _, rest = got.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


class Receiving:
    """Reads a body of known length, hashing it."""

    def __init__(self, sock: socket.socket, total: int, already: bytes) -> None:
        self._sock, self._total = sock, total
        self._digest = hashlib.sha256(already)
        self.received = len(already)

    def until(self, count: int) -> None:
        """Read until `count` bytes have come. ConnectionError if fewer do."""
        while self.received < min(count, self._total):
            data = self._sock.recv(256 * 1024)
            if not data:
                raise ConnectionError(f"cut after {self.received} of {self._total} bytes")
            self._digest.update(data)
            self.received += len(data)

    def finish(self) -> str:
        """Read the rest; the SHA-256 of all, in hexadecimal."""
        self.until(self._total)
        return self._digest.hexdigest()


def ask(sock: socket.socket, request: bytes) -> tuple[int, bytes]:
    """Send a small request, if there is one, and read its small answer: status and body."""
    sock.sendall(request)
    got = b""
    while (parsed := parse_answer(got)) is None:
        data = sock.recv(64 * 1024)
        if not data:
            raise ConnectionError(f"closed within an answer: {got[:200]!r}")
        got += data
    return parsed[0], got.partition(b"\r\n\r\n")[2]


Handler = Callable[[socket.socket, bytes], None]
"""Serves one big exchange on a socket whose head has been read; gets what was read beyond the head."""


class RawService:
    """A service on a raw socket: `handler` serves paths that end in `/big`, all others get a small answer."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):  # the gateway closes connections that it does not need
            while True:
                sock.settimeout(SOCKET_S)
                head, rest = read_head(sock)
                if head.split(b" ", 2)[1].endswith(b"/big"):
                    self._handler(sock, rest)
                else:
                    sock.sendall(small_answer(b"{}"))


def small_answer(body: bytes) -> bytes:
    """A whole answer with status 200."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def warmed(port: int, request: bytes, times: int = 200) -> socket.socket:
    """A connection to the gateway on which ordinary requests have been answered, so that its memory is at rest."""
    sock = socket.create_connection(("127.0.0.1", port), SOCKET_S)
    for _ in range(times):
        status, _ = ask(sock, request)
        if status != 200:
            raise RuntimeError(f"an ordinary request got {status}")
    return sock


class End(Protocol):
    """The service's side of a transfer."""

    def serve(self, sock: socket.socket, rest: bytes) -> None:
        """The big exchange, as a `Handler`."""


ROUTES: Final = """
[[route]]
prefix = "/api/v1/sales"
max_body = {total}
"""


def run(
    name: str,
    description: str | None,
    *,
    megabytes: int,
    end: Callable[[int], End],
    transfer: Callable[[int, str, Any, int, float], Iterator[str]],
) -> int:
    """A whole script: options, gateway, transfer, verdict. Gives 0 if the promise is kept.

    `transfer(port, token, the service's side, bytes, pause in seconds)` yields what goes wrong.
    """
    parser = build_arguments(description)
    parser.add_argument("--megabytes", type=int)
    parser.add_argument("--pause", type=float)
    given = parser.parse_args()
    total = (given.megabytes or (64 if given.quick else megabytes)) * MIB
    pause_s = given.pause or (2.0 if given.quick else 10.0)
    require("redis-server")
    build = of(given)
    about = machine() | {"build": build.name}
    service_end = end(total)
    wrong: list[str] = []
    with Rig() as rig, RawService(service_end.serve) as service:
        rig.start_redis()
        rig.service_port = service.port
        routes = rig.folder / "routes.toml"
        routes.write_text(ROUTES.format(total=total))
        with rig.gateway(build, {"ROUTES_FILE": str(routes)}) as (pid, port), PeakMemory(pid) as memory:
            try:
                wrong.extend(transfer(port, rig.tokens[0], service_end, total, pause_s))
            except (OSError, RuntimeError) as error:
                wrong.append(f"{type(error).__name__}: {error}")
    for what in wrong:
        print(what)
    grown = memory.growth / MIB
    kept = grown <= PROMISE_MIB and not wrong
    told = verdict(name, grown, "MiB", f"<= {PROMISE_MIB:g} MiB, {total // MIB} MiB whole", kept)
    figures = {"total": total, "rss_before": memory.before, "rss_peak": memory.peak}
    save(
        name.removesuffix("_growth"),
        folder_of(parser, given),
        {"machine": about, "verdicts": [told], **figures, "wrong": wrong},
    )
    return int(not kept)
