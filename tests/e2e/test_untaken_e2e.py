"""Replies that the client has not taken yet: a drain waits for them, then cuts them visibly."""

import signal
import socket
from contextlib import closing

from tests.e2e.calling import SALES, until
from tests.e2e.conftest import StartGateway
from tests.e2e.recording import RecordingUpstream, answer
from tests.minting import Issuer
from tests.patience import PATIENCE_S

BODY_BYTES = 20_000_000


def slow_client(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", port))
    return client


def read_all(client: socket.socket) -> int:
    received = 0
    while data := client.recv(1 << 20):
        received += len(data)
    return received


def test_a_drain_waits_until_the_reply_has_been_taken(
    start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
) -> None:
    gateway = start_gateway({"DRAIN_TIMEOUT_SECONDS": "25"})
    body_bytes = 3_000_000  # about what the kernel holds: the gateway is done with it long before the client
    upstream.next(answer(200, b"x" * body_bytes))
    with closing(slow_client(gateway.port)) as client:
        head = f"GET {SALES} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {issuer.token()}\r\n\r\n"
        client.sendall(head.encode())
        until(lambda: len(upstream.requests) == 1)
        gateway.signal(signal.SIGTERM)
        gateway.wait_for_event("gateway.draining")
        assert read_all(client) > body_bytes
    assert gateway.wait() == 0
    assert not gateway.events("drain.cut")


def test_a_drain_that_is_over_cuts_what_was_not_taken(
    start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
) -> None:
    gateway = start_gateway({"DRAIN_TIMEOUT_SECONDS": "0.5"})
    upstream.next(answer(200, b"x" * BODY_BYTES))
    with closing(slow_client(gateway.port)) as client:
        head = f"GET {SALES} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {issuer.token()}\r\n\r\n"
        client.sendall(head.encode())
        until(lambda: len(upstream.requests) == 1)
        assert gateway.terminate() == 0
        received = 0
        try:
            received = read_all(client)
        except ConnectionResetError:
            received = -1
    assert received == -1
    assert gateway.events("drain.cut")
