"""Cross-origin answers: exact origins, `Vary` always, never credentials with `*`."""

import pytest

from bakerygw.core.cors import CorsPolicy
from tests.heads import make_head

APP = b"https://app.example"
ONE = CorsPolicy(origins=frozenset({APP}))
ANY = CorsPolicy(origins=frozenset({b"*"}), credentials=False)


def preflight(origin=APP, **more):
    headers = [(b"Origin", origin), (b"Access-Control-Request-Method", b"PUT")]
    return make_head("OPTIONS", b"/api/v1/sales", more.get("headers", headers))


def test_an_allowed_origin_may_read_with_credentials():
    headers = dict(ONE.headers_for(APP))
    assert headers[b"Access-Control-Allow-Origin"] == APP
    assert headers[b"Access-Control-Allow-Credentials"] == b"true"
    assert headers[b"Vary"] == b"Origin"
    exposed = headers[b"Access-Control-Expose-Headers"].split(b", ")
    assert {b"X-Request-ID", b"RateLimit", b"RateLimit-Policy", b"Retry-After", b"Proxy-Status"} <= set(exposed)
    assert {b"X-Subscription-Grace", b"X-RateLimit-Limit", b"X-RateLimit-Remaining", b"X-RateLimit-Reset"} <= set(
        exposed
    )


@pytest.mark.parametrize(
    "origin",
    [
        *(None, b"null", b"", b"*", b"http://app.example", b"https://app.example:8443", b"https://APP.example"),
        *(b"https://app.example.evil", b"https://evil-app.example", b"https://app.example/", b"https://app.example "),
    ],
)
def test_any_other_origin_gets_vary_alone(origin):
    assert ONE.headers_for(origin) == ((b"Vary", b"Origin"),)


def test_any_origin_is_allowed_only_without_credentials():
    headers = dict(ANY.headers_for(b"https://anyone.example"))
    assert headers[b"Access-Control-Allow-Origin"] == b"*"
    assert b"Access-Control-Allow-Credentials" not in headers
    assert dict(CorsPolicy(origins=frozenset({b"*"})).headers_for(APP)) == {b"Vary": b"Origin"}


def test_without_credentials_nothing_is_said_of_them():
    policy = CorsPolicy(origins=frozenset({APP}), credentials=False)
    assert b"Access-Control-Allow-Credentials" not in dict(policy.headers_for(APP))


def test_the_requests_own_origin_counts():
    assert ONE.headers(make_head(headers=[(b"Origin", APP)])) == ONE.headers_for(APP)


def test_a_preflight_is_answered():
    reply = ONE.preflight(preflight())
    headers = dict(reply.headers)
    assert reply.status == 204
    assert headers[b"Access-Control-Max-Age"] == b"600"
    assert headers[b"Access-Control-Allow-Methods"] == b"GET, HEAD, POST, PUT, PATCH, DELETE"
    allowed = headers[b"Access-Control-Allow-Headers"].lower().split(b", ")
    assert {b"authorization", b"content-type", b"x-tenant-id", b"x-request-id", b"last-event-id"} <= set(allowed)
    assert b"*" not in allowed


def test_a_preflight_from_elsewhere_gets_the_same_status_and_no_permission():
    reply = ONE.preflight(preflight(b"https://evil.example"))
    assert (reply.status, reply.headers, reply.body) == (204, (), b"")


@pytest.mark.parametrize(
    "head",
    [
        preflight(headers=[(b"Origin", APP)]),
        preflight(headers=[(b"Access-Control-Request-Method", b"PUT")]),
        make_head("GET", b"/", [(b"Origin", APP), (b"Access-Control-Request-Method", b"PUT")]),
    ],
)
def test_what_is_no_preflight_is_left_to_others(head):
    assert ONE.preflight(head) is None
