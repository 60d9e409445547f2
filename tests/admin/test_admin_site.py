import hashlib
import json
from base64 import b64encode

import pytest

from bakerygw.core.problem import Refused, problem_reply
from tests.admin.admin_fakes import JSON_TYPE, NOW_TEXT, TOKEN, Admin

AUTH = (b"Authorization", b"Bearer " + TOKEN.encode())
PROTECTED = [
    b"/",
    b"/api/services",
    b"/api/routes",
    b"/api/config",
    b"/api/connections",
    b"/api/log-level",
    b"/api/tenants/a",
    b"/no-such-call",
    b"/metrics/",
    b"//metrics",
]


def raw_refusal(admin, *args, **kwargs):
    with pytest.raises(Refused) as refused:
        admin.raw(*args, **kwargs)
    return refused.value.problem


@pytest.mark.parametrize("target", [b"/metrics", b"/health", b"/live", b"/ready"])
def test_probes_and_metrics_need_neither_token_nor_known_host(target):
    assert Admin().raw("GET", target, [(b"Host", b"10.0.0.7:9000")]).status == 200


def test_metrics_are_the_exposition_with_its_media_type():
    reply = Admin().raw("GET", b"/metrics")
    assert (reply.status, reply.body) == (200, b"up 1\n")
    assert dict(reply.headers) == {b"Content-Type": b"text/plain; version=1.0.0", b"Cache-Control": b"no-store"}


def test_health_is_the_public_page():
    assert json.loads(Admin().raw("GET", b"/health").body)["redis"] == "embedded"


@pytest.mark.parametrize(("state", "status"), [("starting", 503), ("running", 200), ("draining", 503)])
def test_ready_only_while_running_but_alive_always(state, status):
    admin = Admin()
    admin.lifecycle.state = state
    reply = admin.raw("GET", b"/ready")
    assert (reply.status, json.loads(reply.body)) == (status, {"status": state})
    assert json.loads(admin.raw("GET", b"/live").body) == {"status": "alive"}


@pytest.mark.parametrize("target", PROTECTED)
def test_everything_else_needs_the_token(target):
    admin = Admin()
    host = (b"Host", b"localhost")
    assert raw_refusal(admin, "GET", target, [host]).code == "token-missing"
    assert raw_refusal(admin, "GET", target, [host, (b"Authorization", b"Bearer x")]).code == "token-invalid"


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Authorization", b"Basic " + TOKEN.encode())],
        [(b"Authorization", TOKEN.encode())],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Bearer " + TOKEN.encode() + b"x")],
        [(b"Authorization", b"Bearer " + TOKEN[:-1].encode())],
        [(b"Authorization", b"Bearer \xff\xfe")],
        [AUTH, AUTH],
        [(b"Authorization", b"Bearer x"), AUTH],
    ],
)
def test_only_the_whole_token_once_opens(fields):
    problem = raw_refusal(Admin(), "GET", b"/api/config", [(b"Host", b"localhost"), *fields])
    assert problem.code == "token-invalid"
    reply = problem_reply(problem, instance="/", request_id="r")
    assert (reply.status, dict(reply.headers)[b"WWW-Authenticate"]) == (401, b'Bearer error="invalid_token"')


def test_a_token_outside_ascii_works_and_an_empty_one_is_no_token():
    assert Admin(token="clé-admin").call("GET", b"/", token="clé-admin").status == 200
    with pytest.raises(ValueError, match="empty"):
        Admin(token="")


@pytest.mark.parametrize(
    "host", [b"localhost", b"LocalHost:9000", b"localhost.:9000", b"127.0.0.1:1", b"[::1]:9000", b"[::1]"]
)
def test_known_hosts_are_accepted_with_any_port_and_case(host):
    assert Admin().call("GET", b"/", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"localhost.evil.example",
        b"evil.example:9000",
        b"",
        b"localhost@evil",
        b"a b",
        b"[::2]",
        b"::1",
    ],
)
def test_other_hosts_are_refused_with_a_hint(host):
    problem = Admin().refusal("GET", b"/api/config", host=host)
    assert problem.code == "origin-forbidden"
    assert "ADMIN_HOSTS" in problem.detail


