"""Operators' calls on API keys."""

import json

import pytest
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.api_keys import claims_of, digest_of, id_of, record_json
from bakerygw.core.tenancy import TenantFlags
from tests.admin.admin_fakes import NOW, NOW_TEXT, PEPPER, TOKEN, Admin, FakeTenants
from tests.deferreds import failure_of, success_of
from tests.heads import make_head

KEYS = b"/api/keys"
WANTED = {"tenant_id": "bakery-1", "name": "Till 1", "role": "pos"}
ALL = {
    **WANTED,
    "routes": ["/api/v1/pos/", "/api/v1/tenants/{id}/pos", "/api/v1/pos"],
    "methods": ["POST", "GET"],
    "addresses": ["192.0.2.7/24", "2001:DB8:0::1", "::ffff:198.51.100.0/120"],
    "expires_at": "2030-01-31T18:00:00+01:00",
    "limit": {"requests": 60, "window_seconds": 10},
    "by": " maria ",
}


def make(admin, **changes):
    reply = admin.call("POST", KEYS, {**WANTED, **changes})
    assert reply.status == 201
    return json.loads(reply.body)


def at(made, end=b""):
    return KEYS + b"/" + made["id"].encode() + end


def rotate(admin, made, **wanted):
    return json.loads(admin.call("POST", at(made, b"/rotate"), wanted or None).body)


def held(admin, made):
    return success_of(Deferred.fromCoroutine(admin.keys.find(made["id"])))


def opens(admin, made, key=None):
    """What is wrong with the key now; nothing if it is good."""
    key = (key or made["key"]).encode()
    try:
        claims_of(held(admin, made), key, digest_of(key), PEPPER, admin.now)
    except Exception as error:
        return str(error)
    return ""


def listed(admin, query=b""):
    return json.loads(admin.call("GET", KEYS + query).body)


def test_a_key_is_made_with_everything_in_one_spelling_and_shown():
    admin = Admin()
    made = make(admin, **ALL)
    assert id_of(made["key"].encode()) == made["id"]
    shown = {name: value for name, value in made.items() if name not in ("key", "id")}
    assert shown == {
        "status": "active",
        "tenant_id": "bakery-1",
        "name": "Till 1",
        "role": "pos",
        "routes": ["/api/v1/pos", "/api/v1/tenants/bakery-1/pos"],
        "methods": ["GET", "POST"],
        "addresses": ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::1/128"],
        "limit": {"requests": 60, "window_seconds": 10},
        "created_at": NOW_TEXT,
        "created_by": "maria",
        "rotated_at": None,
        "overlap_until": None,
        "expires_at": "2030-01-31T17:00:00.000Z",
        "revoked_at": None,
        "last_used_at": None,
    }
    assert opens(admin, made) == ""


def test_nothing_but_tenant_name_and_role_is_needed():
    made = make(Admin())
    assert [made[name] for name in ("routes", "methods", "addresses", "limit", "expires_at")] == [None] * 5
    assert made["created_by"] == "admin"


def test_the_key_is_told_once_and_kept_nowhere():
    admin = Admin()
    made = make(admin)
    again = rotate(admin, made)
    told = [admin.call("GET", at(made)).body, json.dumps(listed(admin)).encode(), admin.call("DELETE", at(made)).body]
    kept = [repr(admin.records._values).encode(), repr(admin.audited).encode()]
    for key in (made["key"], again["key"]):
        secret = key.split("_", 2)[2][:43].encode()
        assert not [text for text in told + kept if secret in text]
    digests = [digest_of(key["key"].encode()).encode() for key in (made, again)]
    assert not [text for text in [*told, kept[1]] for digest in digests if digest in text]


def test_two_keys_have_nothing_in_common():
    admin = Admin()
    one, two = make(admin), make(admin)
    assert one["id"] != two["id"]
    assert one["key"].split("_", 2)[2] != two["key"].split("_", 2)[2]


