"""Training over WebSocket, through real gateways to a real service."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import closing as closed
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.calling import until
from tests.e2e.harness import Gateway, free_ports
from tests.e2e.sockets import PATH, FalseService, RawSocket, TrainingService
from tests.e2e.stage import NO_LIMITS
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, closing, frame
from tests.minting import TENANT_ID, USER_ID, Issuer
from tests.patience import PATIENCE_S

MIB = 1024 * 1024
ORIGIN = "https://app.example"


@dataclass
class Stage:
    gateway: Gateway
    service: TrainingService
    issuer: Issuer
    token: str

    def connect(self, query: str = "", **options: Any) -> ClientConnection:
        """A client of another make, signed in."""
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return connect(
            f"ws://127.0.0.1:{self.gateway.port}{PATH}{query}",
            legacy=True,
            additional_headers=headers,
            max_size=None,
            compression=None,
            **options,
        )

    def raw(self, query: str = "", *fields: tuple[str, str], behind: bytes = b"") -> RawSocket:
        """A client that has the token in its header, unless one is named elsewhere."""
        elsewhere = "oken=" in query or any("bearer" in value for _, value in fields)
        return RawSocket(self.gateway.port, "" if elsewhere else self.token, query, *fields, behind=behind)

    def done(self) -> dict[str, Any]:
        """The last line about a request."""
        return self.gateway.events("request.done")[-1]

    def ended(self) -> dict[str, Any]:
        """The line about the last socket, once it is there."""
        return until(lambda: [it for it in self.gateway.events("request.done") if "close_code" in it][self.seen :])[-1]

    seen = 0


@pytest.fixture(scope="module")
def shared(issuer: Issuer) -> Iterator[Stage]:
    with TrainingService() as service:
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "TRAINING_SERVICE_URL": service.url,
            "CORS_ORIGINS": ORIGIN,
            "WS_MAX_PER_USER": "1000",
            **NO_LIMITS,
        }
        with Gateway(settings) as gateway:
            yield Stage(gateway, service, issuer, issuer.token())


def metrics(gateway: Gateway) -> list[str]:
    with gateway.admin() as admin:
        return admin.get("/metrics").text.splitlines()


def open_sockets(gateway: Gateway) -> str:
    """As the metric tells it."""
    return next(line for line in metrics(gateway) if line.startswith("gateway_ws_connections ")).split()[1]


@pytest.fixture
def stage(shared: Stage) -> Stage:
    shared.service.reset()
    until(lambda: open_sockets(shared.gateway) == "0.0")
    with shared.gateway.client() as client:  # whose line is behind those of the sockets before
        last = client.get("/health").headers["x-request-id"]
    shared.gateway.wait_for_event("request.done", lambda it: it["request_id"] == last)
    shared.seen = len([it for it in shared.gateway.events("request.done") if "close_code" in it])
    return shared


class TestMessages:
    @pytest.mark.parametrize("message", ["grüße", b"\x00\xff", "", b"", "x" * 125, "x" * 126, b"x" * 65536, b"x" * MIB])
    def test_pass_as_they_are(self, stage: Stage, message: str | bytes) -> None:
        with stage.connect() as client:
            client.send(message)
            assert client.recv(PATIENCE_S) == message

    def test_keep_their_order_and_their_bounds(self, stage: Stage) -> None:
        sent = [bytes([number % 256]) * (number * 37 % 3000) for number in range(300)]
        with stage.connect() as client:
            for message in sent:
                client.send(message)
            assert [client.recv(PATIENCE_S) for _ in sent] == sent
        ended = stage.ended()
        assert (ended["messages_in"], ended["messages_out"], ended["status"]) == (300, 300, 101)
        assert ended["bytes_in"] > sum(map(len, sent)) < ended["bytes_out"]

    def test_fragments_arrive_as_one_message_with_pings_between_them(self, stage: Stage) -> None:
        with stage.raw() as client:
            client.send(frame(TEXT, b"\xc3", fin=False) + frame(PING, b"now?") + frame(CONTINUATION, b"\xa9", fin=True))
            assert client.receive() == (PONG, b"now?")
            assert client.receive() == (TEXT, "é".encode())

    def test_what_comes_with_the_handshake_is_not_lost(self, stage: Stage) -> None:
        with stage.raw(behind=frame(TEXT, b"early") + frame(BINARY, b"bird")) as client:
            assert (client.receive(), client.receive()) == ((TEXT, b"early"), (BINARY, b"bird"))

    def test_nothing_is_compressed(self, stage: Stage) -> None:
        with stage.raw("", ("Sec-WebSocket-Extensions", "permessage-deflate")) as client:
            assert (client.status, b"Extensions" in client.head) == (101, False)
        assert "Sec-WebSocket-Extensions" not in stage.service.requests[0].headers


class TestClosing:
    @pytest.mark.parametrize(
        ("code", "reason"), [(1000, ""), (1001, "tab"), (1011, "x"), (3000, "é"), (4999, "r" * 123)]
    )
    def test_the_clients_code_reaches_the_service(self, stage: Stage, code: int, reason: str) -> None:
        with stage.raw(behind=closing(code, reason.encode())) as client:
            assert client.end(answer=False) == (code, reason.encode())
        assert until(lambda: stage.service.closes) == [(code, reason)]
        ended = stage.ended()
        assert (ended["close_code"], ended["closed_by"]) == (code, "client")

    @pytest.mark.parametrize(
        ("code", "reason"), [(1000, ""), (1001, "gone"), (1012, "soon"), (1014, "up"), (3999, "é"), (4000, "r" * 123)]
    )
    def test_the_services_code_reaches_the_client(self, stage: Stage, code: int, reason: str) -> None:
        with stage.raw(f"?close={code}&reason={reason.replace('é', '%C3%A9')}") as client:
            assert client.end() == (code, reason.encode())
        ended = stage.ended()
        assert (ended["close_code"], ended["closed_by"]) == (code, "service")

    def test_a_close_without_a_code_stays_without(self, stage: Stage) -> None:
        with stage.raw(behind=frame(CLOSE)) as client:
            assert client.end(answer=False) == (None, b"")
        assert until(lambda: stage.service.closes) == [(1005, "")]
        assert stage.ended()["close_code"] == 1005

    def test_a_client_that_is_lost_is_1001_to_the_service_at_once(self, stage: Stage) -> None:
        client = stage.raw(behind=frame(TEXT, b"here"))
        assert client.receive() == (TEXT, b"here")
        client.reset()
        assert until(lambda: stage.service.closes) == [(1001, "")]
        ended = stage.ended()
        assert (ended["close_code"], ended["closed_by"], ended["reason"]) == (1006, "client", "client-left")

    def test_a_service_that_is_lost_is_1011_to_the_client(self, stage: Stage) -> None:
        with stage.raw(behind=frame(TEXT, b"here")) as client:
            assert client.receive() == (TEXT, b"here")
            stage.service.kill()
            assert client.end() == (1011, b"the service was lost")
        ended = stage.ended()
        assert (ended["close_code"], ended["closed_by"]) == (1006, "service")

    def test_metrics_count_sockets_messages_and_codes(self, stage: Stage) -> None:
        with stage.raw(behind=frame(TEXT, b"x") + closing(4321)) as client:
            client.end(answer=False)
        until(lambda: stage.service.closes)
        until(lambda: open_sockets(stage.gateway) == "0.0")
        lines = metrics(stage.gateway)
        found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("gateway_ws_"))
        assert float(found['gateway_ws_closes_total{code="4xxx"}']) >= 1
        assert float(found['gateway_ws_messages_total{direction="in"}']) >= 1
        assert not [line for line in lines if "4321" in line]


FAULTS = [
    ("reserved bits", frame(TEXT, b"x", rsv=4), 1002),
    ("unmasked", frame(TEXT, b"x", masked=False), 1002),
    ("opcode 3", frame(3, b"x"), 1002),
    ("opcode 11", frame(11, b"x"), 1002),
    ("long ping", frame(PING, b"x" * 126), 1002),
    ("ping in fragments", frame(PING, b"x", fin=False), 1002),
    ("continuation of nothing", frame(CONTINUATION, b"x"), 1002),
    ("new message inside another", frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    ("close with one byte", frame(CLOSE, b"x"), 1002),
    ("close code 1005", closing(1005), 1002),
    ("close code 999", closing(999), 1002),
    ("close code 2999", closing(2999), 1002),
    ("close code 5000", closing(5000), 1002),
    ("reason not UTF-8", closing(1000, b"\xff"), 1007),
    ("text not UTF-8", frame(TEXT, b"\xff\xfe"), 1007),
    ("text ends within a character", frame(TEXT, b"\xc3"), 1007),
    ("surrogate", frame(TEXT, b"\xed\xa0\x80"), 1007),
    ("1 MiB and a byte", frame(BINARY, bytes(MIB + 1)), 1009),
    ("1 MiB and a byte in fragments", frame(BINARY, bytes(MIB), fin=False) + frame(CONTINUATION, b"x"), 1009),
    ("a frame of 2^62 bytes", b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4), 1009),
]


class TestFaults:
    @pytest.mark.parametrize(("sent", "code"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
    def test_a_client_that_breaks_the_rules_is_told_which(self, stage: Stage, sent: bytes, code: int) -> None:
        with stage.raw(behind=frame(TEXT, b"fine")) as client:
            assert client.receive() == (TEXT, b"fine")
            client.send(sent)
            assert client.end()[0] == code
        assert until(lambda: stage.service.closes) == [(1001, "")]
        ended = stage.ended()
        assert (ended["close_code"], ended["closed_by"], ended["messages_in"]) == (code, "gateway", 1)

    def test_a_message_of_the_service_that_is_too_large_is_1009_to_both(self, stage: Stage) -> None:
        with stage.raw(f"?big={MIB + 1}") as client:
            assert client.end()[0] == 1009
        assert until(lambda: stage.service.closes)[0][0] == 1009


class TestHandshake:
    def test_the_service_gets_query_and_headers_less_what_is_the_gateways(self, stage: Stage) -> None:
        query = f"?a=%20b&%74oken={stage.token}&x&a=2&tenant_id={TENANT_ID}"
        fields = [
            ("X-User-Id", "forged"),
            ("X-Own", "1"),
            ("Connection", "X-User-Id"),
            ("Cookie", "a=1"),
            ("X-Request-ID", "run-7-000123"),
        ]
        with RawSocket(stage.gateway.port, "", query, *fields) as client:
            assert client.status == 101
            assert b"X-Request-ID: run-7-000123" in client.head
        (request,) = stage.service.requests
        headers = request.headers
        assert request.path == f"{PATH}?a=%20b&x&a=2&tenant_id={TENANT_ID}"
        assert headers.get_all("X-User-Id") == [USER_ID]
        assert headers.get_all("Authorization") == [f"Bearer {stage.token}"]
        assert (headers["X-Tenant-Id"], headers["X-Own"], headers["Cookie"]) == (TENANT_ID, "1", "a=1")
        assert (headers["X-Request-ID"], headers["Via"]) == ("run-7-000123", "1.1 bakerygw")
        assert (headers["Host"], headers["X-Forwarded-Host"]) == (f"127.0.0.1:{stage.service.port}", "gateway.example")
        assert headers.get_all("Sec-WebSocket-Version") == ["13"]

    @pytest.mark.parametrize(
        ("offered", "choose", "reaches", "answer"),
        [
            ("v1, v2", "v2", "v1, v2", "v2"),
            ("v1", "", "v1", None),
            ("", "", None, None),
            ("bearer, TOKEN", "", None, "bearer"),
            ("bearer, TOKEN, v1", "v1", "v1", "v1"),
            ("v1, bearer, TOKEN", "", "v1", "bearer"),
            ("v1, Bearer, TOKEN", "", "v1", "Bearer"),
        ],
    )
    def test_subprotocols_are_agreed_on_end_to_end(
        self, stage: Stage, offered: str, choose: str, reaches: str | None, answer: str | None
    ) -> None:
        fields = [("Sec-WebSocket-Protocol", offered.replace("TOKEN", stage.token))] if offered else []
        in_header = "" if "TOKEN" in offered else stage.token
        with RawSocket(stage.gateway.port, in_header, f"?choose={choose}", *fields) as client:
            assert client.status == 101
            lines = dict(line.split(b": ", 1) for line in client.head.split(b"\r\n")[1:])
        told = lines.get(b"Sec-WebSocket-Protocol")
        assert (told.decode() if told else None) == answer
        headers = stage.service.requests[0].headers
        assert headers.get("Sec-WebSocket-Protocol") == reaches
        assert headers.get_all("Authorization") == [f"Bearer {stage.token}"]

    def test_a_ticket_opens_one_socket_and_the_service_gets_the_token_behind_it(self, stage: Stage) -> None:
        with stage.gateway.client(stage.token) as client:
            ticket = client.post("/api/v1/alerts/ticket").json()["ticket"]
        with RawSocket(stage.gateway.port, "", f"?ticket={ticket}&run=7") as first:
            assert first.status == 101
        with RawSocket(stage.gateway.port, "", f"?ticket={ticket}&run=7") as second:
            assert second.status == 401
        (request,) = stage.service.requests
        assert request.path == f"{PATH}?run=7"
        assert request.headers.get_all("Authorization") == [f"Bearer {stage.token}"]
        assert ticket not in stage.gateway.output

    @pytest.mark.parametrize(
        ("field", "status", "code"),
        [
            (("Sec-WebSocket-Version", "12"), 400, "bad-request"),
            (("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="), 400, "bad-request"),
            (("Sec-WebSocket-Protocol", "a, a"), 400, "bad-request"),
            (("Sec-WebSocket-Protocol", "a b"), 400, "bad-request"),
            (("Content-Length", "3"), 426, "upgrade-required"),
            (("Origin", "https://evil.example"), 403, "origin-forbidden"),
            (("Origin", "null"), 403, "origin-forbidden"),
            (("X-Tenant-ID", "another"), 403, "tenant-forbidden"),
        ],
    )
    def test_what_is_not_in_order_is_refused_before_the_service_is_asked(
        self, stage: Stage, field: tuple[str, str], status: int, code: str
    ) -> None:
        with stage.raw("", field) as client:
            assert client.status == status
        assert until(lambda: (stage.done()["status"], stage.done().get("reason")) == (status, code))
        assert stage.service.requests == []

    @pytest.mark.parametrize("origin", [ORIGIN, "http://gateway.example"])
    def test_pages_of_the_gateway_and_of_listed_origins_may(self, stage: Stage, origin: str) -> None:
        with stage.raw("", ("Origin", origin)) as client:
            assert client.status == 101

    def test_a_plain_get_is_told_to_upgrade(self, stage: Stage) -> None:
        with stage.gateway.client(stage.token) as client:
            answer = client.get(PATH)
        assert (answer.status_code, answer.json()["code"]) == (426, "upgrade-required")
        assert (answer.headers["Sec-WebSocket-Version"], answer.headers["Upgrade"]) == ("13", "websocket")

    def test_another_version_is_told_the_right_one(self, stage: Stage) -> None:
        lines = (b"GET %b HTTP/1.1", b"Host: a", b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 0")
        head = b"\r\n".join((*lines, b"Sec-WebSocket-Version: 8", b"Authorization: Bearer %b", b"", b""))
        answer = stage.gateway.raw(head % (PATH.encode(), stage.token.encode()))
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer

    def test_without_a_token_it_is_401_as_everywhere(self, stage: Stage) -> None:
        with RawSocket(stage.gateway.port, "") as client:
            assert client.status == 401
        assert stage.service.requests == []

    @pytest.mark.parametrize("status", [403, 404, 500, 503])
    def test_the_services_refusal_is_the_answer(self, stage: Stage, status: int) -> None:
        with stage.raw(f"?status={status}") as client:
            assert client.status == status

    @pytest.mark.parametrize("status", [200, 204, 302])
    def test_an_answer_that_is_no_refusal_is_502(self, stage: Stage, status: int) -> None:
        with stage.raw(f"?status={status}") as client:
            assert client.status == 502


@pytest.fixture(scope="module")
def odd(issuer: Issuer) -> Iterator[tuple[Gateway, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "TRAINING_SERVICE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "UPSTREAM_FIRST_BYTE_TIMEOUT": "2",
            "HEALTH_CHECK_INTERVAL": "3600",
            **NO_LIMITS,
        }
        with Gateway(settings) as gateway:
            yield gateway, listener


ANSWERS = [
    ("no accept", b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502),
    (
        "wrong accept",
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
        502,
    ),
    ("no upgrade", b"HTTP/1.1 101 S\r\n\r\n", 502),
    ("no HTTP", b"SSH-2.0-x\r\n", 502),
    ("nothing", b"", 502),
    ("silence", None, 504),
]


def asked(listener: socket.socket) -> socket.socket:
    """A connection by which a socket was asked for; looks at the service's health get no answer."""
    while True:
        service, _ = listener.accept()
        service.settimeout(PATIENCE_S)
        if PATH.encode() in service.recv(65536):
            return service
        service.close()


