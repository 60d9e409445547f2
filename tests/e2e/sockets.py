"""WebSockets for end-to-end tests: a service that does as its query says, and a client down to the frame."""

import base64
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from bakerygw.core.websocket import accept_of
from tests.e2e.calling import until
from tests.frames import CLOSE, frame
from tests.patience import PATIENCE_S

PATH = "/api/v1/training/ws"


class TrainingService:
    """Echoes by default. As a context manager it serves on a free port.

    The query says what else: `status` refuses the handshake by it, `choose` is the subprotocol, `close` (with `reason`)
    closes at once by that code, `send` sends so many messages of 64 KiB, `big` one message of so many bytes,
    `deaf` never reads, `late` answers the handshake once `hear` is set.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self.connections: list[ServerConnection] = []
        self.sent = 0
        self.hear = threading.Event()
        self._greeted = 0

    @property
    def port(self) -> int:
        port: int = self._server.socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server: Server = serve(
            self._speak,
            "127.0.0.1",
            0,
            max_size=None,
            compression=None,
            process_request=self._greet,
            select_subprotocol=self._choose,
            ping_interval=None,
            close_timeout=2,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hear.set()
        self._server.shutdown()
        self._thread.join(PATIENCE_S)

    def reset(self) -> None:
        """Forget what was, once it is over."""
        until(lambda: len(self.closes) == self._greeted)
        self._greeted = 0
        self.requests.clear()
        self.closes.clear()
        self.connections.clear()
        self.sent = 0

    def kill(self) -> None:
        """End all connections by a reset."""
        for connection in self.connections:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.socket.shutdown(socket.SHUT_RDWR)

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/health":
            return connection.respond(200, "ok\n")
        self.requests.append(request)
        if _asked(request, "late"):
            self.hear.wait(2 * PATIENCE_S)
        status = _asked(request, "status")
        if status:
            return connection.respond(int(status), "the trainer says no\n")
        self._greeted += 1
        return None

    def _choose(self, connection: ServerConnection, offered: Any) -> Any:
        chosen = _asked(connection.request, "choose")
        return chosen or None

    def _speak(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        request = connection.request
        try:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # what is on its way is elsewhere
                connection.socket.setsockopt(socket.SOL_SOCKET, option, 65536)
            if _asked(request, "deaf"):
                self.hear.wait(2 * PATIENCE_S)
            for _ in range(int(_asked(request, "send") or 0)):
                connection.send(bytes(65536))
                self.sent += 1
            if big := _asked(request, "big"):
                connection.send(bytes(int(big)))
            if (code := _asked(request, "close")) is not None:
                connection.close(int(code), _asked(request, "reason") or "")
            for message in connection:
                connection.send(message)
        except ConnectionClosed:
            pass
        connection.close()
        self.closes.append((connection.close_code, connection.close_reason))


class FalseService:
    """Accepts every handshake, and hangs up: under a wrong key, or else with `fields` in its 101. It looks healthy."""

    def __init__(self, *fields: bytes, wrong: bool = False) -> None:
        self._fields, self._wrong = fields, wrong

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(PATIENCE_S)
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(65536)):
                return
            head += data
        key = [line[19:] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
        if not key:
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return
        accept = accept_of(bytes(24) if self._wrong else key[0])
        lines = (b"HTTP/1.1 101 Go", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + accept)
        connection.sendall(b"\r\n".join((*lines, *self._fields, b"", b"")))


def _asked(request: Request | None, name: str) -> str | None:
    values = parse_qs(urlsplit(request.path if request else "").query).get(name)
    return values[0] if values else None


class RawSocket:
    """A client of the gateway that says exactly what it is told to."""

    def __init__(self, port: int, token: str, query: str = "", *fields: tuple[str, str], behind: bytes = b"") -> None:
        """Connects and sends a good handshake with `behind` right behind it; `head` is the answer's."""
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        lines = [
            f"GET {PATH}{query} HTTP/1.1",
            "Host: gateway.example",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *([f"Authorization: Bearer {token}"] if token else []),
            *(f"{name}: {value}" for name, value in fields),
        ]
        self._data = b""
        self.send("\r\n".join([*lines, "", ""]).encode() + behind)
        self._fill(lambda: b"\r\n\r\n" in self._data)
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reset(self) -> None:
        """Be lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def receive(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload. AssertionError unless it is whole, unmasked and final."""
        self._fill(lambda: len(self._data) >= 2)
        first, size = self._data[0], self._data[1]
        assert first & 0xF0 == 0x80, "not a final frame"
        start = 2
        if size >= 126:
            start += 2 if size == 126 else 8
            self._fill(lambda: len(self._data) >= start)
            size = int.from_bytes(self._data[2:start], "big")
        self._fill(lambda: len(self._data) >= start + size)
        payload, self._data = self._data[start : start + size], self._data[start + size :]
        return first & 15, payload

    def end(self, *, answer: bool = True) -> tuple[int | None, bytes]:
        """Code and reason of the close frame, messages before it left out; answered, and the connection's end seen."""
        while True:
            opcode, payload = self.receive()
            if opcode == CLOSE:
                break
        if answer:
            with suppress(OSError):
                self.send(frame(CLOSE, payload))
        self._socket.settimeout(PATIENCE_S)
        try:
            while self._socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return (int.from_bytes(payload[:2], "big"), payload[2:]) if payload else (None, b"")

    def _fill(self, enough: Callable[[], bool]) -> None:
        while not enough():
            data = self._socket.recv(65536)
            assert data, f"the connection ended behind {self._data[:200]!r}"
            self._data += data
