import json

import pytest

from bakerygw.core.alerts import Position
from bakerygw.core.problem import Refused
from bakerygw.ports import StoreUnavailable
from tests.admin.admin_fakes import JSON_TYPE, NOW, PUBLISH_TOKEN, TOKEN, Admin
from tests.deferreds import success_of

PATH = b"/api/tenants/bakery-1/alerts"
SAID = {"alert_id": "a-1", "severity": "high", "message": "oven 3 is cold", "oven": 3}


def told(reply):
    return reply.status, json.loads(reply.body)


def page(admin, tenant_id="bakery-1"):
    from twisted.internet.defer import Deferred  # noqa: PLC0415

    reading = admin.events.read(tenant_id, Position(epoch=0, offset=0), count=10, max_bytes=10**6)
    return [event.payload for event in success_of(Deferred.fromCoroutine(reading)).events]


def refused(admin, *args, **kwargs):
    with pytest.raises(Refused) as error:
        admin.raw(*args, **kwargs)
    return error.value.problem


def bearer(token):
    return (b"Authorization", b"Bearer " + token.encode())


@pytest.mark.parametrize("token", [TOKEN, PUBLISH_TOKEN])
def test_an_alert_is_stored_told_to_all_and_answered_with_its_place(token):
    admin = Admin()
    answer = told(admin.call("POST", PATH, SAID, token=token))
    assert answer == (201, {"id": f"{int(NOW * 1000) + 1}-1", "stored": True, "repeated": False})
    assert admin.published == [("bakery-1", json.dumps(SAID).encode())]
    assert page(admin) == [json.dumps(SAID).encode()]
    assert (admin.counted, admin.audited) == (["stored"], [])


def test_a_repeat_is_answered_with_the_first_place_and_told_to_nobody():
    admin = Admin()
    _, first = told(admin.call("POST", PATH, SAID))
    admin.published.clear()
    assert told(admin.call("POST", PATH, {**SAID, "severity": "low"})) == (200, {**first, "repeated": True})
    assert admin.published == []
    assert admin.counted == ["stored", "repeated"]


def test_the_bytes_are_published_as_they_came():
    admin = Admin()
    body = b'{ "message":\n "k\xc3\xbchl \\u00fc" , "message_2": 1.50 }'
    admin.raw("POST", PATH, [(b"Host", b"localhost"), bearer(PUBLISH_TOKEN), JSON_TYPE], body)
    assert page(admin) == [body]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", b"/"),
        ("GET", b"/api/config"),
        ("PUT", b"/api/log-level"),
        ("POST", b"/api/drain"),
        ("GET", b"/api/tenants/bakery-1"),
        ("DELETE", b"/api/tenants/bakery-1/read-only"),
        ("POST", b"/api/tenants/bakery-1/disconnect"),
        ("POST", b"/api/tenants/bakery-1/alerts/"),
        ("POST", b"/api/tenants/bakery-1/alerts/x"),
        ("POST", b"/api/keys/bakery-1/alerts"),
        ("POST", b"/api/tenants/a%2Fb/read-only"),
        ("GET", b"/api/keys"),
    ],
)
def test_the_publishers_token_opens_nothing_else(method, target):
    admin = Admin()
    problem = admin.refusal(method, target, token=PUBLISH_TOKEN)
    assert problem.code == "token-invalid"
    assert [event for event, _ in admin.audited] == ["admin.refused"]
    assert admin.lifecycle.drains == 0


@pytest.mark.parametrize(
    "fields",
    [
        [bearer("x")],
        [bearer(PUBLISH_TOKEN + "x")],
        [bearer("")],
        [(b"Authorization", b"Basic " + PUBLISH_TOKEN.encode())],
        [bearer(PUBLISH_TOKEN), bearer(PUBLISH_TOKEN)],
        [bearer(PUBLISH_TOKEN), bearer(TOKEN)],
    ],
)
def test_a_wrong_token_publishes_nothing(fields):
    admin = Admin()
    body = json.dumps(SAID).encode()
    wrong = refused(admin, "POST", PATH, [(b"Host", b"localhost"), *fields, JSON_TYPE], body)
    assert (wrong.code, "PUBLISH_TOKEN" in wrong.detail) == ("token-invalid", True)
    missing = refused(admin, "POST", PATH, [(b"Host", b"localhost"), JSON_TYPE], body)
    assert (missing.code, "PUBLISH_TOKEN" in missing.detail) == ("token-missing", True)
    assert (admin.published, page(admin)) == ([], [])