class TestOddServices:
    @pytest.mark.parametrize(("said", "status"), [it[1:] for it in ANSWERS], ids=[it[0] for it in ANSWERS])
    def test_never_101_and_then_nothing(
        self, issuer: Issuer, odd: tuple[Gateway, socket.socket], said: bytes | None, status: int
    ) -> None:
        gateway, listener = odd
        with ExitStack() as held:
            client = socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S)
            held.enter_context(closed(client))
            lines = (f"GET {PATH} HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade")
            more = ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
            client.sendall("\r\n".join((*lines, *more, f"Authorization: Bearer {issuer.token()}", "", "")).encode())
            for _ in range(2):  # what ends without a byte is tried again, once
                service = held.enter_context(closed(asked(listener)))
                if said is None:
                    break
                service.sendall(said)
                if said:
                    break
                service.close()
            assert client.recv(65536).startswith(b"HTTP/1.1 %d " % status)


class TestSeveralUrls:
    def test_a_dead_one_costs_no_client_anything(self, issuer: Issuer, stage: Stage) -> None:
        (dead,) = free_ports(1)
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "TRAINING_SERVICE_URL": f"http://127.0.0.1:{dead},{stage.service.url}",
            **NO_LIMITS,
        }
        with Gateway(settings) as gateway:
            for _ in range(12):
                with RawSocket(gateway.port, stage.token, behind=frame(TEXT, b"x")) as client:
                    assert (client.status, client.receive()) == (101, (TEXT, b"x"))

    def test_those_that_accept_what_they_do_not_serve_are_passed_over(self, issuer: Issuer, stage: Stage) -> None:
        with FalseService(wrong=True) as wrong, FalseService() as dying:
            settings = {
                "JWT_PUBLIC_KEY": issuer.public_pem,
                "TRAINING_SERVICE_URL": f"{wrong.url},{stage.service.url},{dying.url}",
                "WS_MAX_PER_USER": "1000",
                **NO_LIMITS,
            }
            with Gateway(settings) as gateway:

                def try_one() -> bool:
                    with RawSocket(gateway.port, stage.token):
                        return len(gateway.events("upstream.sockets")) >= 2

                until(try_one)
                told = {(it["url"], it["state"], it["cause"]) for it in gateway.events("upstream.sockets")}
                assert told == {
                    (wrong.url, "failing", "wrong Sec-WebSocket-Accept"),
                    (dying.url, "failing", "lost right behind its 101"),
                }
                served = 0
                for _ in range(12):
                    with RawSocket(gateway.port, stage.token, behind=frame(TEXT, b"x")) as client:
                        served += client.status == 101 and client.receive() == (TEXT, b"x")
                assert served >= 10  # in ten seconds each of the others is tried once again

    def test_what_depends_on_a_clients_offer_takes_the_service_from_nobody(self, issuer: Issuer) -> None:
        with FalseService(b"Sec-WebSocket-Protocol: own") as service:
            settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "TRAINING_SERVICE_URL": service.url, **NO_LIMITS}
            with Gateway(settings) as gateway:
                for _ in range(6):
                    with RawSocket(gateway.port, issuer.token()) as client:
                        assert client.status == 502
                with RawSocket(gateway.port, issuer.token(), "", ("Sec-WebSocket-Protocol", "own")) as client:
                    assert client.status == 101

    def test_none_is_503_and_a_dead_one_alone_502(self, issuer: Issuer) -> None:
        (dead,) = free_ports(1)
        for settings, status, code in [
            ({}, 503, "service-unavailable"),
            ({"TRAINING_SERVICE_URL": f"http://127.0.0.1:{dead}"}, 502, "upstream-unreachable"),
        ]:
            with Gateway({"JWT_PUBLIC_KEY": issuer.public_pem, **settings}) as gateway:
                with RawSocket(gateway.port, issuer.token()) as client:
                    assert client.status == status
                assert gateway.wait_for_event("request.done")["reason"] == code


