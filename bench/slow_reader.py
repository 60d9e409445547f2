"""A download by a client that stops reading: what it costs the gateway, and whether it still arrives whole.

    python bench/slow_reader.py [--megabytes 300] [--pause 10] [--quick] [--plain]

Prints the growth of the gateway's resident memory, at its peak over the whole transfer. Exits with 1 above 16 MiB, if
the service was never held back, or if the client, reading on, does not get every byte.
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
    digest_of,
    read_head,
    run,
    until_still,
    warmed,
)


class Download:
    """The service's side: sends as fast as the gateway takes it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.sending: Sending | None = None
        self.ended = threading.Event()

    def serve(self, sock: socket.socket, _: bytes) -> None:
        """Send the answer."""
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self._total)
        self.sending = Sending(sock, self._total)
        self.sending.run()
        self.ended.set()

    @property
    def sent(self) -> int:
        """Bytes that the service has got rid of."""
        return self.sending.sent if self.sending else 0


def transfer(port: int, token: str, download: Download, total: int, pause_s: float) -> Iterator[str]:
    """What goes wrong."""
    with warmed(port, http_request("GET", "/api/v1/sales/small", token)) as sock:
        sock.sendall(http_request("GET", "/api/v1/sales/big", token))
        head, rest = read_head(sock)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the download got {head[:80]!r}")
        receiving = Receiving(sock, total, rest)
        receiving.until(READ_FIRST)
        began = time.monotonic()
        held_at = until_still(lambda: download.sent)
        time.sleep(max(0.0, pause_s - (time.monotonic() - began)))
        print(f"the client read {receiving.received / MIB:.1f} MiB and stopped; the service sent {held_at / MIB:.1f}")
        if held_at >= total:
            yield "the service was never held back"
        if receiving.finish() != digest_of(total):
            yield "the bytes are not those that were sent"
    download.ended.wait(5)
    if download.sending is None or download.sending.failed:
        yield "the service could not send all of it"


def main() -> int:
    """All of it; 0 if the promise is kept."""
    return run("slow_reader_growth", __doc__, megabytes=300, end=Download, transfer=transfer)


if __name__ == "__main__":
    raise SystemExit(main())