def test_no_host_and_two_hosts_are_refused():
    assert raw_refusal(Admin(), "GET", b"/", [AUTH]).code == "origin-forbidden"
    assert Admin().refusal("GET", b"/", headers=[(b"Host", b"localhost")]).code == "origin-forbidden"


def test_configured_hosts_may_be_bare_ipv6_but_not_nonsense():
    assert Admin(hosts=["::1"]).call("GET", b"/", host=b"[::1]:9000").status == 200
    with pytest.raises(ValueError, match="not a host name"):
        Admin(hosts=["http://localhost"])


@pytest.mark.parametrize(
    ("origin", "host", "secure"),
    [
        (b"http://localhost:9000", b"localhost:9000", False),
        (b"http://LOCALHOST:9000", b"localhost:9000", False),
        (b"http://localhost", b"localhost:80", False),
        (b"https://localhost", b"localhost:443", True),
    ],
)
def test_the_ports_own_origin_may_call(origin, host, secure):
    assert Admin().call("GET", b"/", host=host, headers=[(b"Origin", origin)], secure=secure).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"null",
        b"https://localhost:9000",
        b"http://localhost:9001",
        b"http://localhost",
        b"",
        b"http://localhost:9000.evil.example",
    ],
)
def test_foreign_origins_are_refused_even_with_the_token(origin):
    admin = Admin()
    assert admin.refusal("POST", b"/api/drain", headers=[(b"Origin", origin)]).code == "origin-forbidden"
    assert admin.lifecycle.drains == 0


def test_refused_callers_are_audited():
    admin = Admin()
    admin.refusal("POST", b"/api/drain", token="wrong", client="192.0.2.9")
    assert admin.audited == [
        ("admin.refused", {"client": "192.0.2.9", "method": "POST", "code": "token-invalid", "when": NOW_TEXT})
    ]


def test_unknown_calls_are_not_found():
    for target in (b"/nothing", b"/api", b"/api/tenants", b"/api/tenants/", b"/api/tenants/a/other", b"/api/config/"):
        assert Admin().refusal("GET", target).code == "not-found"


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", b"/api/config", b"GET, HEAD"),
        ("DELETE", b"/api/log-level", b"GET, PUT, HEAD"),
        ("GET", b"/api/drain", b"POST"),
        ("HEAD", b"/api/drain", b"POST"),
        ("OPTIONS", b"/api/tenants/a/read-only", b"PUT, DELETE"),
        ("POST", b"/metrics", b"GET, HEAD"),
    ],
)
def test_other_methods_are_refused_with_allow(method, target, allow):
    problem = Admin().refusal(method, target)
    assert (problem.code, problem.headers) == ("method-not-allowed", ((b"Allow", allow),))


@pytest.mark.parametrize("target", [b"/", b"/metrics", b"/api/config", b"/api/tenants/a"])
def test_head_is_answered_as_get(target):
    assert Admin().call("HEAD", target) == Admin().call("GET", target)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (b"/api/services", {"auth": {"urls": ["a", "b"]}}),
        (b"/api/routes", [{"prefix": "/api/v1/sales"}]),
        (b"/api/config", {"redis_password": "***"}),
        (b"/api/connections", {"open": 3}),
    ],
)
def test_state_is_told_as_json_that_nobody_stores(target, told):
    reply = Admin(services=lambda: {"auth": {"urls": {"b", "a"}}}).call("GET", target)
    assert json.loads(reply.body) == told
    assert dict(reply.headers) == {b"Content-Type": b"application/json", b"Cache-Control": b"no-store"}


def test_the_root_lists_the_calls_as_json():
    calls = json.loads(Admin().call("GET", b"/").body)["calls"]
    assert {("PUT", "/api/tenants/{id}/read-only"), ("POST", "/api/drain"), ("GET", "/metrics")} <= {
        (call["method"], call["path"]) for call in calls
    }


