"""HTTP/1.1 as bytes: where a message ends, and one exchange of exact bytes over a socket."""

import re
import socket
import time
from collections.abc import Sequence

from tests.patience import PATIENCE_S

NO_BODY_STATUSES = frozenset({204, 304})


def head_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where the body begins: behind the empty line that ends the head; `None` if that has not come."""
    at = data.find(b"\r\n\r\n", start)
    return None if at < 0 else at + 4


def field_values(head: bytes | bytearray, name: bytes) -> list[bytes]:
    """The values of a header field in order, by its name in any case."""
    return re.findall(rb"(?im)^%s:[ \t]*(.*?)[ \t]*\r$" % re.escape(name), bytes(head))


def chunked_end(data: bytes | bytearray, start: int) -> int | None:
    """Where a chunked body that begins at `start` ends, trailers included; `None` if that has not come."""
    at = start
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(bytes(data[at:line_end]).split(b";")[0], 16)
        at = line_end + 2
        if size == 0:
            break
        at += size + 2
    else:
        return None
    while (line_end := data.find(b"\r\n", at)) > at:
        at = line_end + 2
    return line_end + 2 if line_end == at else None


def unchunked(data: bytes) -> bytes:
    """What a complete chunked body carries."""
    pieces, at = [], 0
    while True:
        line_end = data.index(b"\r\n", at)
        size = int(data[at:line_end].split(b";")[0], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(data[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2


def body_end(data: bytes | bytearray, start: int, body_start: int) -> int | None:
    """Where a message from `start` with a framed body ends; `None` if that has not come. Without framing: no body."""
    head = data[start:body_start]
    if any(b"chunked" in value.lower() for value in field_values(head, b"transfer-encoding")):
        return chunked_end(data, body_start)
    lengths = field_values(head, b"content-length")
    end = body_start + (int(lengths[0]) if lengths else 0)
    return end if len(data) >= end else None


def answer_end(data: bytes | bytearray, start: int, *, to_head: bool) -> int | None:
    """Where the final answer that begins at `start`, 1xx before it included, ends.

    `None` if that has not come, or only the end of the connection can tell.
    """
    while (body_start := head_end(data, start)) is not None:
        head = data[start:body_start]
        status = int(bytes(head).split(b" ", 2)[1])
        if status == 101 or status in NO_BODY_STATUSES or (status >= 200 and to_head):
            return body_start
        if status >= 200:
            framed = field_values(head, b"content-length") or field_values(head, b"transfer-encoding")
            return body_end(data, start, body_start) if framed else None
        start = body_start
    return None


def raw_request(
    host: str,
    port: int,
    data: bytes | Sequence[bytes],
    timeout_s: float = PATIENCE_S,
    *,
    answers: int | None = 1,
    pause_s: float = 0.05,
) -> bytes:
    """Send exactly these bytes, and return what comes back.

    It reads until `answers` final answers are complete or the peer closes; with `answers=None` until it closes.
    Several pieces are sent one by one, `pause_s` apart. An answer to a HEAD must be the only one. Raises
    `TimeoutError`, with what was received, when `timeout_s` is over before.
    """
    pieces = [data] if isinstance(data, bytes) else data
    deadline = time.monotonic() + timeout_s
    with socket.create_connection((host, port), timeout_s) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for index, piece in enumerate(pieces):
                time.sleep(pause_s if index else 0)
                sock.sendall(piece)
        except OSError:
            pass  # the peer has answered already and closed; its answer is still to be read
        return _received(sock, deadline, answers, to_head=pieces[0].startswith(b"HEAD "))


def _received(sock: socket.socket, deadline: float, answers: int | None, *, to_head: bool) -> bytes:
    received, complete, at = bytearray(), 0, 0
    while True:
        while answers is not None and (end := answer_end(received, at, to_head=to_head)) is not None:
            complete, at = complete + 1, end
            if complete == answers:
                return bytes(received)
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            raise TimeoutError(f"no end of the answer; received {bytes(received)!r}") from None
        except ConnectionResetError:
            return bytes(received)
        if not piece:
            return bytes(received)
        received += piece
