"""Request smuggling, case by case: no second request reaches a service, and the connection ends, however it is cut."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.calling import until
from tests.e2e.harness import raw_request
from tests.e2e.stage import Received, Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

MAX_BODY = 100_000
LINGERS_S = 2.0
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, {"MAX_REQUEST_BODY_BYTES": str(MAX_BODY)}, services=("sales",)) as it:
        yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    return shared_stage


def hidden(stage: Stage) -> bytes:
    """A whole good request."""
    return stage.head(b"/api/v1/sales/smuggled")


def post(stage: Stage, *lines: bytes, end: bytes = b"\r\n") -> bytes:
    """The head of a good POST with these lines, each with this line end."""
    good = stage.head(b"/api/v1/sales/first", method=b"POST")[:-2]
    return good + b"".join(line + end for line in lines) + b"\r\n"


def classics(stage: Stage) -> dict[str, bytes]:
    """Streams that two servers have read in two ways. Each holds a whole good request, or the beginning of one."""
    evil, size = hidden(stage), b"%x" % len(hidden(stage))
    chunk = size + b"\r\n" + evil + b"\r\n0\r\n\r\n"
    return {
        "CL.TE": post(stage, b"Content-Length: %d" % (5 + len(evil)), CHUNKED) + b"0\r\n\r\n" + evil,
        "CL.TE with a stub": post(stage, b"Content-Length: 6", CHUNKED) + b"0\r\n\r\nG" + evil[1:],
        "TE.CL": post(stage, CHUNKED, b"Content-Length: %d" % (len(size) + 2)) + chunk,
        "TE.TE, the second odd": post(stage, CHUNKED, b"Transfer-Encoding: x") + b"0\r\n\r\n" + evil,
        "TE.TE, the first odd": post(stage, b"Transfer-Encoding: x", CHUNKED) + chunk,
        "TE.TE, in one list": post(stage, b"Transfer-Encoding: x, chunked") + b"0\r\n\r\n" + evil,
        "TE.TE, chunked not last": post(stage, b"Transfer-Encoding: chunked, x") + b"0\r\n\r\n" + evil,
        "TE.0 as identity": post(stage, b"Transfer-Encoding: identity") + chunk,
        "CL.0": post(stage, b"Content-Length: %d" % len(evil), b"Content-Length: 0") + evil,
        "0.CL": post(stage, b"Content-Length: 0", b"Content-Length: %d" % len(evil)) + evil,
        "the same CL twice": post(stage, b"Content-Length: 0", b"Content-Length: 0") + evil,
        "list of lengths": post(stage, b"Content-Length: 0, %d" % len(evil)) + evil,
        "plus": post(stage, b"Content-Length: +%d" % len(evil)) + evil,
        "minus": post(stage, b"Content-Length: -%d" % len(evil)) + evil,
        "hexadecimal": post(stage, b"Content-Length: 0x%x" % len(evil)) + evil,
        "space in a length": post(stage, b"Content-Length: 0 %d" % len(evil)) + evil,
        "length of 19 digits": post(stage, b"Content-Length: 1000000000000000000") + evil,
        "a length and its shadow": post(stage, b"Content-Length : %d" % len(evil), b"Content-Length: 0") + evil,
        "TE behind a space": post(stage, b"Content-Length: %d" % (5 + len(evil)), b" " + CHUNKED) + b"0\r\n\r\n" + evil,
        "TE before a space": post(stage, b"Transfer-Encoding : chunked") + b"0\r\n\r\n" + evil,
        "TE with a tab behind": post(stage, CHUNKED + b"\t") + b"0\r\n\r\n" + evil,
        "TE with VT": post(stage, b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n" + evil,
        "TE in quotes": post(stage, b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n" + evil,
        "TE folded": post(stage, b"Transfer-Encoding:\r\n chunked") + b"0\r\n\r\n" + evil,
        "TE behind a fold": post(stage, b"X: y\r\n " + CHUNKED) + chunk,
        "TE behind a bare LF": post(stage, b"X: y\n" + CHUNKED) + chunk,
        "TE behind a bare CR": post(stage, b"X: y\r" + CHUNKED) + chunk,
        "TE behind NUL": post(stage, b"X: y\0" + CHUNKED) + chunk,
        "CR in a value": post(stage, b"X: a\rb") + evil,
        "NUL in a value": post(stage, b"X: a\0b") + evil,
        "NUL in a name": post(stage, b"X\0: a") + evil,
        "bare LF line ends": post(stage, b"Content-Length: 0", end=b"\n") + evil,
        "bare LF behind the request line": hidden(stage).replace(b"\r\n", b"\n", 1) + evil,
        "bare LF head": hidden(stage).replace(b"\r\n", b"\n") + evil,
        "TE in HTTP/1.0": post(stage, CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n" + evil,
        "chunk of -1": post(stage, CHUNKED) + b"-1\r\n" + evil,
        "chunk of 0x0": post(stage, CHUNKED) + b"0x0\r\n\r\n" + evil,
        "chunk of 2**64": post(stage, CHUNKED) + b"10000000000000000\r\n" + evil,
        "chunk that wraps to 0": post(stage, CHUNKED) + b"100000000000000000\r\n\r\n" + evil,
        "chunk of 2**63": post(stage, CHUNKED) + b"8000000000000000\r\n" + evil + bytes(MAX_BODY),
        "chunk without end": post(stage, CHUNKED) + b"3\r\nabc" + evil,
        "chunk size behind a bare LF": post(stage, CHUNKED) + b"3\nabc\r\n0\r\n\r\n" + evil,
        "chunk extension with a bare LF": post(stage, CHUNKED) + b"3;x\nabc\r\n0\r\n\r\n" + evil,
        "chunk extension with a bare CR": post(stage, CHUNKED) + b"0;x\r\r\n\r\n" + evil,
        "chunk extension without end": post(stage, CHUNKED) + b"3;" + b"x" * 40_000 + evil,
        "last chunk without its line": post(stage, CHUNKED) + b"0\r\n" + evil[:40] + b"\0" + evil,
        "framing in a trailer": post(stage, CHUNKED) + b"0\r\nContent-Length: 3\r\n\r\n" + evil,
    }


CASES = list(classics(Stage(None, {}, Issuer(algorithm="EdDSA"))))  # type: ignore[arg-type]  # for the names alone


def cuts(data: bytes, marker: bytes) -> list[list[bytes]]:
    """Whole; behind the head; within the framing; and where the hidden request begins."""
    end = data.find(b"\r\n\r\n") + 4
    begins = data.rfind(marker)
    places = {place for place in (end - 3, end, end + 1, begins, begins + 9) if 0 < place < len(data)}
    return [[data], *([data[:place], data[place:]] for place in sorted(places))]


@pytest.mark.parametrize("name", CASES)
def test_a_classic_is_refused_alone_and_ends_the_connection(stage: Stage, name: str) -> None:
    streams = cuts(classics(stage)[name], b"GET /api/v1/sales/smuggled")

    def answer_to(pieces: list[bytes]) -> bytes:
        return raw_request("127.0.0.1", stage.gateway.port, [*pieces, hidden(stage)], answers=None, pause_s=0.02)

    with ThreadPoolExecutor(len(streams)) as pool:
        answers = list(pool.map(answer_to, streams))

    for raw in answers:
        received = Received(raw)
        assert (received.status, received.rest) == (413 if "2**63" in name else 400, b"")
        assert received.values("connection") == [b"close"]
        assert json.loads(received.body)["code"] in ("bad-request", "body-too-large")
    assert [request.target for request in stage.arrived() if request.complete] == []
    assert {request.target for request in stage.upstream.requests} <= {b"/api/v1/sales/first", b"/api/v1/sales/fence"}


def test_refusals_are_counted_and_logged_with_their_cause(stage: Stage) -> None:
    def counted() -> float:
        with stage.gateway.admin() as admin:
            lines = admin.get("/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith('gateway_refused_total{reason="b')
        )

    before = counted()
    received = stage.ask(classics(stage)["CL.TE"], answers=None)

    (request_id,) = received.values("x-request-id")
    assert counted() == before + 1
    done = stage.gateway.wait_for_event("request.done", lambda event: event["request_id"] == request_id.decode())
    assert (done["route"], done["status"], done["reason"]) == ("(unreadable)", 400, "bad-request")
    assert done["cause"]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_where_none_is_expected_goes_along_and_is_no_request(stage: Stage, method: bytes, chunked: bool) -> None:
    evil = hidden(stage)
    framing = (b"Transfer-Encoding", b"chunked") if chunked else (b"Content-Length", b"%d" % len(evil))
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(evil), evil) if chunked else evil

    assert stage.ask(stage.head(b"/api/v1/sales/first", framing, method=method) + body).status == 200

    (request,) = stage.arrived()
    assert (request.method, request.target, request.body) == (method.decode(), b"/api/v1/sales/first", evil)
    assert len(request.values("content-length") + request.values("transfer-encoding")) == 1


def test_empty_lines_before_a_request_are_none(stage: Stage) -> None:
    assert stage.ask(b"\r\n\r\n" + stage.head(b"/api/v1/sales/first")).status == 200

    assert [request.target for request in stage.arrived()] == [b"/api/v1/sales/first"]


def test_a_client_that_never_closes_is_closed_whatever_stands_behind_its_refused_request(stage: Stage) -> None:
    """A refusal lingers for a moment, and no longer for requests that are not read any more."""
    over = b"%x\r\n" % MAX_BODY + bytes(MAX_BODY) + b"\r\n0\r\n\r\n"
    begun = post(stage, CHUNKED) + b"1\r\nx\r\n"
    refusals = [(begun, over + hidden(stage) * 3), (begun, over + hidden(stage)[:-9]), (b"", classics(stage)["CL.TE"])]

    def ends_after(pieces: tuple[bytes, bytes]) -> float:
        with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
            client.sendall(pieces[0])
            until(lambda: len(stage.upstream.requests) == 2)  # the service takes the bodies as they come
            client.sendall(pieces[1])
            while client.recv(65536):
                pass
            began = time.monotonic()
            with contextlib.suppress(OSError):  # writing to a connection that the other side has left fails
                while time.monotonic() - began < 8 * LINGERS_S:
                    client.sendall(b"x")
                    time.sleep(0.1)
            return time.monotonic() - began

    with ThreadPoolExecutor(len(refusals)) as pool:
        seconds = list(pool.map(ends_after, refusals))

    assert max(seconds) < 5 * LINGERS_S
    assert [request.target for request in stage.arrived() if request.complete] == []
