"""What a service may believe: identity and forwarding headers are the gateway's word, never the client's."""

import json
import re
import uuid
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Recorded
from tests.e2e.stage import Received, Stage, staged
from tests.minting import OTHER_TENANT_ID, TENANT_ID, USER_ID, Issuer, access

LIE = b"forged"
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = b"00-" + TRACE + b"-00f067aa0ba902b7-01"

FORGED = [
    *(b"X-User-Id", b"x-user-id", b"X_User_Id", b"x_user-id", b"X-User_Id", b"X-User-Email", b"X-User-Role"),
    *(b"X-Tenant_Id", b"X_Tenant_Id", b"X-Tenant-Name", b"X-Subscription-Tier", b"X-Subscription-Status"),
    *(b"X-Is-Demo", b"X-Demo-Session-Id", b"X-Gateway-Secret", b"X-Internal-Call", b"X-Real-IP"),
    *(b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto", b"X-Forwarded-Prefix", b"Forwarded", b"Via"),
    *(b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method-Override"),
    *(b"X-Original-URL", b"X-Original-Host", b"X-Rewrite-URL", b"Proxy", b"Proxy-Authorization"),
    *(b"TE", b"Trailer", b"Keep-Alive", b"Proxy-Connection", b"HTTP2-Settings", b"any_thing"),
]


def identity(**changes: str) -> dict[str, str]:
    """The identity headers of the issuer's good token."""
    known = {
        "x-user-id": USER_ID,
        "x-user-email": "ana@panaderia.example",
        "x-user-role": "owner",
        "x-tenant-id": TENANT_ID,
        "x-subscription-tier": "professional",
        "x-subscription-status": "active",
        "x-is-demo": "false",
    }
    return {**known, **changes}


def identity_in(request: Recorded) -> dict[str, str]:
    """The identity headers that a service sees, each of which must have come once."""
    names = [*identity(), "x-demo-session-id"]
    return {name: value.decode() for name in names if (value := request.value(name)) is not None}


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, services=("sales", "tenant")) as it:
        yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    return shared_stage


@pytest.fixture(scope="module")
def behind_proxy(issuer: Issuer) -> Iterator[Stage]:
    """A gateway that trusts its peer, as behind a load balancer."""
    with staged(issuer, {"TRUSTED_PROXIES": "127.0.0.0/8,10.0.0.0/8"}) as it:
        yield it


def asked(stage: Stage, *fields: tuple[bytes, bytes], target: bytes = b"/api/v1/sales/x") -> Recorded:
    """What the sales service got of a GET with these fields."""
    stage.reset()
    assert stage.get(target, *fields).status == 200
    return stage.upstream.wait_for(1)[0]


class TestForgeries:
    @pytest.mark.parametrize("name", FORGED)
    def test_nothing_of_it_reaches_the_service(self, stage: Stage, name: bytes) -> None:
        request = asked(stage, (name, LIE))

        assert LIE not in request.head
        assert identity_in(request) == identity()

    def test_all_of_them_at_once_and_twice(self, stage: Stage) -> None:
        request = asked(stage, *[(name, LIE) for name in FORGED] * 2)

        assert LIE not in request.head
        assert identity_in(request) == identity()
        assert [name for name, _ in request.headers if b"_" in name] == []

    def test_a_forged_tenant_is_refused_and_not_forwarded(self, stage: Stage) -> None:
        received = stage.get(b"/api/v1/sales/x", (b"X-Tenant-ID", OTHER_TENANT_ID.encode()))

        assert (received.status, json.loads(received.body)["code"]) == (403, "tenant-forbidden")
        assert stage.arrived() == []

    @pytest.mark.parametrize(
        "named",
        [
            b"x-user-id",
            b"X-Tenant-Id, x-user-role, close",
            b"x-request-id,traceparent, x-forwarded-for, via",
            b"keep-alive, X-USER-EMAIL",
            b"host, content-length, authorization",
        ],
    )
    def test_connection_takes_away_nothing_that_the_gateway_adds(self, stage: Stage, named: bytes) -> None:
        request = asked(stage, (b"Connection", named), (b"X-User-Id", LIE))

        assert identity_in(request) == identity()
        for name in ("host", "x-request-id", "traceparent", "x-forwarded-for", "via"):
            assert request.value(name), name

    def test_connection_takes_away_what_it_names_of_the_clients(self, stage: Stage) -> None:
        request = asked(
            stage, (b"Connection", b"x-private"), (b"X-Private", LIE), (b"connection", b"X-More"), (b"X-More", LIE)
        )

        assert LIE not in request.head
        assert request.values("connection") == []

    def test_a_method_override_does_not_make_a_post_anything_else(self, stage: Stage) -> None:
        head = stage.head(
            b"/api/v1/sales/x?_method=DELETE",
            (b"X-HTTP-Method-Override", b"DELETE"),
            (b"Content-Length", b"0"),
            method=b"POST",
        )

        assert stage.ask(head).status == 200

        (request,) = stage.upstream.wait_for(1)
        assert request.method == "POST"
        assert b"Override" not in request.head

    @pytest.mark.parametrize("second", [b"Bearer ", b"Basic ", b""])
    def test_two_authorizations_are_none(self, stage: Stage, second: bytes) -> None:
        received = stage.get(b"/api/v1/sales/x", (b"authorization", second + stage.token.encode()))

        assert (received.status, received.values("www-authenticate")) == (401, [b'Bearer error="invalid_token"'])
        assert stage.arrived() == []

    def test_the_session_cookie_stays_and_other_cookies_pass(self, stage: Stage) -> None:
        request = asked(stage, (b"Cookie", b"a=1; __Host-bakery-session=" + LIE + b"; b=2"))

        assert LIE not in request.head
        assert request.value("cookie") is not None
        assert b"a=1" in (request.value("cookie") or b"")
        assert b"b=2" in (request.value("cookie") or b"")

    def test_a_public_route_forwards_no_identity_at_all(self, issuer: Issuer) -> None:
        with staged(issuer, services=("sales", "auth")) as stage:
            head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nX-User-Id: forged\r\nX-Tenant-Id: forged\r\n"
            assert stage.ask(head + b"X-User_Id: forged\r\nContent-Length: 2\r\n\r\n{}").status == 200

            (request,) = stage.services["auth"].wait_for(1)
            assert LIE not in request.head
            assert identity_in(request) == {}


class TestIdentity:
    def test_it_is_the_tokens_and_comes_once(self, stage: Stage) -> None:
        request = asked(stage)

        assert identity_in(request) == identity()
        assert request.value("authorization") == b"Bearer " + stage.token.encode()

    def test_of_another_tenant_role_and_tier_are_those_there(self, stage: Stage) -> None:
        entry = access(OTHER_TENANT_ID, "viewer", "starter")
        stage_token, stage.token = stage.token, stage.issuer.token(tenant_access=[entry])
        try:
            request = asked(stage, (b"X-Tenant-ID", OTHER_TENANT_ID.encode()))
        finally:
            stage.token = stage_token

        wanted = {"x-tenant-id": OTHER_TENANT_ID, "x-user-role": "viewer", "x-subscription-tier": "starter"}
        assert identity_in(request) == identity(**wanted)

    def test_a_tenant_in_the_path_is_checked_and_told(self, stage: Stage) -> None:
        assert stage.get(b"/api/v1/tenants/%b/settings" % TENANT_ID.encode()).status == 200
        assert stage.get(b"/api/v1/tenants/%b/settings" % OTHER_TENANT_ID.encode()).status == 403

        (request,) = stage.services["tenant"].wait_for(1)
        assert identity_in(request) == identity()

    def test_an_email_of_odd_characters_cannot_leave_its_line(self, stage: Stage) -> None:
        stage_token, stage.token = stage.token, stage.issuer.token(email="añ b@x.example")
        try:
            request = asked(stage)
        finally:
            stage.token = stage_token

        assert request.value("x-user-email") == b"a%C3%B1%20b@x.example"

    def test_a_line_end_in_an_email_is_refused_or_encoded(self, stage: Stage) -> None:
        stage_token, stage.token = stage.token, stage.issuer.token(email="a@x\r\nX-User-Role: admin")
        try:
            received = stage.get()
        finally:
            stage.token = stage_token

        assert received.status == 401
        assert stage.arrived() == []

    def test_a_demo_session_is_told_as_one(self, stage: Stage) -> None:
        claims = {"is_demo": True, "demo_session_id": "demo-1"}
        stage_token, stage.token = stage.token, stage.issuer.token(**claims)
        try:
            request = asked(stage)
        finally:
            stage.token = stage_token

        assert identity_in(request) == identity(**{"x-is-demo": "true", "x-demo-session-id": "demo-1"})


class TestRequestId:
    @pytest.mark.parametrize("offered", [b"abcd-1234", b"A.b_c-D9" * 16, b"12345678"])
    def test_a_good_one_is_kept(self, stage: Stage, offered: bytes) -> None:
        received = stage.get(b"/api/v1/sales/x", (b"X-Request-ID", offered))

        assert received.values("x-request-id") == [offered]
        assert stage.upstream.wait_for(1)[0].value("x-request-id") == offered

    @pytest.mark.parametrize(
        "offered",
        [
            [b"short"],
            [b"x" * 129],
            [b"with space"],
            [b"semi;colon"],
            [b"caf\xe9-1234"],
            [b""],
            [b"first-id", b"second-id"],
        ],
    )
    def test_a_bad_one_is_replaced_by_a_uuid4(self, stage: Stage, offered: list[bytes]) -> None:
        received = stage.get(b"/api/v1/sales/x", *[(b"X-Request-ID", value) for value in offered])

        (told,) = received.values("x-request-id")
        assert uuid.UUID(told.decode()).version == 4
        assert stage.upstream.wait_for(1)[0].value("x-request-id") == told


class TestTrace:
    def test_a_trace_is_continued_with_a_span_of_its_own(self, stage: Stage) -> None:
        sent = asked(stage, (b"traceparent", TRACEPARENT)).value("traceparent") or b""

        assert re.fullmatch(rb"00-%b-[0-9a-f]{16}-01" % TRACE, sent)
        assert sent != TRACEPARENT

    @pytest.mark.parametrize("offered", [b"forged", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", TRACEPARENT.upper()])
    def test_a_malformed_one_gives_way_to_a_new_one(self, stage: Stage, offered: bytes) -> None:
        sent = asked(stage, (b"traceparent", offered)).value("traceparent") or b""

        assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", sent)
        assert offered[3:35].lower() not in sent


class TestForwarding:
    def test_an_untrusted_client_is_known_by_its_own_address(self, stage: Stage) -> None:
        request = asked(
            stage, (b"X-Forwarded-For", b"203.0.113.9"), (b"X-Forwarded-Proto", b"https"), (b"Via", b"1.0 x")
        )

        assert request.value("x-forwarded-for") == b"127.0.0.1"
        assert request.value("x-forwarded-proto") == b"http"
        assert request.value("x-forwarded-host") == b"gateway.example"
        assert request.value("via") == b"1.1 bakerygw"
        assert request.value("host") == stage.upstream.url.removeprefix("http://").encode()

    def test_what_a_trusted_proxy_says_is_continued(self, behind_proxy: Stage) -> None:
        request = asked(
            behind_proxy,
            (b"X-Forwarded-For", b"203.0.113.9, 10.0.0.1"),
            (b"X-Forwarded-Proto", b"https"),
            (b"X-Forwarded-Host", b"bakery.example"),
            (b"Via", b"1.0 balancer"),
        )

        assert request.value("x-forwarded-for") == b"203.0.113.9, 10.0.0.1, 127.0.0.1"
        assert request.value("x-forwarded-proto") == b"https"
        assert request.value("x-forwarded-host") == b"bakery.example"
        assert request.value("via") == b"1.0 balancer, 1.1 bakerygw"

    def test_even_a_trusted_proxy_names_no_user(self, behind_proxy: Stage) -> None:
        request = asked(
            behind_proxy, (b"X-User-Id", LIE), (b"X_User_Id", LIE), (b"X-Real-IP", LIE), (b"Forwarded", LIE)
        )

        assert LIE not in request.head
        assert identity_in(request) == identity()

    def test_the_logged_client_is_the_one_that_the_proxy_saw(self, behind_proxy: Stage) -> None:
        received = behind_proxy.get(b"/api/v1/sales/x", (b"X-Forwarded-For", b"1.2.3.4, 203.0.113.9, 10.0.0.1"))

        assert logged_client(behind_proxy, received) == "203.0.113.9"

    def test_the_logged_client_is_the_peer_if_nobody_is_trusted(self, stage: Stage) -> None:
        received = stage.get(b"/api/v1/sales/x", (b"X-Forwarded-For", b"203.0.113.9"))

        assert logged_client(stage, received) == "127.0.0.1"


def logged_client(stage: Stage, received: Received) -> str:
    """The client in the log lines of this answer's request."""
    (request_id,) = received.values("x-request-id")
    found = stage.gateway.wait_for_event("request.done", lambda event: event["request_id"] == request_id.decode())
    return str(found["client"])
