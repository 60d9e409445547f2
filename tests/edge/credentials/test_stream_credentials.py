"""How a browser identifies itself for what stays open, through the whole pipeline with fakes at its ports."""

import json
from base64 import b64decode
from dataclasses import replace
from typing import Any

import pytest

from bakerygw.core.claims import Claims
from bakerygw.core.http import Reply
from bakerygw.core.routing import Route, Router
from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.admission import Grant
from bakerygw.edge.credentials.streams import query_values
from bakerygw.ports import TokenRefused
from tests.edge.port_fakes import DEMO, NOW, ROUTES, USER, Stage

STREAM = b"/api/v1/alerts/stream"
TRAINING = b"/api/v1/training/ws"
TICKET = b"/api/v1/alerts/ticket"
GET = frozenset({"GET"})
KEPT_OPEN = (
    Route(prefix=STREAM.decode(), template=STREAM.decode(), kind="stream", exact=True, action="alerts", methods=GET),
    Route(prefix=TRAINING.decode(), template=TRAINING.decode(), kind="stream", exact=True, action="training"),
    Route(
        prefix=TICKET.decode(),
        template=TICKET.decode(),
        kind="local",
        exact=True,
        action="ticket",
        methods=frozenset({"POST"}),
        read_only_exempt=True,
    ),
)


class Streams(Stage):
    """A gateway whose streams only say for whom they were opened."""

    def __init__(self, **policies: Any) -> None:
        super().__init__(router=Router((*ROUTES, *KEPT_OPEN)), **policies)
        self.grants: list[Grant] = []
        self.gateway.handlers = {**self.gateway.handlers, "alerts": self._opened, "training": self._opened}

    async def _opened(self, exchange: Any, route: Any, grant: Grant, *_: Any) -> Reply:
        self.grants.append(grant)
        return Reply(status=200, body=b"open")

    def opened(self) -> list[str]:
        """The tenants that streams were opened for."""
        return [grant.view.tenant_id for grant in self.grants if grant.view is not None]

    def ticket(self, *lines: bytes, token: bytes = b"good") -> bytes:
        answer = self.ask(TICKET, *lines, method=b"POST", token=token)
        assert answer.status == 201
        return json.loads(answer.body)["ticket"].encode()