class TestPace:
    def test_a_client_that_does_not_read_stops_the_service(self, stage: Stage) -> None:
        before = stage.gateway.rss()
        with stage.raw("?send=2000") as client:  # 125 MiB
            until(lambda: stage.service.sent > 5)
            stopped = _stands_still(lambda: stage.service.sent)
            assert stopped < 32  # 2 MiB: on both sides, in the gateway and in its kernel
            assert stage.gateway.rss() - before < 8 * MIB
            for _ in range(2000):
                opcode, payload = client.receive()
                assert (opcode, len(payload)) == (BINARY, 65536)
            client.send(closing(1000))
            client.end(answer=False)

    def test_a_service_that_does_not_read_stops_the_client(self, stage: Stage) -> None:
        before = stage.gateway.rss()
        message = frame(BINARY, bytes(65530))
        with stage.raw("?send=0&deaf=1") as client:
            sent, rest = 0, b""
            client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            client._socket.setblocking(False)
            deadline = time.monotonic() + 0.7
            while time.monotonic() < deadline:
                rest = rest or message
                try:
                    taken = client._socket.send(rest)
                except BlockingIOError:
                    time.sleep(0.01)
                    continue
                sent, rest = sent + taken, rest[taken:]
            assert sent < 4 * MIB
            assert stage.gateway.rss() - before < 8 * MIB
            # Once it has gone, nothing tells so but an answer to what it is sent: its end is behind what is not read.
            client._socket.settimeout(PATIENCE_S)
            assert client.receive() == (PING, b"")
            client._socket.close()
            ended = stage.ended()
            assert (ended["close_code"], ended["closed_by"]) == (1006, "client")
        stage.service.hear.set()

    def test_a_client_that_sends_too_many_frames_is_read_more_slowly(self, issuer: Issuer, stage: Stage) -> None:
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "TRAINING_SERVICE_URL": stage.service.url,
            "WS_FRAMES_PER_SECOND": "500",
            **NO_LIMITS,
        }
        with Gateway(settings) as gateway, RawSocket(gateway.port, stage.token) as client:
            began = time.monotonic()
            client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(1500)))
            assert [int(client.receive()[1]) for _ in range(1500)] == list(range(1500))
            assert time.monotonic() - began > 1  # 500 at once, and of the others all but what was read together
            client.send(closing(1000))
            client.end(answer=False)
            assert gateway.wait_for_event("request.done")["unread_ms"] > 1000


