"""What many, slow or greedy clients may take: connections, open files, memory; and a process that is held up."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.calling import SALES, until
from tests.e2e.conftest import StartGateway
from tests.e2e.harness import Answer, Gateway, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS
from tests.minting import Issuer
from tests.patience import PATIENCE_S

EACH = 60
"""Stalled clients of each kind."""


def dialled(gateway: Gateway, held: ExitStack, address: str = "127.0.0.1") -> socket.socket:
    """A connection of a client at this address, closed with `held`."""
    source = (address, 0)
    return held.enter_context(socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S, source_address=source))


def is_closed(client: socket.socket) -> bool:
    """The gateway has closed it, without a word."""
    try:
        client.settimeout(PATIENCE_S)
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def connections(gateway: Gateway) -> dict[str, int]:
    with gateway.admin() as admin:
        found: dict[str, int] = admin.get("/api/connections").json()
    return found


def get(issuer: Issuer) -> bytes:
    return f"GET {SALES} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {issuer.token()}\r\n\r\n".encode()


class TestConnections:
    def test_one_client_has_its_share_and_others_theirs(self, start_gateway: StartGateway, issuer: Issuer) -> None:
        gateway = start_gateway({"MAX_CONNECTIONS_PER_CLIENT": "5"})
        with ExitStack() as held:
            clients = [dialled(gateway, held) for _ in range(5)]
            until(lambda: connections(gateway)["open"] == 5)

            assert [is_closed(dialled(gateway, held)) for _ in range(3)] == [True] * 3

            other = dialled(gateway, held, "127.0.0.2")
            for client in (clients[0], other):
                client.sendall(get(issuer))
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert connections(gateway)["refused"] == 3
            clients.pop().close()
            until(lambda: connections(gateway)["open"] == 5)
            assert gateway.raw(get(issuer)).startswith(b"HTTP/1.1 200 ")

    def test_all_together_have_a_bound_that_leaves_the_admin_port_reachable(
        self, start_gateway: StartGateway, issuer: Issuer
    ) -> None:
        gateway = start_gateway({"MAX_CONNECTIONS": "20"})
        with ExitStack() as held:
            for number in range(20):
                dialled(gateway, held, f"127.0.1.{number + 1}")
            until(lambda: connections(gateway)["open"] == 20)

            assert is_closed(dialled(gateway, held, "127.0.2.1"))

            assert (gateway.status_of("/ready"), connections(gateway)["refused"]) == (200, 1)
        until(lambda: gateway.raw(get(issuer), answers=1).startswith(b"HTTP/1.1 200 "))

    def test_clients_never_take_all_open_files(self, start_gateway: StartGateway, issuer: Issuer) -> None:
        """More connections than files: the surplus is closed, those inside are served, services and admin reached."""
        gateway = start_gateway({"MAX_CONNECTIONS_PER_CLIENT": "10000"}, open_files=400)
        allowed = connections(gateway)["max"]
        assert allowed <= 300
        with ExitStack() as held:
            clients = [dialled(gateway, held) for _ in range(450)]
            until(lambda: connections(gateway)["refused"] == 450 - allowed)

            clients[0].sendall(get(issuer))
            assert clients[0].recv(4096).startswith(b"HTTP/1.1 200 ")
            assert gateway.status_of("/ready") == 200
            assert is_closed(clients[-1])
        until(lambda: connections(gateway)["open"] == 0)
        assert gateway.raw(get(issuer)).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def under_attack(
    start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
) -> Iterator[tuple[Gateway, RecordingUpstream]]:
    settings = {"MAX_REQUEST_BODY_BYTES": "100000000", **NO_LIMITS}
    yield start_gateway(settings), upstream
    upstream.read_on()


class TestMemory:
    def test_stalled_clients_take_little_and_give_it_back(
        self, under_attack: tuple[Gateway, RecordingUpstream], issuer: Issuer
    ) -> None:
        """Three kinds: heads without end, uploads that nobody takes, downloads that nobody reads."""
        gateway, upstream = under_attack
        assert gateway.raw(get(issuer)).startswith(b"HTTP/1.1 200 ")
        before = gateway.rss()

        first = grown_by(gateway, upstream, issuer, before)
        until(lambda: connections(gateway)["open"] == 0)
        second = grown_by(gateway, upstream, issuer, before)
        until(lambda: connections(gateway)["open"] == 0)

        print(f"grown by {first >> 20} MiB, then {second >> 20} MiB")
        assert first < EACH * (15 << 10) + 2 * EACH * (192 << 10)
        assert second < first + (4 << 20)
        assert gateway.raw(get(issuer)).startswith(b"HTTP/1.1 200 ")


def grown_by(gateway: Gateway, upstream: RecordingUpstream, issuer: Issuer, before: int) -> int:
    """By how much memory has grown since `before` while so many clients stall."""
    upstream.reset()
    token = f"Host: a\r\nAuthorization: Bearer {issuer.token()}\r\n".encode()
    with ExitStack() as held:
        for _ in range(EACH):
            dialled(gateway, held).sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * (15 << 10))
        upstream.always(Answer(stop_reading=True))
        piece = bytes(1 << 20)
        for _ in range(EACH):
            client = dialled(gateway, held)
            client.sendall(b"POST %b HTTP/1.1\r\nContent-Length: 90000000\r\n%b\r\n" % (SALES.encode(), token))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(piece)
        until(lambda: len(upstream.requests) == EACH)
        upstream.always(answer(200, bytes(4 << 20)))
        for _ in range(EACH):
            client = dialled(gateway, held)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(get(issuer))
        until(lambda: len(upstream.requests) == 2 * EACH)
        time.sleep(0.5)
        grown = gateway.rss() - before
        upstream.read_on()
    return grown


class TestStalls:
    def test_a_process_that_was_held_up_says_so(self, start_gateway: StartGateway) -> None:
        gateway = start_gateway()
        gateway.signal(signal.SIGSTOP)
        time.sleep(0.5)
        gateway.signal(signal.SIGCONT)

        told = gateway.wait_for_event("reactor.stalled", lambda event: event["longest_ms"] >= 400)

        assert told["level"] == "warning"
        with gateway.admin() as admin:
            lines = admin.get("/metrics").text.splitlines()
        (count,) = [line for line in lines if line.startswith("gateway_reactor_stalls_total ")]
        assert float(count.rpartition(" ")[2]) >= 1
