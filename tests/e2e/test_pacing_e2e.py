"""Bodies move at the reader's pace, whoever reads, and end when either side leaves."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.e2e.calling import until
from tests.e2e.harness import Answer, answer
from tests.e2e.stage import Received, Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

SIZE = 50 << 20
MAY_GROW = 16 << 20


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, {"MAX_REQUEST_BODY_BYTES": str(2 * SIZE)}, services=("sales", "orders")) as it:
        yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    return shared_stage


def dialled(stage: Stage) -> socket.socket:
    return socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S)


def post(stage: Stage, size: int) -> bytes:
    return stage.head(b"/api/v1/sales/upload", (b"Content-Length", b"%d" % size), method=b"POST")


def download(stage: Stage) -> None:
    """Answer the next request with a large body."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE
    stage.upstream.next(Answer(pieces=(head, bytes(SIZE))))


def push(client: socket.socket, size: int) -> int:
    """Send up to `size` bytes until the other side takes no more for half a second; how many it took."""
    client.settimeout(0.5)
    sent, piece = 0, bytes(1 << 18)
    try:
        while sent < size:
            sent += client.send(piece[: size - sent])
    except TimeoutError:
        pass
    return sent


class TestMemory:
    def test_a_slow_reader_leaves_a_download_with_its_service(self, stage: Stage) -> None:
        stage.get()
        before = stage.gateway.rss()
        download(stage)
        with dialled(stage) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.sendall(stage.head())
            first = client.recv(1000)
            time.sleep(1)
            grown = stage.gateway.rss() - before
            assert stage.get(b"/api/v1/orders/1").status == 200

            received = len(first)
            while received < SIZE:
                received += len(client.recv(1 << 20))
                assert stage.gateway.rss() - before < MAY_GROW

        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        assert grown < MAY_GROW

    def test_a_stalled_service_leaves_an_upload_with_its_client(self, stage: Stage) -> None:
        stage.get()
        before = stage.gateway.rss()
        stage.upstream.next(Answer(stop_reading=True, pieces=answer(200).pieces))
        with dialled(stage) as client:
            client.sendall(post(stage, SIZE))
            until(lambda: stage.upstream.requests)

            sent = push(client, SIZE)

            assert sent < SIZE
            assert stage.gateway.rss() - before < MAY_GROW
            assert stage.get(b"/api/v1/orders/1").status == 200

            stage.upstream.read_on()
            client.settimeout(2 * PATIENCE_S)
            client.sendall(bytes(SIZE - sent))
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        assert stage.gateway.rss() - before < MAY_GROW


