"""Thousands of event streams read by one loop, and what publishes to them; for `streams.py`."""

import re
import select
import socket
import time
from array import array
from collections.abc import Callable, Iterable
from typing import Final

READ_BYTES: Final = 256 * 1024
AT_ONCE: Final = 64
"""Streams being opened at a time."""
OPEN_S: Final = 20.0
_SENT: Final = re.compile(rb'"sent":(\d+)}')
_TAIL: Final = 40
"""Bytes that may be the beginning of a moment of sending."""


def alert(number: int) -> bytes:
    """An alert of about 300 bytes that says when it was sent, in nanoseconds."""
    text = '{"alert_id":"a-%d","severity":"high","message":"%s","timestamp":"2026-11-23T10:00:00Z","sent":%d}'
    return (text % (number, "Oven 3 is at 248 degrees, wanted are 230. " * 4, time.perf_counter_ns())).encode()


class Readers:
    """Streams of one port, open until `close`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self.delays_ms: array[float] = array("f")
        """From sending to reading, for each alert that was read."""
        self.lost = 0
        """Streams that ended by themselves."""

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self, requests: Iterable[bytes]) -> None:
        """Open a stream with each of the requests. Raises `ConnectionError` for an answer that is no stream."""
        waiting: list[socket.socket] = []
        for request in requests:
            number = len(self._sockets) + len(waiting)
            sock = socket.socket()
            sock.bind((f"127.0.0.{2 + number // 20_000}", 0))
            sock.settimeout(OPEN_S)
            sock.connect(("127.0.0.1", self._port))
            sock.sendall(request)
            waiting.append(sock)
            if len(waiting) == AT_ONCE:
                self._begun(waiting)
                waiting.clear()
        self._begun(waiting)

    def _begun(self, waiting: list[socket.socket]) -> None:
        for sock in waiting:
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(65_536)
                if not data:
                    raise ConnectionError(f"closed: {head[:300]!r}")
                head += data
            if not head.startswith(b"HTTP/1.1 200 "):
                raise ConnectionError(f"no stream: {head[:600]!r}")
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def read(self, seconds: float, publish: Callable[[], None] | None = None, every_s: float = 0.2) -> int:
        """Read for so long, and publish evenly meanwhile; how often that was."""
        began = time.perf_counter()
        sent = 0
        while (passed := time.perf_counter() - began) < seconds:
            if publish is not None and passed >= sent * every_s:
                publish()
                sent += 1
            until = began + (min(seconds, sent * every_s) if publish is not None else seconds)
            self._turn(max(0.0, until - time.perf_counter()))
        return sent

    def drain(self, quiet_s: float = 1.0) -> None:
        """Read until nothing has come for so long."""
        while self._turn(quiet_s):
            pass

    def _turn(self, timeout_s: float) -> bool:
        events = self._poll.poll(timeout_s, 1024)
        for number, _ in events:
            try:
                data = self._sockets[number].recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self.lost += 1
                self._poll.unregister(number)
                self._sockets.pop(number).close()
                continue
            data = self._tails.pop(number, b"") + data
            now = time.perf_counter_ns()
            end = 0
            for found in _SENT.finditer(data):
                self.delays_ms.append((now - int(found[1])) / 1e6)
                end = found.end()
            if not data.endswith(b"\n"):
                self._tails[number] = data[max(end, len(data) - _TAIL) :]
        return bool(events)

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of what was read had come."""
        ordered = sorted(self.delays_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def forget(self) -> None:
        """Count anew."""
        del self.delays_ms[:]

    def close(self) -> None:
        """End all."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._poll.close()


class RedisPublisher:
    """Publishes as a service does."""

    def __init__(self, port: int, tenant_id: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._channel = f"alerts:tenant:{tenant_id}".encode()
        self.number = 0

    def __call__(self) -> None:
        """One more alert."""
        self.number += 1
        words = (b"PUBLISH", self._channel, alert(self.number))
        self._socket.sendall(b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(it), it) for it in words))
        self._socket.recv(4096)


class HttpPublisher:
    """Publishes to nchan."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self.number = 0

    def __call__(self) -> None:
        """One more alert."""
        self.number += 1
        body = alert(self.number)
        head = f"POST /pub?id=1 HTTP/1.1\r\nHost: nchan\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        answer = self._socket.recv(4096)
        if b" 20" not in answer[:16]:
            raise ConnectionError(f"nchan: {answer[:200]!r}")
