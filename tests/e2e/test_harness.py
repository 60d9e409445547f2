"""The tools of the end-to-end tests, without a gateway."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.e2e.calling import until
from tests.e2e.harness import Answer, Gateway, RecordingUpstream, answer, clean_environment, is_installed, raw_request
from tests.e2e.wire import answer_end, body_end, chunked_end, unchunked
from tests.patience import PATIENCE_S

GET = b"GET /a?b=%2F HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nX-One:  2 \r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
)


def ask(
    upstream: RecordingUpstream, data: bytes | list[bytes], timeout_s: float = PATIENCE_S, **how: int | None
) -> bytes:
    return raw_request("127.0.0.1", upstream.port, data, timeout_s, **how)


class TestWire:
    @pytest.mark.parametrize(
        "body", [b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"A;x=y\r\n0123456789\r\n0\r\nT: 1\r\nU: 2\r\n\r\n"]
    )
    def test_a_chunked_body_ends_at_its_last_byte_and_not_before(self, body: bytes) -> None:
        assert chunked_end(b"HEAD" + body + b"next", 4) == 4 + len(body)
        assert [chunked_end(body[:cut], 0) for cut in range(len(body))] == [None] * len(body)

    def test_a_chunked_body_gives_what_it_carries(self) -> None:
        assert unchunked(b"3;x\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n") == b"abcde"

    def test_a_promised_length_is_waited_for(self) -> None:
        start = POST.index(b"hello")

        assert body_end(POST, 0, start) == len(POST)
        assert body_end(POST[:-1], 0, start) is None

    @pytest.mark.parametrize(
        ("data", "to_head", "end"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", False, 40),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", False, None),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", True, 38),
            (b"HTTP/1.1 204 No Content\r\n\r\n", False, 27),
            (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", False, None),
            (b"HTTP/1.1 100 Continue\r\n\r\n", False, None),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", False, 52),
        ],
    )
    def test_the_end_of_an_answer(self, data: bytes, to_head: bool, end: int | None) -> None:
        assert answer_end(data, 0, to_head=to_head) == end


class TestRecordingUpstream:
    def test_records_a_request_byte_for_byte_and_answers_json(self, upstream: RecordingUpstream) -> None:
        received = ask(upstream, GET)

        (request,) = upstream.wait_for(1)
        assert request.head == GET
        assert (request.method, request.target, request.body) == ("GET", b"/a?b=%2F", b"")
        assert request.headers == [(b"Host", b"x"), (b"X-One", b"1"), (b"X-One", b"2")]
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert received.endswith(b'{"ok": true}')

    def test_records_bodies_of_both_framings(self, upstream: RecordingUpstream) -> None:
        ask(upstream, POST)
        ask(upstream, CHUNKED)

        plain, chunked = upstream.wait_for(2)
        assert (plain.raw_body, plain.body) == (b"hello", b"hello")
        assert chunked.raw_body == CHUNKED.split(b"\r\n\r\n", 1)[1]
        assert chunked.body == b"abcde"

    def test_pipelined_requests_come_on_one_connection(self, upstream: RecordingUpstream) -> None:
        received = ask(upstream, POST + CHUNKED + GET, answers=3)

        assert received.count(b"HTTP/1.1 200") == 3
        assert [request.connection for request in upstream.requests] == [1, 1, 1]
        assert upstream.connections == 1

    def test_scripted_answers_are_given_in_order_then_the_default(self, upstream: RecordingUpstream) -> None:
        upstream.next(answer(201, b"one"), lambda request: answer(202, request.target))

        bodies = [ask(upstream, GET).rpartition(b"\r\n\r\n")[2] for _ in range(3)]

        assert bodies == [b"one", b"/a?b=%2F", b'{"ok": true}']

    def test_a_probe_takes_no_scripted_answer(self, upstream: RecordingUpstream) -> None:
        upstream.next(answer(500, b"scripted"))

        probed = ask(upstream, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")

        assert probed.startswith(b"HTTP/1.1 200")
        assert (len(upstream.probes), upstream.requests) == (1, [])
        assert ask(upstream, GET).endswith(b"scripted")

    def test_a_delayed_answer_is_late(self, upstream: RecordingUpstream) -> None:
        upstream.next(answer(delay_s=0.2))
        began = time.monotonic()

        ask(upstream, GET)

        assert time.monotonic() - began >= 0.2

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_cut_answer_ends_where_told(self, upstream: RecordingUpstream, reset: bool) -> None:
        upstream.next(
            Answer(pieces=(b"HTTP/1.1 200 OK\r\nContent-", b"Length: 9\r\n\r\nabc"), cut_after=30, reset=reset)
        )

        received = ask(upstream, GET)

        assert received in (
            {b"HTTP/1.1 200 OK\r\nContent-Lengt", b""} if reset else {b"HTTP/1.1 200 OK\r\nContent-Lengt"}
        )

    def test_a_closing_answer_is_whole_and_closes(self, upstream: RecordingUpstream) -> None:
        upstream.next(answer(200, b"bye", close=True))

        assert ask(upstream, GET, answers=None).endswith(b"bye")

    def test_a_peer_that_leaves_is_noticed_while_no_answer_comes(self, upstream: RecordingUpstream) -> None:
        upstream.next(Answer(never=True))

        with pytest.raises(TimeoutError):
            ask(upstream, GET, 0.5)

        (request,) = upstream.wait_for(1)
        assert request.left.wait(PATIENCE_S)

    def test_a_peer_that_stays_has_not_left(self, upstream: RecordingUpstream) -> None:
        ask(upstream, GET)

        assert not upstream.requests[0].left.is_set()

    def test_an_early_answer_comes_before_the_body(self, upstream: RecordingUpstream) -> None:
        upstream.next(answer(413, b"{}", early=True))

        received = ask(upstream, POST.removesuffix(b"hello"))

        assert received.startswith(b"HTTP/1.1 413")

    def test_a_service_that_stops_reading_fills_the_senders_buffers(self, upstream: RecordingUpstream) -> None:
        upstream.next(Answer(stop_reading=True, pieces=answer(200).pieces))
        size = 64 << 20
        with socket.create_connection(("127.0.0.1", upstream.port), PATIENCE_S) as sock:
            sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                sock.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))

            until(lambda: upstream.requests)
            assert upstream.requests[0].raw_body == b""
            assert not upstream.requests[0].complete

    def test_a_service_that_reads_on_answers(self, upstream: RecordingUpstream) -> None:
        upstream.next(Answer(stop_reading=True, pieces=answer(200).pieces))
        upstream.read_on()

        assert ask(upstream, POST).startswith(b"HTTP/1.1 200")

    def test_a_stopped_service_refuses_and_a_started_one_is_back(self, upstream: RecordingUpstream) -> None:
        with socket.create_connection(("127.0.0.1", upstream.port), PATIENCE_S) as kept:
            ask(upstream, GET)
            upstream.stop()
            assert kept.recv(1) == b""

        with pytest.raises(ConnectionRefusedError):
            ask(upstream, GET)

        upstream.start()
        assert ask(upstream, GET).startswith(b"HTTP/1.1 200")

    def test_waiting_for_requests_has_an_end(self, upstream: RecordingUpstream) -> None:
        with pytest.raises(TimeoutError, match="1 requests expected"):
            upstream.wait_for(1, 0.05)

    def test_a_head_request_gets_no_body(self, upstream: RecordingUpstream) -> None:
        assert ask(upstream, GET.replace(b"GET", b"HEAD")).endswith(b"\r\n\r\n")


class TestRawRequest:
    def test_pieces_are_sent_one_by_one(self, upstream: RecordingUpstream) -> None:
        received = ask(upstream, [GET[:10], GET[10:]])

        assert received.startswith(b"HTTP/1.1 200")
        assert upstream.requests[0].head == GET

    def test_a_timeout_tells_what_was_received(self, upstream: RecordingUpstream) -> None:
        upstream.next(Answer(pieces=(b"HTTP/1.1 200 OK\r\n",)))

        with pytest.raises(TimeoutError, match="200 OK"):
            ask(upstream, GET, 1.0)


class StandIn(Gateway):
    """A Gateway whose process is a small program of the test's."""

    def __init__(self, program: str, **options: float | None) -> None:
        super().__init__({}, **options)  # type: ignore[arg-type]
        self._command = [sys.executable, "-c", program, str(self.admin_port)]