def test_seconds_to_live_are_as_good_as_a_moment():
    assert make(Admin(), expires_in=3600)["expires_at"] == "2023-11-14T23:13:20.000Z"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *(({name: value}, name) for name in WANTED for value in (None, "", 5, "x" * 101, "a\nb", ["x"])),
        ({"tenant_id": "a/b"}, "tenant_id"),
        ({"tenant_id": "*"}, "tenant_id"),
        ({"role": "owner, admin"}, "role"),
        ({"rolle": "x"}, "rolle"),
        ({"secret": "x"}, "secret"),
        ({"routes": []}, "routes"),
        ({"routes": "/api/v1/pos"}, "routes"),
        ({"routes": [5]}, "routes"),
        ({"routes": ["/api/v1/pos"] * 51}, "routes"),
        *(
            ({"routes": [path]}, "routes")
            for path in (
                "", "/", "/api", "/api/v1", "/api/v1/po", "/api/v1/pos2", "api/v1/pos", "/api/v1/pos?x=1", "/docs",
                "/api/v1/pos/../x", "/api/v1/pos//x", "/api/v1/%70os", "/api/v1/pos%2fx", "/api/v1/pos/" + "x" * 200,
                "/api/v1/pos/\N{SNOWMAN}", "/api/v1/pos/a b", "/api/v1/pos#x", "/api/v1/pos/*\r\n",
            )
        ),
        ({"methods": ["get"]}, "methods"),
        ({"methods": ["CONNECT"]}, "methods"),
        ({"methods": []}, "methods"),
        *(
            ({"addresses": [address]}, "addresses")
            for address in ("anywhere", "192.0.2.0/33", "192.0.2", "192.0.2.256", "fe80::1%eth0", "::/129", "", 5, None)
        ),
        ({"limit": 60}, "limit"),
        ({"limit": {"requests": 60}}, "limit"),
        ({"limit": {"requests": 60, "window_seconds": 60, "shadow": True}}, "limit"),
        ({"limit": {"requests": 0, "window_seconds": 60}}, "limit.requests"),
        ({"limit": {"requests": True, "window_seconds": 60}}, "limit.requests"),
        ({"limit": {"requests": 1_000_001, "window_seconds": 60}}, "limit.requests"),
        ({"limit": {"requests": 60, "window_seconds": 86_401}}, "limit.window_seconds"),
        ({"expires_at": "2030-01-31"}, "expires_at"),
        ({"expires_at": "2030-01-31T18:00:00"}, "expires_at"),
        ({"expires_at": NOW_TEXT}, "expires_at"),
        ({"expires_at": 1_900_000_000}, "expires_at"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 1.5}, "expires_in"),
        ({"expires_in": "60"}, "expires_in"),
        ({"expires_in": 10**12}, "expires_in"),
        ({"expires_in": 60, "expires_at": "2030-01-31T18:00:00Z"}, "expires_in"),
        ({"by": "x" * 201}, "by"),
    ],
)  # fmt: skip
def test_a_bad_wish_is_refused_with_the_members_name_and_makes_nothing(change, field):
    admin = Admin()
    problem = admin.refusal("POST", KEYS, {**WANTED, **change})
    assert (problem.code, problem.members["field"]) == ("bad-request", field)
    assert problem.detail.startswith(field)
    assert (admin.records._values, admin.audited) == ({}, [])


def test_a_demo_tenant_gets_no_key():
    admin = Admin(tenants=FakeTenants(held={"bakery-1": TenantFlags(demo=True)}))
    problem = admin.refusal("POST", KEYS, WANTED)
    assert (problem.members["field"], admin.records._values) == ("tenant_id", {})


@pytest.mark.parametrize("failing", ["get", "claim", "add"])
def test_a_key_that_could_not_be_kept_and_listed_is_never_told(failing):
    admin = Admin()
    admin.records.failing, admin.tenants.fail_reads = failing, failing == "get"
    problem = admin.refusal("POST", KEYS, WANTED)
    assert (problem.code, problem.retry_after_s) == ("state-unavailable", 1)
    assert [(event, fields["outcome"]) for event, fields in admin.audited] == (
        [] if failing == "get" else [("admin.key.created", "unconfirmed")]
    )