def test_the_root_is_a_page_for_browsers_under_a_policy_that_allows_its_style_alone():
    reply = Admin().call("GET", b"/", headers=[(b"Accept", b"text/html,application/xhtml+xml")])
    headers = dict(reply.headers)
    assert headers[b"Content-Type"] == b"text/html; charset=utf-8"
    assert b"PUT /api/tenants/{id}/read-only" in reply.body
    style = reply.body.partition(b"<style>")[2].partition(b"</style>")[0]
    allowed = b"style-src 'sha256-" + b64encode(hashlib.sha256(style).digest()) + b"'"
    assert allowed in headers[b"Content-Security-Policy"]
    assert headers[b"Content-Security-Policy"].startswith(b"default-src 'none'")


def test_the_log_level_is_told_and_set_and_audited():
    admin = Admin()
    assert json.loads(admin.call("GET", b"/api/log-level").body) == {"level": "INFO"}
    assert json.loads(admin.call("PUT", b"/api/log-level", {"level": "DEBUG"}, client="192.0.2.9").body) == {
        "level": "DEBUG"
    }
    assert admin.level.level == "DEBUG"
    change = {"before": "INFO", "after": "DEBUG", "outcome": "done"}
    assert admin.audited == [
        ("admin.log_level.set", {"who": "admin", "client": "192.0.2.9", "when": NOW_TEXT, **change})
    ]


@pytest.mark.parametrize("document", [{"level": "TRACE"}, {"level": 10}, {}, {"level": ["INFO"]}, {"levle": "INFO"}])
def test_a_bad_log_level_changes_nothing(document):
    admin = Admin()
    assert admin.refusal("PUT", b"/api/log-level", document).code == "bad-request"
    assert (admin.level.level, admin.audited) == ("INFO", [])


def test_drain_answers_202_once_begun_and_again_without_beginning_anew():
    admin = Admin()
    for _ in range(2):
        reply = admin.call("POST", b"/api/drain")
        assert (reply.status, json.loads(reply.body)) == (202, {"status": "draining"})
    assert admin.lifecycle.drains == 1
    assert [(event, it["before"], it["after"]) for event, it in admin.audited] == [
        ("admin.drain", "running", "draining"),
        ("admin.drain", "draining", "draining"),
    ]


@pytest.mark.parametrize(
    "media_type", [None, b"text/plain", b"application/x-www-form-urlencoded", b"application/json2"]
)
def test_a_body_that_a_form_could_send_is_refused(media_type):
    admin = Admin()
    fields = [(b"Host", b"localhost"), AUTH, *([(b"Content-Type", media_type)] if media_type else [])]
    problem = raw_refusal(admin, "PUT", b"/api/log-level", fields, b'{"level": "DEBUG"}')
    assert (problem.code, problem.members) == ("bad-request", {"field": "Content-Type"})
    assert admin.level.level == "INFO"


def test_json_with_a_charset_is_json():
    fields = [(b"Host", b"localhost"), AUTH, (b"Content-Type", b"Application/JSON; charset=utf-8")]
    assert Admin().raw("PUT", b"/api/log-level", fields, b'{"level": "DEBUG"}').status == 200


@pytest.mark.parametrize(
    "body",
    [b"[]", b"1", b"{", b"\xff", b'{"level": "INFO", "level": "DEBUG"}', b'{"level": NaN}', b"[" * 50_000],
)
def test_a_body_that_is_no_json_object_is_refused(body):
    problem = raw_refusal(Admin(), "PUT", b"/api/log-level", [(b"Host", b"localhost"), AUTH, JSON_TYPE], body)
    assert problem.code == "bad-request"


def test_a_body_where_none_belongs_is_refused():
    admin = Admin()
    assert admin.refusal("POST", b"/api/drain", {"now": True}).members == {"field": "now"}
    assert admin.lifecycle.drains == 0