def _stands_still(look: Any) -> int:
    """The value once it has not moved for a while."""
    while (value := look()) != (time.sleep(0.3), look())[1]:
        pass
    assert isinstance(value, int)
    return value


class TestEndings:
    def test_the_gateway_ends_what_may_not_go_on(self, issuer: Issuer, stage: Stage) -> None:
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "TRAINING_SERVICE_URL": stage.service.url,
            "WS_MAX_PER_USER": "2",
        }
        with Gateway(settings) as gateway, ExitStack() as held:
            short = issuer.token(exp=int(time.time()) + 5)
            dying, living = (held.enter_context(RawSocket(gateway.port, token)) for token in (short, stage.token))
            with RawSocket(gateway.port, stage.token) as third:
                assert third.status == 429
            assert dying.end() == (1008, b"token expired")

            with gateway.admin() as admin:
                assert admin.post(f"/api/tenants/{TENANT_ID}/disconnect").status_code == 202
            assert living.end() == (1008, b"disconnected")

            last = held.enter_context(RawSocket(gateway.port, stage.token, behind=frame(TEXT, b"x")))
            assert last.receive() == (TEXT, b"x")
            gateway.signal(signal.SIGTERM)
            assert last.end() == (1012, b"restarting")
            assert gateway.wait() == 0
            told = [(it["close_code"], it.get("closed_for")) for it in gateway.events("request.done")[1:]]
        assert told == [(1008, "token-expired"), (1008, "disconnected"), (1012, "draining")]
        assert until(lambda: len(stage.service.closes) == 3)
        assert {code for code, _ in stage.service.closes} == {1001}