def test_the_list_has_pages_and_can_be_one_tenants():
    admin = Admin()
    mine = sorted(make(admin)["id"] for _ in range(5))
    other = make(admin, tenant_id="bakery-2")["id"]
    assert [key["id"] for key in listed(admin)["keys"]] == sorted([*mine, other])
    first = listed(admin, b"?tenant_id=bakery-1&limit=3")
    assert ([key["id"] for key in first["keys"]], first["next"]) == (mine[:3], mine[2])
    second = listed(admin, b"?tenant_id=bakery-1&limit=3&after=" + first["next"].encode())
    assert ([key["id"] for key in second["keys"]], second["next"]) == (mine[3:], None)
    assert listed(admin, b"?tenant_id=bakery-3") == {"keys": [], "next": None}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"?tenant=x", "tenant"),
        (b"?tenant_id=a/b", "tenant_id"),
        (b"?tenant_id=", "tenant_id"),
        (b"?limit=0", "limit"),
        (b"?limit=101", "limit"),
        (b"?limit=%b2", "limit"),
        (b"?limit=1&limit=2", "query"),
        (b"?" + b"a=&" * 5000, "query"),
        (b"?" + b"&".join(b"a%d=1" % number for number in range(1000)), "a0"),
    ],
)
def test_a_bad_question_for_the_list_is_refused(query, field):
    assert Admin().refusal("GET", KEYS + query).members["field"] == field


def test_the_list_drops_ids_whose_record_has_ended_and_shows_spoilt_ones():
    admin = Admin()
    ended, spoilt, good = make(admin), make(admin), make(admin)
    del admin.records._values[f"apikey:{ended['id']}"]
    admin.records._values[f"apikey:{spoilt['id']}"] = b"rubbish", float("inf")
    for query in (b"", b"?tenant_id=bakery-1"):
        shown = {key["id"]: key["status"] for key in listed(admin, query)["keys"]}
        assert shown == {spoilt["id"]: "unreadable", good["id"]: "active"}
    assert ended["id"] not in admin.records._sets["apikeys"] | admin.records._sets["apikeys:bakery-1"]


def test_a_list_of_one_tenant_never_shows_anothers_key():
    admin = Admin()
    made = make(admin, tenant_id="bakery-2")
    success_of(Deferred.fromCoroutine(admin.records.add("apikeys:bakery-1", made["id"])))
    assert listed(admin, b"?tenant_id=bakery-1")["keys"] == []


def test_a_key_is_shown_with_its_last_use():
    admin = Admin()
    made = make(admin)
    success_of(Deferred.fromCoroutine(admin.keys.used(made["id"], NOW - 60)))
    assert json.loads(admin.call("GET", at(made)).body)["last_used_at"] == "2023-11-14T22:12:20.000Z"
    assert listed(admin)["keys"][0]["last_used_at"] == "2023-11-14T22:12:20.000Z"


@pytest.mark.parametrize("its_id", [b"aaaaaaaaaaaaaaaa", b"x", b"AAAAAAAAAAAAAAAA", b"..", b"aaaaaaaaaaaaaaa1"])
@pytest.mark.parametrize(("method", "end"), [("GET", b""), ("DELETE", b""), ("POST", b"/rotate")])
def test_a_key_that_is_not_there_is_not_found(its_id, method, end):
    admin = Admin()
    assert admin.refusal(method, KEYS + b"/" + its_id + end).code == "not-found"
    assert admin.audited == []


def test_a_rotation_without_overlap_ends_the_old_secret_everywhere():
    admin = Admin()
    made = make(admin)
    again = rotate(admin, made)
    assert again["id"] == made["id"]
    assert (opens(admin, made, again["key"]), opens(admin, made)) == ("", "replaced")
    assert list(admin.revocations.revoked) == [digest_of(made["key"].encode())]


def test_a_rotation_with_overlap_lets_the_old_secret_hold_until_then():
    admin = Admin()
    made = make(admin)
    again = rotate(admin, made, overlap_seconds=60)
    assert again["overlap_until"] == "2023-11-14T22:14:20.500Z"
    assert (opens(admin, made), opens(admin, made, again["key"])) == ("", "")
    admin.now += 60
    assert (opens(admin, made), opens(admin, made, again["key"])) == ("replaced", "")
    assert admin.revocations.revoked == {}


