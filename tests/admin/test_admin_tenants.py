import json

import pytest
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import StoreUnavailable, StoreUnreadable
from tests.admin.admin_fakes import JSON_TYPE, NOW, NOW_TEXT, TOKEN, Admin, FakeTenants
from tests.deferreds import failure_of
from tests.heads import make_head

HOLD = b"/api/tenants/bakery-1/read-only"
NOTHING = {"read_only": None, "subscription_changed_at": None, "demo": False}


def test_a_tenants_flags_are_told_with_times_as_text():
    held = TenantFlags(changed_at=NOW, read_only=ReadOnly(reason="audit", since="2023-01-01"), demo=True)
    admin = Admin(tenants=FakeTenants(held={"bakery-1": held}))
    assert json.loads(admin.call("GET", b"/api/tenants/bakery-1").body) == {
        "tenant_id": "bakery-1",
        "read_only": {"reason": "audit", "since": "2023-01-01", "until": None, "by": None},
        "subscription_changed_at": NOW_TEXT,
        "demo": True,
    }
    assert admin.audited == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", b"/read-only", {}),
        ("POST", b"/subscription-changed", None),
        ("GET", b"/limits", None),
        ("PUT", b"/limits", {"requests": 1, "window_seconds": 1, "for_seconds": 1}),
    ],
)
def test_a_value_that_means_nothing_is_named_so_that_it_can_be_mended(method, path, body):
    class Spoilt(FakeTenants):
        async def flags(self, tenant_id):
            raise StoreUnreadable(f"tenant:{tenant_id}:subscription_changed_at in Redis is no time")

    problem = Admin(tenants=Spoilt()).refusal(method, b"/api/tenants/bakery-1" + path, body)
    assert problem.code == "state-unavailable"
    assert problem.detail == (
        "tenant:bakery-1:subscription_changed_at in Redis is no time; set it anew or delete it there, nothing was "
        "changed here."
    )


def test_a_tenants_page_names_it_too():
    class Spoilt(FakeTenants):
        async def flags(self, tenant_id):
            raise StoreUnreadable(f"tenant:{tenant_id}:read_only in Redis is no text")

    page = json.loads(Admin(tenants=Spoilt()).call("GET", b"/api/tenants/bakery-1").body)
    assert page["read_only"]["unavailable"].startswith("tenant:bakery-1:read_only in Redis is no text; set it anew")


def test_a_tenants_page_has_all_sections_and_one_that_fails_hides_no_other(logged_failures):
    async def fine(tenant_id):
        return [tenant_id]

    async def away(tenant_id):
        raise StoreUnavailable("away")

    async def broken(tenant_id):
        raise RuntimeError("fault")

    admin = Admin()
    admin.sections |= {"before": fine, "limits": away, "broken": broken, "after": fine}
    page = json.loads(admin.call("GET", b"/api/tenants/bakery-1").body)
    assert (page["before"], page["after"], page["demo"]) == (["bakery-1"], ["bakery-1"], False)
    assert page["limits"] == {"unavailable": "The shared state did not answer; ask again."}
    assert page["broken"] == {"unavailable": "This could not be told; the log says why."}
    assert [failure.getErrorMessage() for failure in logged_failures] == ["fault"]
    logged_failures.clear()


def test_a_page_without_flags_still_tells_what_happened_here():
    async def fine(tenant_id):
        return [tenant_id]

    admin = Admin(tenants=FakeTenants(fail_reads=True))
    admin.sections["errors"] = fine
    page = json.loads(admin.call("GET", b"/api/tenants/bakery-1").body)
    assert (page["tenant_id"], page["errors"]) == ("bakery-1", ["bakery-1"])
    away = {"unavailable": "The shared state did not answer; ask again."}
    assert [page[name] for name in ("read_only", "subscription_changed_at", "demo")] == [away] * 3


def test_a_caller_who_leaves_while_a_section_is_read_is_let_go():
    waiting: Deferred[object] = Deferred()

    async def slow(tenant_id):
        return await waiting

    admin = Admin()
    admin.sections["slow"] = slow
    head = make_head(
        "GET", b"/api/tenants/a", [(b"Host", b"localhost"), (b"Authorization", b"Bearer " + TOKEN.encode())]
    )
    call = Deferred.fromCoroutine(admin.app.reply_to(head, b""))
    call.cancel()
    assert isinstance(failure_of(call), CancelledError)