class Sessions:
    """`SessionCookies` and their `Credentials`: one session."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims

    def presented(self, head: Any) -> bytes | None:
        return b"session-id" if b"cookie" in head.fields else None

    async def renewed_elsewhere(self, session_id: bytes, claims: Claims) -> bool:
        return False

    def known(self, secret: bytes) -> Claims | None:
        return None

    def peek(self, secret: bytes) -> Claims | None:
        return None

    async def verify(self, secret: bytes) -> Claims:
        if secret != b"session-id":
            raise TokenRefused("token-invalid", "session-unknown")
        return self.claims


def with_session(**more: Any) -> Streams:
    sessions = Sessions(replace(USER, digest="digest-session", forwarded=b"good"))
    stage = Streams(sessions=sessions, **more)
    stage.gateway.policies = replace(
        stage.policies, credentials={**stage.policies.credentials, "session": sessions}, sessions=sessions
    )
    return stage


@pytest.mark.parametrize("path", [STREAM, TRAINING])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("spelling", [b"?token=good", b"?a=b&token=good&c", b"?%74oken=g%6Fod"])
def test_a_token_in_the_query_opens(path: bytes, known: bool, spelling: bytes) -> None:
    stage = Streams()
    if known:
        stage.tokens.verified.add(b"good")

    answer = stage.ask(path + spelling)

    assert (answer.status, answer.body) == (200, b"open")
    assert stage.opened() == ["t-own"]
    assert answer.headers[b"referrer-policy"] == [b"no-referrer"]
    (grant,) = stage.grants
    assert grant.caller is not None
    assert (grant.caller.scheme, grant.caller.secret) == ("bearer", b"good")


@pytest.mark.parametrize("path", [b"/api/v1/sales/1?token=good", TICKET + b"?token=good", b"/api/v1/sales?ticket=x"])
def test_elsewhere_the_query_is_no_credential(path: bytes) -> None:
    stage = Streams()

    answer = stage.ask(path, method=b"POST")

    assert answer.problem()["code"] == "token-missing"


def test_a_subprotocol_opens_the_socket_alone() -> None:
    stage = Streams()
    offered = b"Sec-WebSocket-Protocol: v1, bearer, good"

    assert stage.ask(TRAINING, offered).status == 200
    assert stage.ask(TRAINING, b"Sec-WebSocket-Protocol: bearer", b"Sec-WebSocket-Protocol: good, v1").status == 200
    assert stage.ask(STREAM, offered).problem()["code"] == "token-missing"
    assert stage.ask(TRAINING, b"Sec-WebSocket-Protocol: v1").problem()["code"] == "token-missing"


@pytest.mark.parametrize(
    ("target", "lines", "code"),
    [
        (b"?token=good&token=good", (), "token-invalid"),
        (b"?ticket=a&ticket=b", (), "token-invalid"),
        (b"?token=good&ticket=a", (), "bad-request"),
        (b"?token=good", (b"Authorization: Bearer good",), "bad-request"),
        (b"?token=good", (b"Authorization: Bearer other",), "bad-request"),
        (b"?ticket=a", (b"Authorization: Bearer good",), "bad-request"),
        (b"?token=good", (b"Sec-WebSocket-Protocol: bearer, good",), "bad-request"),
        (b"", (b"Sec-WebSocket-Protocol: bearer, good", b"Authorization: Bearer good"), "bad-request"),
        (b"", (b"Sec-WebSocket-Protocol: bearer",), "token-invalid"),
        (b"", (b"Sec-WebSocket-Protocol: bearer, , good",), "token-invalid"),
        (b"", (b"Sec-WebSocket-Protocol: bearer, bearer, good",), "token-invalid"),
        (b"?token=", (), "token-invalid"),
        (b"?token", (), "token-invalid"),
        (b"?token=bad", (), "token-invalid"),
        (b"?token=expired", (), "token-expired"),
        (b"", (b"Sec-WebSocket-Protocol: bearer, " + b"a" * 8193,), "token-invalid"),
        (b"?ticket=" + b"a" * 43, (), "token-invalid"),
        (b"?ticket=..%2F", (), "token-invalid"),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_opens_nothing(target: bytes, lines: tuple[bytes, ...], code: str, known: bool) -> None:
    stage = Streams()
    if known:
        stage.tokens.verified.add(b"good")

    answer = stage.ask(TRAINING + target, *lines)

    assert answer.problem()["code"] == code
    assert stage.grants == []
    assert answer.headers[b"referrer-policy"] == [b"no-referrer"]
    assert answer.problem()["instance"] == TRAINING.decode()
    for secret in (b"good", b"a" * 9):
        assert secret not in answer.body


class TestTenant:
    def test_the_query_names_it_as_the_header_does(self) -> None:
        stage = Streams()

        assert stage.ask(STREAM + b"?tenant_id=t-other", token=b"good").status == 200
        assert stage.ask(STREAM + b"?tenant_id=t-other", b"X-Tenant-ID: t-other", token=b"good").status == 200
        assert stage.opened() == ["t-other", "t-other"]

    @pytest.mark.parametrize(
        ("query", "lines", "code"),
        [
            (b"?tenant_id=t-other", (b"X-Tenant-ID: t-own",), "tenant-ambiguous"),
            (b"?tenant_id=t-other&tenant_id=t-other", (), "bad-request"),
            (b"?tenant_id=t-other&tenant_id=t-own", (), "bad-request"),
            (b"?tenant_id=", (), "bad-request"),
            (b"?tenant_id=*", (), "bad-request"),
            (b"?tenant_id=t-far", (), "tenant-forbidden"),
        ],
    )
    def test_what_it_may_not_name(self, query: bytes, lines: tuple[bytes, ...], code: str) -> None:
        stage = Streams()

        assert stage.ask(STREAM + query, *lines, token=b"good").problem()["code"] == code
        assert stage.grants == []

    def test_elsewhere_the_query_names_none(self) -> None:
        stage = Streams()

        stage.ask(b"/api/v1/sales?tenant_id=t-other", token=b"good")

        ((_, upstream),) = stage.services.requests
        assert dict(upstream.headers)[b"X-Tenant-Id"] == b"t-own"

    def test_its_flags_are_asked_for_with_the_first_question(self) -> None:
        stage = Streams()
        stage.store.flags["t-other"] = TenantFlags(demo=True)

        answer = stage.ask(STREAM + b"?tenant_id=t-other", token=b"good")

        assert answer.problem()["code"] == "demo-isolation"
        assert stage.store.asked[0].tenants == ("t-own", "t-other")

    def test_a_tenant_above_may_open_it(self) -> None:
        stage = Streams()
        entry = replace(USER.tenant_access[0], tenant_id="t-chain", include_children=True)
        stage.tokens.claims[b"chain"] = replace(USER, tenant_access=(entry,))
        stage.tree.chains["t-shop"] = ("t-chain",)

        assert stage.ask(STREAM + b"?tenant_id=t-shop&token=chain").status == 200
        assert stage.opened() == ["t-shop"]


class TestSession:
    def test_the_cookie_opens_a_stream(self) -> None:
        stage = with_session()

        assert stage.ask(STREAM, b"Cookie: any").status == 200

    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            (b"https://app.example", 200),
            (b"http://bakery.example", 200),
            (b"https://evil.example", 403),
            (b"null", 403),
            (None, 403),
        ],
    )
    def test_and_a_socket_for_pages_of_an_allowed_origin(self, origin: bytes | None, status: int) -> None:
        stage = with_session()
        lines = (b"Cookie: any",) if origin is None else (b"Cookie: any", b"Origin: " + origin)

        answer = stage.ask(TRAINING, *lines)

        assert answer.status == status
        if status == 403:
            assert answer.problem()["code"] == "origin-forbidden"

    def test_a_token_in_the_query_hides_it(self) -> None:
        stage = with_session()

        assert stage.ask(STREAM + b"?token=demo", b"Cookie: any").status == 200
        assert stage.opened() == ["t-demo"]


class TestTickets:
    @pytest.mark.parametrize("path", [STREAM, TRAINING])
    def test_one_opens_one_stream_or_socket_for_its_user_and_tenant(self, path: bytes) -> None:
        stage = Streams()
        ticket = stage.ticket(b"X-Tenant-ID: t-other")

        assert stage.ask(path + b"?ticket=" + ticket).status == 200
        second = stage.ask(path + b"?ticket=" + ticket)

        assert stage.opened() == ["t-other"]
        (grant,) = stage.grants
        assert grant.claims == USER
        assert grant.caller is not None
        assert (grant.caller.scheme, grant.caller.secret) == ("bearer", b"good")
        problem = second.problem()
        assert problem["code"] == "token-invalid"
        assert "/api/v1/alerts/ticket" in problem["detail"]

    def test_the_answer_says_how_long_and_is_stored_by_nobody(self) -> None:
        stage = Streams()

        answer = stage.ask(TICKET, method=b"POST", token=b"good", body=b"whatever")

        said = json.loads(answer.body)
        assert set(said) == {"ticket", "expires_in"}
        assert said["expires_in"] == 30
        assert len(said["ticket"]) == 43
        assert answer.headers[b"cache-control"] == [b"no-store"]
        assert answer.headers[b"referrer-policy"] == [b"no-referrer"]

    def test_no_two_are_equal(self) -> None:
        stage = Streams()

        assert len({stage.ticket() for _ in range(20)}) == 20

    def test_it_ends_after_half_a_minute(self) -> None:
        stage = Streams()
        early, late = stage.ticket(), stage.ticket()
        stage.now = NOW + 29
        assert stage.ask(STREAM + b"?ticket=" + early).status == 200
        stage.now = NOW + 30

        assert stage.ask(STREAM + b"?ticket=" + late).status == 401

    def test_its_tenant_is_no_other(self) -> None:
        stage = Streams()
        ticket = stage.ticket(b"X-Tenant-ID: t-other")

        answer = stage.ask(STREAM + b"?tenant_id=t-own&ticket=" + ticket)

        assert answer.problem()["code"] == "tenant-ambiguous"
        assert stage.grants == []

    def test_it_opens_nothing_once_its_credential_does_not(self) -> None:
        stage = Streams()
        revoked, gone, forbidden = stage.ticket(), stage.ticket(), stage.ticket(b"X-Tenant-ID: t-other")
        stage.store.revoked["digest-good"] = True
        assert stage.ask(STREAM + b"?ticket=" + revoked).problem()["code"] == "token-revoked"
        stage.store.revoked.clear()
        stage.store.flags["t-other"] = TenantFlags(changed_at=NOW)
        assert stage.ask(STREAM + b"?ticket=" + forbidden).problem()["code"] == "token-stale"
        del stage.tokens.claims[b"good"]
        stage.tokens.verified.clear()

        assert stage.ask(STREAM + b"?ticket=" + gone).problem()["code"] == "token-invalid"
        assert stage.grants == []

    def test_a_demo_session_stays_in_its_tenant(self) -> None:
        stage = Streams()

        assert stage.ask(STREAM + b"?ticket=" + stage.ticket(token=b"demo")).status == 200
        assert stage.opened() == [DEMO.tenant_id]

    def test_a_session_has_them_too(self) -> None:
        stage = with_session()
        ticket = json.loads(stage.ask(TICKET, b"Cookie: any", method=b"POST").body)["ticket"].encode()

        assert stage.ask(TRAINING + b"?ticket=" + ticket).status == 200
        assert stage.grants[0].claims is not None
        assert stage.grants[0].claims.forwarded == b"good"

    def test_what_lies_in_the_shared_state_tells_nobody_anything(self) -> None:
        stage = Streams()
        ticket = stage.ticket()
        ((key, (sealed, _)),) = stage.records._values.items()

        assert ticket.decode() not in key
        for secret in (b"good", ticket, b"t-own", b"bearer"):
            assert secret not in sealed
            assert secret not in _lenient(sealed)

    @pytest.mark.parametrize(
        "forge",
        [lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), lambda _: b"{}", lambda _: b"\x01" * 100],
        ids=["changed", "JSON", "noise"],
    )
    def test_and_takes_nothing_from_whoever_writes_there(self, forge: Any) -> None:
        stage = Streams()
        ticket, other = stage.ticket(), stage.ticket(token=b"demo")
        keys = list(stage.records._values)
        sealed, until = stage.records._values[keys[0]]
        stage.records._values[keys[0]] = forge(sealed), until
        stage.records._values[keys[1]] = sealed, until  # another's, under this ticket

        assert stage.ask(STREAM + b"?ticket=" + ticket).problem()["code"] == "token-invalid"
        assert stage.ask(STREAM + b"?ticket=" + other).problem()["code"] == "token-invalid"

    def test_one_that_is_put_back_does_not_live_for_ever(self) -> None:
        stage = Streams()
        ticket = stage.ticket()
        ((key, (sealed, _)),) = stage.records._values.items()
        stage.now = NOW + 61
        stage.records._values[key] = sealed, NOW + 1e9

        assert stage.ask(STREAM + b"?ticket=" + ticket).problem()["code"] == "token-invalid"

    def test_without_the_shared_state_there_are_none_and_none_is_lost(self) -> None:
        stage = Streams()
        ticket = stage.ticket()
        stage.records.down = True
        used = stage.ask(STREAM + b"?ticket=" + ticket)
        fresh = stage.ask(TICKET, method=b"POST", token=b"good")

        for answer in (used, fresh):
            assert answer.problem()["code"] == "state-unavailable"
            assert b"retry-after" in answer.headers
        stage.records.down = False
        assert stage.ask(STREAM + b"?ticket=" + ticket).status == 200

    def test_bad_ones_burn_their_senders_budget_before_anything_is_looked_up(self) -> None:
        stage = Streams()
        stage.store.empty.add("default")

        assert stage.ask(STREAM + b"?ticket=" + b"a" * 43).status == 429
        assert stage.store.spent == ["default:addr:192.0.2.1"]

    def test_nothing_that_is_noted_of_a_request_holds_one(self) -> None:
        stage = Streams()
        ticket = stage.ticket()
        stage.ask(STREAM + b"?ticket=" + ticket)
        stage.ask(STREAM + b"?ticket=" + ticket)

        assert ticket.decode() not in repr(stage.notes.__dict__)
        assert ticket.decode() not in repr(stage.audited)

    def test_a_failed_one_counts_as_an_attempt(self) -> None:
        stage = Streams()

        stage.ask(STREAM + b"?ticket=" + b"a" * 43)

        assert "token-invalid" in repr(stage.notes.__dict__)


def _lenient(text: bytes) -> bytes:
    """What base64 may hide."""
    try:
        return b64decode(text)
    except ValueError:
        return b""


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (None, []),
        (b"", []),
        (b"token", [b""]),
        (b"token=a=b&token=c", [b"a=b", b"c"]),
        (b"xtoken=a&Token=b&token%3d=c", []),
        (b"token=%zz%4", [b"%zz%4"]),
        (b"to%6ben=a+b", [b"a b"]),
    ],
)
def test_parameters_are_found_by_their_decoded_names(query: bytes | None, values: list[bytes]) -> None:
    assert query_values(query, b"token") == values