def test_a_short_overlap_ends_on_instances_that_have_not_read_the_record_again():
    admin = Admin()
    made = make(admin)
    again = rotate(admin, made, overlap_seconds=60)
    admin.clock.advance(59.9)
    assert admin.revocations.revoked == {}
    admin.clock.advance(0.1)
    assert set(admin.revocations.revoked) == {digest_of(made["key"].encode())}
    rotate(admin, made, overlap_seconds=61)
    admin.clock.advance(100)
    assert digest_of(again["key"].encode()) not in admin.revocations.revoked
    admin.revocations.fail = True
    rotate(admin, made, overlap_seconds=1)
    admin.clock.advance(1)


def test_no_rotation_prolongs_an_older_secret_and_one_without_overlap_ends_all():
    admin = Admin()
    made = make(admin)
    second = rotate(admin, made, overlap_seconds=60)
    rotate(admin, made, overlap_seconds=1000)
    admin.now += 60
    assert (opens(admin, made), opens(admin, made, second["key"])) == ("replaced", "")
    last = rotate(admin, made)
    assert (opens(admin, made, second["key"]), opens(admin, made, last["key"])) == ("replaced", "")


def test_secrets_are_bounded_and_those_that_fall_out_are_put_out_of_force():
    admin = Admin()
    made = make(admin)
    keys = [made["key"], *(rotate(admin, made, overlap_seconds=600)["key"] for _ in range(6))]
    assert [opens(admin, made, key) for key in keys] == ["wrong-secret"] * 2 + [""] * 5
    assert set(admin.revocations.revoked) == {digest_of(key.encode()) for key in keys[:2]}


@pytest.mark.parametrize("overlap", [-1, 604_801, 1.5, True, "60"])
def test_an_overlap_has_bounds(overlap):
    admin = Admin()
    made = make(admin)
    assert admin.refusal("POST", at(made, b"/rotate"), {"overlap_seconds": overlap}).members["field"] == (
        "overlap_seconds"
    )
    assert opens(admin, made) == ""


def test_what_has_ended_is_not_rotated():
    admin = Admin()
    made, expiring = make(admin), make(admin, expires_in=60)
    admin.call("DELETE", at(made))
    admin.now += 60
    assert "revoked" in admin.refusal("POST", at(made, b"/rotate")).detail
    assert "expired" in admin.refusal("POST", at(expiring, b"/rotate")).detail


def test_a_rotation_that_meets_another_change_changes_nothing_and_says_so():
    admin = Admin()
    made = make(admin)
    found = admin.keys.find

    async def find(key_id):
        record = await found(key_id)
        name = b'"name":"Till 1"'
        key = f"apikey:{key_id}"
        admin.records._values[key] = record_json(record).replace(name, b'"name":"Till 2"'), float("inf")
        return record

    admin.keys.find = find
    assert admin.refusal("POST", at(made, b"/rotate")).code == "state-unavailable"
    admin.keys.find = found
    assert opens(admin, made) == ""
    assert admin.audited[-1][1]["outcome"] == "unconfirmed"


def test_revoking_ends_every_secret_on_all_instances_and_may_be_repeated():
    admin = Admin()
    made = make(admin)
    again = rotate(admin, made, overlap_seconds=60)
    reply = json.loads(admin.call("DELETE", at(made), {"by": "maria"}).body)
    assert (reply["status"], reply["revoked_at"]) == ("revoked", NOW_TEXT)
    assert {opens(admin, made), opens(admin, made, again["key"])} == {"revoked"}
    digests = {digest_of(key["key"].encode()) for key in (made, again)}
    assert set(admin.revocations.revoked) == digests
    admin.revocations.revoked.clear()
    admin.now += 5
    assert json.loads(admin.call("DELETE", at(made)).body)["revoked_at"] == NOW_TEXT
    assert set(admin.revocations.revoked) == digests


def test_revoking_wins_over_whoever_changes_the_key_meanwhile():
    admin = Admin()
    made = make(admin)
    found, races = admin.keys.find, []

    async def find(key_id):
        record = await found(key_id)
        if len(races) < 3:
            races.append(key_id)
            name = b'"Till %d"' % len(races)
            data = json.loads(record_json(record)) | {"name": json.loads(name)}
            text = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
            admin.records._values[f"apikey:{key_id}"] = text, float("inf")
        return record

    admin.keys.find = find
    admin.call("DELETE", at(made))
    admin.keys.find = found
    assert opens(admin, made) == "revoked"