def test_without_a_publishers_token_only_the_admins_opens_it():
    admin = Admin(publish_token=None)
    assert admin.refusal("POST", PATH, SAID, token=PUBLISH_TOKEN).code == "token-invalid"
    assert admin.call("POST", PATH, SAID).status == 201
    with pytest.raises(ValueError, match="must not be empty"):
        Admin(publish_token="")


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Host", b"evil.example"), JSON_TYPE],
        [(b"Host", b"localhost"), (b"Origin", b"https://evil.example"), JSON_TYPE],
        [(b"Host", b"localhost"), (b"Origin", b"null"), JSON_TYPE],
    ],
)
def test_host_and_origin_are_checked_as_everywhere(fields):
    admin = Admin()
    problem = refused(admin, "POST", PATH, [*fields, bearer(PUBLISH_TOKEN)], b'{"message":"m"}')
    assert problem.code == "origin-forbidden"
    assert admin.published == []


def test_what_a_form_can_send_is_no_alert():
    admin = Admin()
    fields = [(b"Host", b"localhost"), bearer(PUBLISH_TOKEN), (b"Content-Type", b"text/plain")]
    assert refused(admin, "POST", PATH, fields, b'{"message":"m"}').members == {"field": "Content-Type"}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "message"),
        ({"message": None}, "message"),
        ({"message": ""}, "message"),
        ({"message": " \n"}, "message"),
        ({"message": 5}, "message"),
        ({"text": "m"}, "message"),
        ({"message": "m", "alert_id": 5}, "alert_id"),
        ({"message": "m", "alert_id": ""}, "alert_id"),
        ({"message": "m", "alert_id": "x" * 129}, "alert_id"),
        ({"message": "m", "channels": "email"}, "channels"),
        ({"message": "m", "channels": ["sse", 5]}, "channels"),
        ({"message": "m", "channels": {"email": True}}, "channels"),
    ],
)
def test_what_is_missing_or_wrong_is_named(document, field):
    admin = Admin()
    problem = admin.refusal("POST", PATH, document)
    assert (problem.code, problem.members["field"]) == ("bad-request", field)
    assert (admin.published, admin.counted) == ([], ["refused"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[]",
        b'"message"',
        b'{"message": NaN}',
        b'{"message": "m"',
        b'\xef\xbb\xbf{"message": "m"}',
        '{"message": "m"}'.encode("utf-16"),
        b'{"message": "\xff"}',
        b"[" * 60_000,
        b'{"message": "m"}' + b" " * 65_536,
    ],
)
def test_what_is_no_json_object_is_no_alert(body):
    admin = Admin()
    problem = refused(admin, "POST", PATH, [(b"Host", b"localhost"), bearer(PUBLISH_TOKEN), JSON_TYPE], body)
    assert (problem.code, problem.status) == ("bad-request", 400)
    assert "one JSON object in UTF-8" in problem.detail
    assert admin.published == []


@pytest.mark.parametrize("tenant", [b"a%2Fb", b"a b", b"x" * 65, b"*"])
def test_an_id_that_no_tenant_can_have_is_refused(tenant):
    admin = Admin()
    problem = admin.refusal("POST", b"/api/tenants/" + tenant + b"/alerts", SAID, token=PUBLISH_TOKEN)
    assert (problem.code, problem.members) == ("bad-request", {"field": "id"})


def test_an_alert_that_was_not_confirmed_is_to_be_sent_again():
    async def away(alert):
        raise StoreUnavailable("away")

    admin = Admin()
    admin.events.publish = away
    problem = admin.refusal("POST", PATH, SAID)
    assert (problem.code, problem.status, problem.retry_after_s) == ("state-unavailable", 503, 1)
    assert "Send it again" in problem.detail
    assert admin.counted == ["unavailable"]