READY = """
import http.server, signal, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Ready)
server.daemon_threads = True
signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT))
print('{"event": "gateway.ready", "level": "info"}')
PRINT
server.serve_forever()
"""


def program(exit_code: int = 0, printed: str = "") -> str:
    return READY.replace("EXIT", str(exit_code)).replace("PRINT", f"print({printed!r})" if printed else "")


def printing(gateway: Gateway, number: int) -> threading.Thread:
    """As if its process printed an event."""
    process = SimpleNamespace(stdout=io.StringIO(json.dumps({"event": "told", "number": number}) + "\n"))
    thread = threading.Thread(target=gateway._read, args=[process])
    thread.start()
    return thread


class TestGateway:
    def test_runs_outside_the_repository_until_terminated(self) -> None:
        with StandIn(program()) as gateway:
            folder = Path(f"/proc/{gateway.pid}/cwd").resolve()
            assert folder == gateway.folder
            assert gateway.rss() > 1 << 20
            assert gateway.wait_for_event("gateway.ready")["level"] == "info"

        assert gateway.process.returncode == 0
        assert not folder.exists()

    def test_a_running_gateway_is_not_started_again(self) -> None:
        with StandIn(program()) as gateway, pytest.raises(RuntimeError, match="already started"):
            gateway.start()

    def test_another_exit_status_fails_the_test(self) -> None:
        with pytest.raises(AssertionError, match="exit status 3"), StandIn(program(exit_code=3)):
            pass

    def test_an_expected_exit_status_does_not(self) -> None:
        with StandIn(program(exit_code=3), expect_exit=3) as gateway:
            assert gateway.terminate() == 3

    @pytest.mark.parametrize(
        "line",
        [
            "Unhandled error in Deferred:",
            "Traceback (most recent call last):",
            '{"level": "critical", "event": "twisted.failure"}',
            '{"level": "error", "event": "request.crashed", "exception": []}',
        ],
    )
    def test_a_fault_in_the_log_fails_the_test(self, line: str) -> None:
        with pytest.raises(AssertionError, match="faults in the log"), StandIn(program(printed=line)) as gateway:
            gateway.wait_for_event("gateway.ready")

        with StandIn(program(printed=line), allow_faults=True):
            pass

    def test_an_event_that_comes_while_those_before_are_looked_at_is_found(self) -> None:
        gateway = Gateway({})
        readers = []

        def suits(event: dict[str, Any]) -> bool:
            if event["number"] == 1:
                readers.append(printing(gateway, 2))
                readers[0].join(0.2)  # it is done by then, if it may
            return event["number"] == 2

        printing(gateway, 1).join()

        assert gateway.wait_for_event("told", suits, timeout_s=2)["number"] == 2

    def test_a_gateway_that_ends_before_it_is_ready_shows_its_output(self) -> None:
        with (
            pytest.raises(AssertionError, match=r"ended with 1:\nno such key"),
            StandIn("raise SystemExit('no such key')"),
        ):
            pass

    def test_a_gateway_that_never_becomes_ready_is_killed(self) -> None:
        gateway = StandIn("import time; time.sleep(60)", ready_s=0.2)

        with pytest.raises(AssertionError, match="not ready after"):
            gateway.__enter__()

        assert gateway.process.returncode == -signal.SIGKILL

    def test_a_killed_gateway_is_no_failure(self) -> None:
        with StandIn(program()) as gateway:
            gateway.kill()

        assert gateway.process.returncode == -signal.SIGKILL

    def test_the_failure_of_the_test_itself_is_what_is_seen(self) -> None:
        with pytest.raises(KeyError), StandIn(program(exit_code=3)):
            raise KeyError

    def test_settings_of_the_caller_do_not_leak_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REDIS_HOST", "elsewhere")
        gateway = StandIn("import os; print(sorted(os.environ))", expect_exit=None)

        gateway.start(wait=False).wait()

        assert "'ADMIN_TOKEN'" in gateway.output
        assert "REDIS_HOST" not in gateway.output

    def test_a_path_for_modules_is_added_to_what_the_gateway_needs(self, tmp_path: Path) -> None:
        needed = clean_environment({}, tmp_path).get("PYTHONPATH")

        given = clean_environment({"PYTHONPATH": "/mine"}, tmp_path)["PYTHONPATH"]

        assert given.split(":") == ["/mine", *([needed] if needed else [])]

    def test_only_what_lies_outside_the_checkout_makes_the_package_installed(self, tmp_path: Path) -> None:
        checkout, site = tmp_path / "checkout", tmp_path / "site-packages"
        places = [str(checkout), str(site)]
        for folder in (checkout / "bakerygw.egg-info", site):
            folder.mkdir(parents=True)
        (checkout / "bakerygw.egg-info" / "PKG-INFO").write_text("Name: bakerygw\nVersion: 1\n", encoding="utf-8")
        assert not is_installed(places, checkout)

        (site / "bakerygw-1.dist-info").mkdir()

        assert is_installed(places, checkout)


def test_twistd_stands_beside_the_interpreter() -> None:
    done = subprocess.run([Path(sys.executable).with_name("twistd"), "--version"], capture_output=True, check=False)

    assert done.returncode == 0