@pytest.mark.parametrize(("act", "overlap_s"), [("rotate", 0), ("rotate", 10), ("revoke", 0)])
def test_an_operator_who_hangs_up_leaves_nothing_half_done(act, overlap_s):
    admin = Admin()
    made = make(admin)
    change, waiting = admin.keys.change, Deferred()

    async def slowly(before, after):
        await waiting
        return await change(before, after)

    admin.keys.change = slowly
    method, end = ("DELETE", b"") if act == "revoke" else ("POST", b"/rotate")
    lines = [
        (b"Host", b"localhost"),
        (b"Authorization", b"Bearer " + TOKEN.encode()),
        (b"Content-Type", b"application/json"),
    ]
    body = b'{"overlap_seconds":%d}' % overlap_s if overlap_s else b""
    calling = Deferred.fromCoroutine(admin.app.reply_to(make_head(method, at(made, end), lines), body))
    calling.cancel()
    failure_of(calling, CancelledError)
    assert opens(admin, made) == ""
    waiting.callback(None)
    admin.now += overlap_s
    admin.clock.advance(overlap_s)
    assert opens(admin, made) in ("revoked", "replaced")
    assert set(admin.revocations.revoked) == {digest_of(made["key"].encode())}
    assert admin.audited[-1][1]["outcome"] == "done"


@pytest.mark.parametrize("failing", ["replace", "revoke"])
def test_a_change_that_was_not_confirmed_is_told_and_audited_as_such(failing):
    admin = Admin()
    made = make(admin)
    admin.records.failing, admin.revocations.fail = failing, failing == "revoke"
    for method, end in (("POST", b"/rotate"), ("DELETE", b"")):
        problem = admin.refusal(method, at(made, end))
        assert (problem.code, problem.retry_after_s) == ("state-unavailable", 1)
        assert admin.audited[-1][1]["outcome"] == "unconfirmed"


@pytest.mark.parametrize(("method", "end"), [("GET", b""), ("POST", b"/rotate"), ("DELETE", b"")])
def test_without_the_store_nothing_is_changed_or_audited(method, end):
    admin = Admin()
    made = make(admin)
    admin.records.failing, before = "get members", len(admin.audited)
    assert admin.refusal(method, at(made, end)).code == "state-unavailable"
    assert admin.refusal("GET", KEYS).code == "state-unavailable"
    assert len(admin.audited) == before


def test_a_spoilt_record_can_be_revoked_and_nothing_else():
    admin = Admin()
    made = make(admin)
    admin.records._values[f"apikey:{made['id']}"] = b"\xff" * 40_000, float("inf")
    for method, end in (("GET", b""), ("POST", b"/rotate")):
        problem = admin.refusal(method, at(made, end))
        assert (problem.code, "revoke the key" in problem.detail) == ("bad-request", True)
    assert json.loads(admin.call("DELETE", at(made)).body) == {"id": made["id"], "status": "unreadable"}
    assert listed(admin)["keys"] == []
    assert admin.audited[-1][0] == "admin.key.revoked"
    assert admin.audited[-1][1]["key_id"] == made["id"]


def test_every_change_is_audited_with_who_what_and_how_it_was_before():
    admin = Admin()
    made = json.loads(admin.call("POST", KEYS, {**WANTED, "by": "maria"}, client="192.0.2.9").body)
    admin.call("POST", at(made, b"/rotate"), {"by": "jo"}, client="192.0.2.9")
    admin.call("DELETE", at(made), {"by": "kim"}, client="192.0.2.9")
    assert [(event, fields["by"]) for event, fields in admin.audited] == [
        ("admin.key.created", "maria"),
        ("admin.key.rotated", "jo"),
        ("admin.key.revoked", "kim"),
    ]
    for _, fields in admin.audited:
        told = {name: fields[name] for name in ("who", "client", "when", "key_id", "tenant_id", "outcome")}
        assert told == {
            "who": "admin",
            "client": "192.0.2.9",
            "when": NOW_TEXT,
            "key_id": made["id"],
            "tenant_id": "bakery-1",
            "outcome": "done",
        }
    created, _, revoked = (fields for _, fields in admin.audited)
    assert (created["before"], created["after"]["status"]) == (None, "active")
    assert (revoked["before"]["status"], revoked["after"]["status"]) == ("active", "revoked")
