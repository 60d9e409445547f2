"""Services of a fuzzed gateway: they read what comes as the reference does, and answer soundly or as rogues."""

import contextlib
import hashlib
import select
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Self

from tests.fuzz.answers import AnswerStream, answer_stream
from tests.fuzz.reference import Fault, Incomplete, ReadRequest, read_answer, read_request

FENCE = b"/fence"
HEALTH = b"/health"
FENCED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfenced"
SILENT_S = 2.0
"""How long a service that never answers waits for the gateway to leave: longer than the gateway's patience."""


def tag(target: bytes) -> bytes:
    """Stands in the answer to a request with this target, and in no other."""
    return hashlib.sha256(target).hexdigest()[:16].encode()


@dataclass(kw_only=True)
class Record:
    """What clients have sent, what arrived of it, and what was answered. `faults` holds every broken promise."""

    meant: set[tuple[bytes, bytes, bytes]] = field(default_factory=set)
    """Whole requests in the clients' streams, by the reference."""
    begun: dict[bytes, list[ReadRequest]] = field(default_factory=lambda: defaultdict(list))
    """By target, all whose head was whole."""
    arrived: Counter[tuple[bytes, bytes, bytes]] = field(default_factory=Counter)
    sent: dict[bytes, list[AnswerStream]] = field(default_factory=lambda: defaultdict(list))
    """By tag."""
    faults: list[str] = field(default_factory=list)

    def announce(self, requests: tuple[ReadRequest, ...]) -> None:
        """These are in a stream that is about to be sent."""
        for request in requests:
            self.begun[request.target].append(request)
            if request.complete:
                self.meant.add(request.identity)

    def whole(self, request: ReadRequest, authority: bytes) -> None:
        """A service has got this."""
        self._head(request, authority)
        if request.identity not in self.meant:
            self.faults.append(f"a request that no client sent as a whole: {request}")
        self.arrived[request.identity] += 1
        if self.arrived[request.identity] > 2 * sum(
            each.identity == request.identity for each in self.begun[request.target]
        ):
            self.faults.append(f"more often than once and once again: {request}")

    def cut(self, request: ReadRequest, authority: bytes) -> None:
        """A service has got the beginning of this, and no more came."""
        self._head(request, authority)
        if not any(
            each.method == request.method and each.body.startswith(request.body) for each in self.begun[request.target]
        ):
            self.faults.append(f"the beginning of a request that no client sent: {request}")

    def _head(self, request: ReadRequest, authority: bytes) -> None:
        fields = [(name.lower(), value) for name, value in request.fields]
        if [value for name, value in fields if name == b"host"] != [authority]:
            self.faults.append(f"another Host: {request}")
        if len([name for name, _ in fields if name == b"x-user-id"]) != 1 or (b"x-user-id", b"admin") in fields:
            self.faults.append(f"another user: {request}")


class Services:
    """So many services on loopback ports, told apart by number. As a context manager they stop at the end."""

    def __init__(self, count: int, record: Record, *, seed: int, rogue: bool) -> None:
        self._record, self._seed, self._rogue = record, seed, rogue
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=256) for _ in range(count)]
        self.urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in self._listeners]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.ExitStack() as held:
            for each in self._listeners:
                held.enter_context(each)
            while not self._stopped.is_set():
                for ready in select.select(self._listeners, [], [], 0.1)[0]:
                    sock, _ = ready.accept()
                    thread = threading.Thread(target=self._connection, args=(sock,), daemon=True)
                    thread.start()
                    self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def _connection(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(0.5)
        authority = b"127.0.0.1:%d" % sock.getsockname()[1]
        with sock, contextlib.suppress(OSError):
            received: bytes | None = b""
            while received is not None and not self._stopped.is_set():
                received = self._exchange(sock, authority, received)

    def _exchange(self, sock: socket.socket, authority: bytes, received: bytes) -> bytes | None:
        """One request and its answer; what came behind the request, `None` where the connection ends."""
        answered = early = False
        while True:
            try:
                request, end, _ = read_request(received, 0)
            except Incomplete:
                request, end = None, 0
            except Fault:
                end = -1
            if end < 0:
                self._record.faults.append(f"the gateway sent what is no request: {received!r}")
                return None
            if request is not None:
                if request.complete and not request.target.endswith(FENCE) and request.target != HEALTH:
                    self._record.whole(request, authority)
                early = early or (not request.complete and self._chance(request, "early").random() < 0.05)
                if not answered and (request.complete or early):
                    answered = True
                    if not self._answer(sock, request):
                        return None
                if request.complete:
                    rest = received[end:]
                    if rest and not early:
                        self._record.faults.append(f"the gateway sent on before it was answered: {received!r}")
                    return rest
            data = self._read(sock)
            if not data:
                if request is not None:
                    self._record.cut(request, authority)
                return None
            received += data

    def _read(self, sock: socket.socket) -> bytes:
        while not self._stopped.is_set():
            try:
                return sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return b""
        return b""

    def _chance(self, request: ReadRequest, what: str) -> Random:
        return Random(f"{self._seed}:{what}:{request.target!r}")

    def _answer(self, sock: socket.socket, request: ReadRequest) -> bool:
        """Whether the connection goes on."""
        if request.target.endswith(FENCE) or request.target == HEALTH:
            sock.sendall(FENCED)
            return True
        random, own = self._chance(request, "answer"), tag(request.target)
        if not self._rogue:
            told = b"HTTP/1.1 200 OK\r\nX-Tag: %b\r\n" % own
            told += b"\r\n" if request.method == b"HEAD" else b"Content-Length: 16\r\n\r\n" + own
            self._record.sent[own].append(
                AnswerStream(data=told, pieces=(told,), sound=True, closes=False, resets=False)
            )
            sock.sendall(told)
            return True
        if random.random() < 0.02:
            time.sleep(SILENT_S)
            return False
        stream = answer_stream(random, to_head=request.method == b"HEAD", fields=(b"X-Tag: " + own,))
        self._record.sent[own].append(stream)
        for piece in _surplus_at_once(stream, to_head=request.method == b"HEAD"):
            sock.sendall(piece)
            if len(stream.pieces) < 20 and random.random() < 0.3:
                time.sleep(random.choice((0.0005, 0.003, 0.02)))
        if stream.closes and stream.resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not stream.closes


def _surplus_at_once(stream: AnswerStream, *, to_head: bool) -> list[bytes]:
    """The pieces; what stands behind the answer comes together with its end.

    Later, it could come when the connection already waits for the next answer, and nobody could tell it from that one.
    """
    try:
        end = read_answer(stream.data, to_head=to_head).end
    except (Fault, Incomplete):
        return list(stream.pieces)
    pieces, sent = [], 0
    for piece in stream.pieces:
        sent += len(piece)
        if 0 <= end <= sent:
            return [*pieces, stream.data[sent - len(piece) :]]
        pieces.append(piece)
    return pieces
