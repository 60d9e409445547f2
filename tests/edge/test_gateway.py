"""The public port: transport, origins, and its own pages."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.edge.edge_fakes import request
from tests.edge.port_fakes import Stage, response

APP = b"Origin: https://app.example"
PREFLIGHT = (APP, b"Access-Control-Request-Method: PUT")
SALES = b"/api/v1/sales/today"
HSTS = b"max-age=31536000; includeSubDomains"


@pytest.mark.parametrize(
    ("target", "token", "status"), [(SALES, b"good", 200), (SALES, b"", 401), (b"/nowhere", b"", 404)]
)
def test_an_allowed_origin_may_read_every_answer(target, token, status):
    answer = Stage().ask(target, APP, token=token)
    assert answer.status == status
    assert answer.headers[b"access-control-allow-origin"] == [b"https://app.example"]
    assert answer.headers[b"vary"] == [b"Origin"]


@pytest.mark.parametrize("lines", [(), (b"Origin: https://evil.example",), (b"Origin: null",)])
def test_no_other_origin_may_and_caches_are_told(lines):
    answer = Stage().ask(SALES, *lines, token=b"good")
    assert answer.status == 200
    assert b"access-control-allow-origin" not in answer.headers
    assert answer.headers[b"vary"] == [b"Origin"]


def test_a_service_does_not_speak_for_other_origins():
    stage = Stage()
    stage.services.response = response(headers=((b"Access-Control-Allow-Origin", b"*"), (b"Vary", b"Accept")))
    answer = stage.ask(SALES, b"Origin: https://evil.example", token=b"good")
    assert b"access-control-allow-origin" not in answer.headers
    assert answer.headers[b"vary"] == [b"Accept", b"Origin"]


def test_a_preflight_is_answered_here():
    stage = Stage()
    answer = stage.ask(SALES, *PREFLIGHT, method=b"OPTIONS")
    assert answer.status == 204
    assert b"content-length" not in answer.headers
    assert answer.headers[b"access-control-allow-origin"] == [b"https://app.example"]
    assert answer.headers[b"access-control-max-age"] == [b"600"]
    assert stage.services.requests == []


def test_options_for_the_whole_server_names_the_methods():
    answer = Stage().ask(b"*", method=b"OPTIONS")
    assert answer.status == 204
    assert b"PATCH" in answer.headers[b"allow"][0]


def test_own_pages_are_answered_here():
    stage = Stage()
    assert stage.ask(b"/health").body == b"healthy"
    assert stage.ask(b"/docs/index.html").body == b"docs"
    assert stage.services.requests == []
    assert [trace.route for trace in stage.notes.begun] == ["/health", "/docs"]


def test_own_pages_that_need_a_token_are_kept_from_who_has_none():
    stage = Stage()
    assert stage.ask(b"/api/v1/geocode", method=b"POST", token=b"good").body == b"a place"
    assert stage.ask(b"/api/v1/geocode", method=b"POST").status == 401


@pytest.mark.parametrize(
    ("peer", "lines", "target", "status"),
    [
        ("192.0.2.1", (), SALES, 403),
        ("192.0.2.1", (b"X-Forwarded-Proto: https",), SALES, 403),
        ("192.0.2.1", (), b"/nowhere", 403),
        ("192.0.2.1", (), b"/health", 200),
        ("192.0.2.1", (), b"/docs", 403),
        ("10.0.0.1", (), SALES, 403),
        ("10.0.0.1", (b"X-Forwarded-Proto: https, http",), SALES, 403),
        ("10.0.0.1", (b"X-Forwarded-Proto: https",), SALES, 200),
    ],
)
def test_production_takes_only_https(peer, lines, target, status):
    stage = Stage(https_only=True)
    data = request(b"GET", target, b"Authorization: Bearer good", *lines)
    answer = stage.client(data, peer=peer, trusted=(ip_network("10.0.0.0/8"),)).only()
    assert answer.status == status
    assert answer.headers[b"strict-transport-security"] == [HSTS]
    if status == 403:
        assert answer.problem()["code"] == "insecure-transport"
        assert stage.services.requests == []


def test_elsewhere_nothing_is_said_of_https():
    answer = Stage().ask(SALES, token=b"good")
    assert answer.status == 200
    assert b"strict-transport-security" not in answer.headers


def test_new_policies_hold_for_requests_to_come_and_running_ones_keep_theirs():
    stage = Stage()
    stage.services.response = None
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    stage.gateway.policies = replace(stage.policies, https_only=True)
    stage.services.waiting[0].callback(response())
    assert client.only().status == 200
    assert b"strict-transport-security" not in client.only().headers
    assert stage.ask(SALES, token=b"good").status == 403