def test_disconnecting_ends_what_is_open_here_tells_the_others_and_is_audited():
    admin = Admin()
    reply = admin.call("POST", b"/api/tenants/bakery-1/disconnect", client="192.0.2.9")
    assert (reply.status, json.loads(reply.body)) == (202, {"tenant_id": "bakery-1", "ended": 3, "instances": 2})
    assert (admin.cut, admin.signals.sent) == (["bakery-1"], [("disconnect", "bakery-1")])
    who = {"who": "admin", "client": "192.0.2.9", "when": NOW_TEXT, "tenant_id": "bakery-1"}
    change = {"before": {"open": 3}, "after": {"open": 0}, "instances": 2, "outcome": "done"}
    assert admin.audited == [("admin.tenant.disconnected", {**who, **change})]


def test_a_disconnect_that_the_others_did_not_hear_says_so():
    admin = Admin()
    admin.signals.fail = True
    problem = admin.refusal("POST", b"/api/tenants/bakery-1/disconnect")
    assert problem.code == "state-unavailable"
    assert problem.detail == "3 ended on this instance; the others could not be told. Repeat the call."
    assert admin.audited[0][1]["outcome"] == "unconfirmed"


def test_a_disconnect_takes_no_body():
    admin = Admin()
    assert admin.refusal("POST", b"/api/tenants/bakery-1/disconnect", {"now": True}).code == "bad-request"
    assert (admin.cut, admin.signals.sent) == ([], [])


def test_a_hold_is_stored_answered_and_audited():
    admin = Admin()
    wanted = {"reason": " Unpaid invoice ", "until": "2030-01-31T18:00:00+01:00", "by": "ana"}
    reply = admin.call("PUT", HOLD, wanted, client="192.0.2.9")
    stored = ReadOnly(reason="Unpaid invoice", since=NOW_TEXT, until="2030-01-31T17:00:00Z", by="ana")
    assert admin.tenants.held["bakery-1"].read_only == stored
    after = {
        **NOTHING,
        "read_only": {"reason": "Unpaid invoice", "since": NOW_TEXT, "until": "2030-01-31T17:00:00Z", "by": "ana"},
    }
    assert (reply.status, json.loads(reply.body)) == (200, {"tenant_id": "bakery-1", **after})
    who = {"who": "admin", "client": "192.0.2.9", "when": NOW_TEXT, "tenant_id": "bakery-1"}
    assert admin.audited == [
        ("admin.tenant.read_only.set", {**who, "before": NOTHING, "after": after, "outcome": "done"})
    ]


@pytest.mark.parametrize("document", [None, {}, {"reason": None, "by": "", "until": None}])
def test_a_hold_needs_no_reason(document):
    admin = Admin()
    assert admin.call("PUT", HOLD, document).status == 200
    assert admin.tenants.held["bakery-1"].read_only == ReadOnly(since=NOW_TEXT, by="admin")


def test_a_hold_that_replaces_another_keeps_its_beginning():
    admin = Admin(tenants=FakeTenants(held={"bakery-1": TenantFlags(read_only=ReadOnly(since="2023-01-01", by="x"))}))
    admin.call("PUT", HOLD, {"reason": "new"})
    assert admin.tenants.held["bakery-1"].read_only == ReadOnly(reason="new", since="2023-01-01", by="admin")
    assert admin.audited[0][1]["before"]["read_only"]["by"] == "x"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"reson": "x"}, "reson"),
        ({"since": "2020-01-01T00:00:00Z"}, "since"),
        ({"reason": 5}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": "two\nlines"}, "reason"),
        ({"reason": "\ud800"}, "reason"),
        ({"reason": "a\u2028b"}, "reason"),
        ({"by": ["ana"]}, "by"),
        ({"by": "x" * 201}, "by"),
        ({"until": 1_900_000_000}, "until"),
        ({"until": "tomorrow"}, "until"),
        ({"until": "2030-01-31T18:00:00"}, "until"),
        ({"until": "2030-01-31"}, "until"),
        ({"until": "2020-01-31T18:00:00Z"}, "until"),
        ({"until": "9999-12-31T23:59:59-12:00"}, "until"),
        ({"until": "2030-01-31T18:00:00Z" + " " * 40}, "until"),
        ({"bad\nname\ud800": 1}, "bad?name?"),
    ],
)
def test_a_bad_hold_is_refused_with_the_members_name_and_changes_nothing(document, field):
    admin = Admin()
    problem = admin.refusal("PUT", HOLD, document)
    assert (problem.code, problem.members["field"]) == ("bad-request", field)
    assert problem.detail.startswith(field)
    assert (admin.tenants.held, admin.audited) == ({}, [])


