"""An upload into a service that stops reading: what it costs the gateway, and whether it still arrives whole.

    python bench/upload.py [--megabytes 1024] [--pause 10] [--quick] [--plain]

A routes file raises `max_body` for it. Prints the growth of the gateway's resident memory, at its peak over the whole
transfer. Exits with 1 above 16 MiB, if the client was never held back, or if the service, reading on, does not get
every byte.
"""

import socket
import threading
import time
from collections.abc import Iterator

from rig import http_request
from transfer import (
    MIB,
    READ_FIRST,
    Receiving,
    Sending,
    ask,
    digest_of,
    run,
    small_answer,
    until_still,
    warmed,
)


class Upload:
    """The service's side: reads a little, waits to be told to go on, reads the rest, and answers its digest."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.go_on = threading.Event()

    def serve(self, sock: socket.socket, rest: bytes) -> None:
        """Read the body, answer."""
        receiving = Receiving(sock, self._total, rest)
        receiving.until(READ_FIRST)
        self.go_on.wait(60)
        sock.sendall(small_answer(receiving.finish().encode()))


def transfer(port: int, token: str, upload: Upload, total: int, pause_s: float) -> Iterator[str]:
    """What goes wrong."""
    head = f"POST /api/v1/sales/big HTTP/1.1\r\nHost: gateway.example\r\nAuthorization: Bearer {token}\r\n"
    with warmed(port, http_request("GET", "/api/v1/sales/small", token)) as sock:
        sock.sendall(f"{head}Content-Length: {total}\r\n\r\n".encode())
        sending = Sending(sock, total)
        sender = threading.Thread(target=sending.run, daemon=True)
        began = time.monotonic()
        sender.start()
        held_at = until_still(lambda: sending.sent)
        time.sleep(max(0.0, pause_s - (time.monotonic() - began)))
        print(f"the service read {READ_FIRST / MIB:.1f} MiB and stopped; the client sent {held_at / MIB:.1f}")
        if held_at >= total:
            yield "the client was never held back"
        upload.go_on.set()
        status, body = ask(sock, b"")
        sender.join(5)
    if sending.failed:
        yield f"the client could not send all of it: {sending.failed}"
    if status != 200:
        yield f"the upload got {status}: {body[:300]!r}"
    elif body.decode() != digest_of(total):
        yield "the bytes are not those that were sent"


def main() -> int:
    """All of it; 0 if the promise is kept."""
    return run("upload_growth", __doc__, megabytes=1024, end=Upload, transfer=transfer)


if __name__ == "__main__":
    raise SystemExit(main())