class TestClientsThatLeave:
    def test_a_waiting_request_ends_at_its_service(self, stage: Stage) -> None:
        stage.upstream.next(Answer(never=True))
        with dialled(stage) as client:
            client.sendall(stage.head(b"/api/v1/sales/left"))
            (request,) = stage.upstream.wait_for(1)

        assert request.left.wait(PATIENCE_S)
        done = stage.gateway.wait_for_event("request.done", lambda event: event["path"] == "/api/v1/sales/left")
        assert (done["status"], done["reason"]) == (499, "client-left")

    @pytest.mark.parametrize("reset", [False, True])
    def test_so_it_does_with_more_behind_it_than_is_read_ahead(self, stage: Stage, reset: bool) -> None:
        stage.upstream.next(Answer(never=True))
        path = b"/api/v1/sales/left-%d" % reset
        with dialled(stage) as client:
            client.sendall(stage.head(path))
            (request,) = stage.upstream.wait_for(1)
            client.sendall(stage.head(b"/api/v1/sales/behind") * 40)
            time.sleep(0.1)  # until the gateway has paused the socket
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        assert request.left.wait(PATIENCE_S)
        done = stage.gateway.wait_for_event("request.done", lambda event: event["path"] == path.decode())
        assert (done["status"], done["reason"]) == (499, "client-left")

    def test_an_upload_that_its_service_does_not_read_ends_too(self, stage: Stage) -> None:
        stage.upstream.next(Answer(stop_reading=True, pieces=answer(200).pieces))
        with dialled(stage) as client:
            client.settimeout(0.5)
            client.sendall(post(stage, SIZE))
            push(client, SIZE)

        stage.gateway.wait_for_event("request.done", lambda event: event.get("reason") == "client-left")
        stage.upstream.read_on()

    def test_a_download_ends_at_its_service(self, stage: Stage) -> None:
        download(stage)
        with dialled(stage) as client:
            client.sendall(stage.head())
            client.recv(1000)
            (request,) = stage.upstream.wait_for(1)
            assert not request.left.is_set()

        assert request.left.wait(PATIENCE_S)

    def test_an_upload_ends_at_its_service_unfinished(self, stage: Stage) -> None:
        with dialled(stage) as client:
            client.sendall(post(stage, SIZE) + bytes(100_000))
            until(lambda: stage.upstream.requests and stage.upstream.requests[0].raw_body)

        (request,) = stage.upstream.requests
        assert request.left.wait(PATIENCE_S)
        assert not request.complete

    def test_a_stalled_upload_ends_too(self, stage: Stage) -> None:
        stage.upstream.next(Answer(stop_reading=True, pieces=answer(200).pieces))
        with dialled(stage) as client:
            client.sendall(post(stage, SIZE))
            until(lambda: stage.upstream.requests)
            push(client, SIZE)
        connections = stage.upstream.open_connections

        stage.upstream.read_on()

        until(lambda: stage.upstream.open_connections < connections or stage.upstream.requests[0].left.is_set())
        assert not stage.upstream.requests[0].complete


class TestEarlyAnswers:
    def test_an_answer_during_an_upload_is_given_and_ends_both_connections(self, stage: Stage) -> None:
        stage.upstream.next(answer(413, b'{"too": "large"}', early=True))
        with dialled(stage) as client:
            client.sendall(post(stage, SIZE))
            received = b"".join(iter(lambda: client.recv(65536), b""))

        (request,) = stage.upstream.requests
        told = Received(received)
        assert (told.status, json.loads(told.body), told.rest) == (413, {"too": "large"}, b"")
        assert request.left.wait(PATIENCE_S)
        assert not request.complete
        assert stage.get().status == 200

    def test_the_client_sees_it_while_it_goes_on_sending(self, stage: Stage) -> None:
        stage.upstream.next(answer(403, b"no", early=True))

        received = stage.ask([post(stage, 4 << 20), *[bytes(1 << 20)] * 4], answers=None)

        assert (received.status, received.body) == (403, b"no")

    @pytest.mark.parametrize("complete", [False, True])
    def test_no_byte_of_that_upload_becomes_another_request(self, stage: Stage, complete: bool) -> None:
        hidden = stage.head(b"/api/v1/sales/smuggled")
        stage.upstream.next(answer(200, b"done", early=True))

        stage.ask([post(stage, len(hidden) + (not complete)), hidden], answers=None if not complete else 1)

        assert [request.target for request in stage.arrived()] == [b"/api/v1/sales/upload"]


class TestStreams:
    def test_pieces_pass_as_they_come(self, stage: Stage) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        stage.upstream.next(Answer(pieces=(head + b"3\r\none\r\n", b"3\r\ntwo\r\n0\r\n\r\n"), between_s=20))
        with dialled(stage) as client:
            client.sendall(stage.head())
            seen = b""
            while b"one" not in seen:
                seen += client.recv(4096)

        assert b"two" not in seen
        # The service says nothing for long after that, and still learns at once that its client has left.
        assert stage.upstream.requests[0].left.wait(10)

    def test_an_upload_reaches_its_service_while_it_is_sent(self, stage: Stage) -> None:
        with dialled(stage) as client:
            client.sendall(post(stage, 6) + b"one")
            until(lambda: stage.upstream.requests and stage.upstream.requests[0].raw_body == b"one")
            client.sendall(b"two")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")

        assert stage.upstream.requests[0].body == b"onetwo"