def test_the_end_of_a_hold_is_stored_answered_and_audited():
    admin = Admin(tenants=FakeTenants(held={"bakery-1": TenantFlags(read_only=ReadOnly(reason="x"))}))
    reply = admin.call("DELETE", HOLD)
    assert admin.tenants.held["bakery-1"].read_only is None
    assert json.loads(reply.body) == {"tenant_id": "bakery-1", **NOTHING}
    event, fields = admin.audited[0]
    assert event == "admin.tenant.read_only.cleared"
    assert (fields["before"]["read_only"]["reason"], fields["after"]["read_only"]) == ("x", None)


def test_subscription_changed_takes_effect_at_this_moment():
    admin = Admin()
    reply = admin.call("POST", b"/api/tenants/bakery-1/subscription-changed")
    assert admin.tenants.held["bakery-1"].changed_at == NOW
    assert json.loads(reply.body)["subscription_changed_at"] == NOW_TEXT
    event, fields = admin.audited[0]
    assert event == "admin.tenant.subscription_changed"
    assert (fields["before"], fields["after"]) == (NOTHING, {**NOTHING, "subscription_changed_at": NOW_TEXT})


@pytest.mark.parametrize("tenant", [b"a%2Fb", b"a b", b"x" * 65, b"\xe9", b"a*", b"{id}"])
def test_an_id_that_no_tenant_can_have_is_refused(tenant):
    admin = Admin()
    for method, end in (("GET", b""), ("PUT", b"/read-only"), ("POST", b"/subscription-changed")):
        problem = admin.refusal(method, b"/api/tenants/" + tenant + end)
        assert (problem.code, problem.members) == ("bad-request", {"field": "id"})
    assert admin.tenants.held == {}


@pytest.mark.parametrize(
    ("method", "target"),
    [("PUT", HOLD), ("DELETE", HOLD), ("POST", b"/api/tenants/a/subscription-changed")],
)
def test_a_store_that_cannot_be_read_is_503_and_nothing_is_changed(method, target):
    admin = Admin(tenants=FakeTenants(fail_reads=True))
    problem = admin.refusal(method, target)
    assert (problem.code, problem.status, problem.retry_after_s) == ("state-unavailable", 503, 1)
    assert (admin.tenants.held, admin.audited) == ({}, [])


@pytest.mark.parametrize(
    ("method", "target"), [("PUT", HOLD), ("DELETE", HOLD), ("POST", b"/api/tenants/a/subscription-changed")]
)
def test_a_change_that_the_store_did_not_confirm_is_503_and_audited_as_such(method, target):
    admin = Admin(tenants=FakeTenants(fail_writes=True))
    problem = admin.refusal(method, target)
    assert (problem.code, problem.retry_after_s) == ("state-unavailable", 1)
    assert [fields["outcome"] for _, fields in admin.audited] == ["unconfirmed"]


def test_a_change_whose_caller_left_is_audited_as_unconfirmed():
    class Slow(FakeTenants):
        async def set_read_only(self, tenant_id, read_only):
            await Deferred()

    admin = Admin(tenants=Slow())
    fields = [(b"Host", b"localhost"), (b"Authorization", b"Bearer " + TOKEN.encode()), JSON_TYPE]
    work = Deferred.fromCoroutine(admin.app.reply_to(make_head("PUT", HOLD, fields), b"{}"))
    work.cancel()
    failure_of(work, CancelledError)
    assert [fields["outcome"] for _, fields in admin.audited] == ["unconfirmed"]
