"""A service that records the exact bytes of each request and answers as it is told to."""

import contextlib
import json
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tests.e2e.wire import body_end, field_values, head_end, unchunked
from tests.patience import PATIENCE_S
from tests.ports import free_ports

SHOWN_WHILE_READ = 1 << 20
"""Bytes of a request up to which its body can be watched as it comes; copying more of it each time takes too long."""


@dataclass(eq=False, kw_only=True)
class Recorded:
    """One request as it arrived. `body` and `complete` are filled in as it is read."""

    head: bytes
    """Everything up to and with the empty line."""
    connection: int
    """Which connection of the service it came on, from 1."""
    raw_body: bytes = b""
    """The body as framed on the wire."""
    complete: bool = False
    """The whole body has arrived."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the peer closes before its answer was sent whole."""

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> bytes:
        return self.head.split(b" ", 2)[1]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields in order, names as sent."""
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]

    def values(self, name: str) -> list[bytes]:
        """The values of one field, by its name in any case."""
        return [value for known, value in self.headers if known.lower() == name.lower().encode()]

    def value(self, name: str) -> bytes | None:
        """The only value of one field, `None` without it; more than one is an AssertionError."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def body(self) -> bytes:
        """The body without its framing."""
        chunked = any(b"chunked" in value.lower() for value in field_values(self.head, b"transfer-encoding"))
        return unchunked(self.raw_body) if chunked and self.complete else self.raw_body


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to do about one request."""

    pieces: tuple[bytes, ...] = ()
    """The exact bytes to send, piece by piece."""
    delay_s: float = 0.0
    """Before the first piece."""
    between_s: float = 0.0
    """Between two pieces."""
    cut_after: int | None = None
    """Send only so many bytes, then close."""
    close: bool = False
    """Close when all is sent."""
    reset: bool = False
    """Where it closes, do it with a TCP reset."""
    never: bool = False
    """Send nothing, ever."""
    early: bool = False
    """Answer when the head has come, then go on to read the body."""
    stop_reading: bool = False
    """Read nothing of the body, and answer nothing, until the service is stopped or `read_on` is called."""


def answer(
    status: int = 200, body: bytes = b"{}", *headers: tuple[str, str], reason: str = "OK", **how: object
) -> Answer:
    """A JSON answer with a Content-Length; `how`: the fields of `Answer`."""
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{n}: {v}" for n, v in [*fields.items(), *headers])]
    return Answer(pieces=("\r\n".join([*lines, "", ""]).encode() + body,), **how)  # type: ignore[arg-type]


Script = Answer | Callable[[Recorded], Answer]


def plain(request: Recorded) -> Answer:
    """200 with a small JSON body, which an answer to HEAD only promises."""
    told = answer(200, json.dumps({"ok": True}).encode())
    whole = told.pieces[0]
    return Answer(pieces=(whole[: head_end(whole)],)) if request.method == "HEAD" else told


class PeerLeftError(Exception):
    """The other side has closed."""


class RecordingUpstream:
    """A threaded HTTP/1.1 service on loopback. As a context manager it stops at the end.

    Health probes (`GET /health`) are answered apart, recorded in `probes`, and take no scripted answer.
    """

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Recorded] = []
        self.probes: list[Recorded] = []
        self.connections = 0
        self.ended: set[int] = set()
        """The numbers of connections that are over."""
        self.health: Script = answer(200, json.dumps({"status": "ok"}).encode())
        self._default: Script = plain
        self._scripted: deque[Script] = deque()
        self._changed = threading.Condition()
        self._reading = threading.Event()
        self._stopped = threading.Event()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        with self._changed:
            return len(self._open)

    def start(self) -> Self:
        """Listen: at first on a free port, after `stop` on the same one again."""
        self._stopped, self._reading = threading.Event(), threading.Event()
        self.port = self.port or free_ports(1)[0]
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._spawn(self._accept, self._listener, self._stopped)
        return self

    def stop(self) -> None:
        """Refuse new connections and cut all that are open."""
        self._stopped.set()
        self._reading.set()
        if self._listener is not None:
            # Closing alone would not wake the thread that waits in accept().
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._changed:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a connection of the recording service does not end"
        self._threads.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def next(self, *scripts: Script) -> None:
        """Answer the next requests like this, one script each."""
        self._scripted.extend(scripts)

    def always(self, script: Script) -> None:
        """Answer like this whenever nothing else is scripted."""
        self._default = script

    def reset(self) -> None:
        """Forget the requests and every script, for a service that several tests share; connections stay."""
        self.read_on()
        with self._changed:
            self._reading = threading.Event()
            self.requests, self._default = [], plain
            self._scripted.clear()

    def read_on(self) -> None:
        """End every `stop_reading`: the bodies are read, and the requests answered."""
        self._reading.set()

    def wait_for(self, count: int, timeout_s: float = PATIENCE_S) -> list[Recorded]:
        """The requests, once `count` of them have arrived whole. Raises `TimeoutError`."""

        def whole() -> bool:
            return sum(request.complete for request in self.requests) >= count

        with self._changed:
            if not self._changed.wait_for(whole, timeout_s):
                raise TimeoutError(f"{count} requests expected; here: {[r.head for r in self.requests]}")
            return list(self.requests)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                number = self.connections
                self._open.add(sock)
            self._spawn(self._connection, sock, number)

    def _connection(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = bytearray()
        with sock, contextlib.suppress(PeerLeftError, OSError):
            while not self._stopped.is_set() and self._exchange(sock, number, received):
                pass
        with self._changed:
            self._open.discard(sock)
            self.ended.add(number)
            self._changed.notify_all()

    def _exchange(self, sock: socket.socket, number: int, received: bytearray) -> bool:
        """One request and its answer; whether the connection goes on."""
        while (body_start := head_end(received)) is None:
            self._receive(sock, received)
        request = Recorded(head=bytes(received[:body_start]), connection=number)
        script = self._record(request)
        told = script(request) if callable(script) else script
        if told.stop_reading:
            self._reading.wait()
        try:
            going_on = self._send(sock, told) if told.early else True
            self._read_body(sock, request, received, body_start)
            return self._send(sock, told) if not told.early else going_on
        except (PeerLeftError, OSError):
            request.left.set()
            raise

    def _record(self, request: Recorded) -> Script:
        with self._changed:
            probe = request.method == "GET" and request.target == b"/health"
            (self.probes if probe else self.requests).append(request)
            self._changed.notify_all()
            if probe:
                return self.health
            return self._scripted.popleft() if self._scripted else self._default

    def _read_body(self, sock: socket.socket, request: Recorded, received: bytearray, body_start: int) -> None:
        try:
            while (end := body_end(received, 0, body_start)) is None:
                if len(received) < SHOWN_WHILE_READ:
                    request.raw_body = bytes(received[body_start:])
                self._receive(sock, received)
        except (PeerLeftError, OSError):
            request.raw_body = bytes(received[body_start:])
            raise
        request.raw_body = bytes(received[body_start:end])
        del received[:end]
        with self._changed:
            request.complete = True
            self._changed.notify_all()

    def _receive(self, sock: socket.socket, received: bytearray) -> None:
        piece = sock.recv(65536)
        if not piece:
            raise PeerLeftError
        received += piece

    def _send(self, sock: socket.socket, told: Answer) -> bool:
        """Send what is told; whether the connection goes on."""
        if told.never:
            self._watch(sock, None)
        self._watch(sock, told.delay_s)
        left = told.cut_after
        for index, piece in enumerate(told.pieces):
            if index:
                self._watch(sock, told.between_s)
            sock.sendall(piece if left is None else piece[:left])
            left = None if left is None else max(0, left - len(piece))
        closing = told.close or told.cut_after is not None
        if closing and told.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not closing

    def _watch(self, sock: socket.socket, wait_s: float | None) -> None:
        """Wait so long, `None` for ever; raises `PeerLeftError` as soon as the peer closes."""
        deadline = None if wait_s is None else time.monotonic() + wait_s
        while deadline is None or time.monotonic() < deadline:
            remaining = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(remaining * 1000):
                continue
            if not sock.recv(1, socket.MSG_PEEK):
                raise PeerLeftError
            time.sleep(min(0.01, remaining))  # bytes of a next request wait: only the end is of interest here
