"""What is kept of refusals and changes: for whom, how much of it, and what remains when a user is erased."""

import orjson
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.ports import StoreUnavailable
from bakerygw.telemetry.audit import BATCH, LOGIN_ROUTE, MAX_QUEUED, RETRY_S, TICK_S, AuditTrail
from bakerygw.telemetry.entries import opened
from bakerygw.telemetry.redaction import Redactor
from bakerygw.telemetry.repeats import MAX_GROUPS, WINDOW_S
from bakerygw.telemetry.subjects import MAX_AGE_S, Subject, Subjects, name_of
from tests.deferreds import success_of
from tests.telemetry.audit_fakes import MemoryAudit, outcome

CHANGE = {"who": "admin", "client": "192.0.2.9", "tenant_id": "t", "before": {"a": 1}, "after": {"a": 2}}


class Rig:
    def __init__(self):
        self.clock, self.store, self.lines = Clock(), MemoryAudit(), []
        self.counted = {"written": 0, "dropped": 0}
        self.subjects = Subjects(self.store, self.clock)
        self.trail = AuditTrail(
            self.store,
            self.subjects,
            clock=self.clock,
            stamp=lambda: f"at {self.clock.seconds():g}",
            redactor=Redactor(["s3cret-value"]),
            line=lambda event, **fields: self.lines.append((event, fields)),
            told=self._told,
        )
        self.trail.start()

    def _told(self, result, number):
        self.counted[result] += number

    def pass_time(self, seconds=TICK_S):
        for _ in range(max(1, round(seconds))):
            self.clock.advance(1)

    def kept(self, ledger="refusals"):
        return [orjson.loads(entry) for entry in self.store.kept[ledger]]

    def close(self):
        success_of(Deferred.fromCoroutine(self.trail.close()))

    def about(self, user_id):
        key = self.store.held.get(name_of(user_id))
        if key is None:
            return []
        subject = Subject(user_id, key)
        found = [opened(entry, subject) for entry in self.store.kept["events"] + self.store.kept["refusals"]]
        return [entry for entry in found if entry is not None]


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.store.away = False
    made.close()
    assert made.clock.getDelayedCalls() == []


def test_a_refusal_is_kept_with_everything_that_explains_it(rig):
    rig.trail.refused(outcome(cause="no entry"))
    assert rig.kept() == []
    rig.pass_time()
    (entry,) = rig.about("ana")
    assert len(entry.pop("id")) == 16
    assert len(entry.pop("user")) == 32
    assert entry == {
        "when": "at 0", "event": "request.refused", "user_id": "ana", "tenant_id": "bakery-1", "client": "192.0.2.77",
        "request_id": "req-12345678", "method": "GET", "route": "/api/v1/sales/**", "code": "tenant-forbidden",
        "status": 403, "cause": "no entry",
    }  # fmt: skip
    assert rig.counted == {"written": 1, "dropped": 0}


def test_what_tells_who_it_was_can_be_read_with_the_users_key_alone(rig):
    rig.trail.refused(outcome())
    rig.trail("key.used", user_id="ana", who="ana", client="192.0.2.77", email="ana@x.example", path="/ana", after="x")
    rig.pass_time()
    for personal in (b"ana", b"192.0.2", b"req-12345678", b"x.example"):
        assert personal not in rig.store.all
    assert [entry["user_id"] for entry in rig.about("ana")] == ["ana", "ana"]
    assert rig.about("ana")[0]["email"] == "ana@x.example"
    key = rig.store.held[name_of("ana")]
    assert opened(rig.store.kept["refusals"][0], Subject("ana", key[::-1])) is None
    assert opened(rig.store.kept["refusals"][0], Subject("eva", key)) is None


def test_one_sealed_part_does_not_fit_into_another_entry(rig):
    rig.trail.refused(outcome())
    rig.trail.refused(outcome(client="192.0.2.78", request_id="req-99999999"))
    rig.pass_time()
    one, other = rig.kept()
    forged = orjson.dumps({**one, "sealed": other["sealed"]})
    read = opened(forged, Subject("ana", rig.store.held[name_of("ana")]))
    assert read["unreadable"] is True
    assert "client" not in read


@pytest.mark.parametrize("sealed", ["", "x", "AAAA", 5, None, "é", "A" * 200])
def test_nonsense_in_the_sealed_part_is_no_fault(rig, sealed):
    rig.trail.refused(outcome())
    rig.pass_time()
    nonsense = orjson.dumps({**rig.kept()[0], "sealed": sealed})
    assert "client" not in opened(nonsense, Subject("ana", rig.store.held[name_of("ana")]))


def test_of_callers_who_are_not_known_the_network_is_kept(rig):
    rig.trail.refused(outcome(401, user_id=None, tenant_id=None, reason="token-expired"))
    rig.pass_time()
    assert rig.kept()[0]["client"] == "192.0.2.0/24"
    assert rig.store.held == {}


@pytest.mark.parametrize(
    ("told", "event"),
    [
        (outcome(401, reason="token-revoked"), "request.refused"),
        (outcome(402, reason="subscription-expired"), "request.refused"),
        (outcome(403, reason="tenant-read-only"), "request.refused"),
        (outcome(429, reason="rate-limited"), "request.refused"),
        (outcome(403, reason="demo-isolation"), "demo.crossing"),
        (outcome(401, reason=None, route=LOGIN_ROUTE, user_id=None), "login.failed"),
        (outcome(403, reason=None, route=LOGIN_ROUTE, user_id=None), "login.failed"),
        (outcome(401, reason=None), None),
        (outcome(404, reason="not-found"), None),
        (outcome(503, reason="state-unavailable"), None),
        (outcome(200, reason="cut"), None),
    ],
)
def test_refusals_by_policy_and_failed_sign_ins_are_kept_and_nothing_else(rig, told, event):
    rig.trail.refused(told)
    rig.pass_time()
    assert [entry["event"] for entry in rig.kept()] == ([] if event is None else [event])
    assert rig.lines == []


def test_an_event_is_a_line_at_once_and_an_entry_among_the_events(rig):
    rig.trail("admin.tenant.read_only.set", **CHANGE)
    assert rig.lines == [("admin.tenant.read_only.set", CHANGE)]
    rig.pass_time()
    assert [{**entry, "id": ""} for entry in rig.kept("events")] == [
        {"id": "", "when": "at 0", "event": "admin.tenant.read_only.set", **CHANGE}
    ]


def test_equal_changes_are_each_kept(rig):
    for _ in range(3):
        rig.trail("admin.tenant.read_only.set", **CHANGE)
    rig.pass_time()
    assert len(rig.kept("events")) == 3


def test_equal_refusals_of_a_minute_are_the_first_and_a_count(rig):
    for number in range(50):
        rig.trail.refused(outcome(request_id=f"request-{number}"))
        rig.clock.advance(0.1)
    rig.trail.refused(outcome(user_id="eva"))
    rig.trail.refused(outcome(reason="tenant-read-only"))
    rig.pass_time()
    assert len(rig.kept()) == 3
    rig.pass_time(WINDOW_S)
    ana = [entry for entry in rig.about("ana") if entry["code"] == "tenant-forbidden"]
    assert [entry.get("count") for entry in ana] == [None, 49]
    assert (ana[1]["since"], ana[1]["when"]) == ("at 0", "at 4.9")
    rig.trail.refused(outcome())
    rig.pass_time()
    assert len(rig.kept()) == 5


def test_a_flood_from_everywhere_becomes_few_entries(rig):
    for number in range(5 * MAX_GROUPS):
        address = f"10.{number >> 8}.{number & 255}.1"
        rig.trail.refused(outcome(401, user_id=None, client=address, reason="token-missing"))
    rig.pass_time(2 * WINDOW_S)
    assert len(rig.kept()) == MAX_GROUPS + 1
    last = rig.kept()[-1]
    assert (last["who"], last["count"], last["code"]) == ("anybody", 4 * MAX_GROUPS, "token-missing")
    assert "client" not in last


@pytest.mark.parametrize("clients", [1, 3 * MAX_GROUPS])
def test_of_a_flood_hardly_any_entry_is_made(rig, clients):
    made = []

    class Counting(Redactor):
        def record(self, fields):
            made.append(fields)
            return super().record(fields)

    rig.trail._redactor = Counting()
    for number in range(10 * MAX_GROUPS):
        address = f"10.{number % clients >> 8}.{number % clients & 255}.1"
        rig.trail.refused(outcome(401, user_id=None, client=address, reason="token-missing"))
    assert len(made) <= min(clients, MAX_GROUPS + 1)


def test_a_flood_of_strangers_takes_no_known_users_room(rig):
    for number in range(2 * MAX_GROUPS):
        rig.trail.refused(outcome(401, user_id=None, client=f"10.{number >> 8}.{number & 255}.1"))
    rig.trail.refused(outcome())
    rig.pass_time(10)
    assert len(rig.about("ana")) == 1


def test_while_the_store_is_away_entries_wait_in_order_and_are_written_once(rig):
    rig.store.away = True
    for number in range(450):
        rig.trail("admin.change", after=number)
    rig.pass_time(10)
    assert rig.kept("events") == []
    rig.store.away = False
    rig.pass_time(RETRY_S + TICK_S + 2)
    assert [entry["after"] for entry in rig.kept("events")] == list(range(450))
    assert rig.counted == {"written": 450, "dropped": 0}


def test_what_does_not_fit_while_the_store_is_away_is_dropped_and_counted(rig):
    rig.store.away = True
    for number in range(MAX_QUEUED + 7):
        rig.trail("admin.change", after=number)
    rig.trail.refused(outcome())
    assert rig.counted["dropped"] == 7
    rig.store.away = False
    rig.pass_time(MAX_QUEUED / BATCH)
    assert [entry["after"] for entry in rig.kept("events")[:MAX_QUEUED]] == list(range(MAX_QUEUED))


def test_the_trail_itself_tells_what_it_lacks_once_it_is_written_again_and_the_log_tells_once(rig, logged):
    rig.store.away = True
    for number in range(MAX_QUEUED + 7):
        if number >= MAX_QUEUED:
            rig.pass_time()
        rig.trail("admin.change", after=number)
    rig.trail.refused(outcome())
    rig.pass_time(3 * RETRY_S)
    assert [event["state"] for event in logged("audit.store")] == ["failing"]
    rig.store.away = False
    rig.pass_time(MAX_QUEUED / BATCH)
    assert [(event["state"], event.get("dropped")) for event in logged("audit.store")] == [
        ("failing", None),
        ("writing", 7),
    ]
    *_, last = rig.kept("events")
    assert {**last, "id": ""} == {"id": "", "when": "at 7", "event": "audit.dropped", "since": "at 1", "count": 7}
    assert len(rig.kept("events")) == MAX_QUEUED + 1
    assert [entry["event"] for entry in rig.kept("refusals")] == ["request.refused"]
    rig.store.away = True
    rig.trail("admin.change", after=1)
    rig.pass_time()
    rig.store.away = False
    rig.pass_time(RETRY_S + TICK_S)
    assert logged("audit.store")[-1]["dropped"] == 0
    assert rig.kept("events")[-1]["event"] == "admin.change"


def test_what_is_too_old_goes_before_anything_is_written_for_it_may_be_in_the_way(rig):
    rig.store.away = True
    rig.trail("admin.change", after=1)
    rig.pass_time(70)
    assert rig.store.trimmed == ["events", "refusals"]


def test_a_flood_of_refusals_while_the_store_is_away_takes_no_events_place(rig):
    rig.store.away = True
    for _ in range(MAX_QUEUED // MAX_GROUPS + 2):
        for number in range(MAX_GROUPS):
            rig.trail.refused(outcome(401, user_id=None, client=f"10.{number >> 8}.{number & 255}.1"))
            rig.trail.refused(outcome(401, user_id=None, client=f"10.{number >> 8}.{number & 255}.1"))
        rig.pass_time(WINDOW_S)
    assert rig.counted["dropped"] > 0
    rig.trail("admin.change", after=1)
    rig.store.away = False
    rig.pass_time(RETRY_S + TICK_S)
    assert len(rig.kept("events")) == 1


def test_a_ledger_that_cannot_be_written_does_not_hold_up_the_other(rig):
    append = rig.store.append

    async def one_only(ledger, entries):
        if ledger == "events":
            raise StoreUnavailable("WRONGTYPE")
        await append(ledger, entries)

    rig.store.append = one_only
    rig.trail("admin.change", after=1)
    rig.trail.refused(outcome())
    rig.pass_time(5)
    assert (len(rig.kept("events")), len(rig.kept())) == (0, 1)
    rig.store.append = append
    rig.pass_time(RETRY_S + TICK_S)
    assert len(rig.kept("events")) == 1


def test_between_batches_others_have_their_turn(rig):
    for number in range(3 * BATCH):
        rig.trail("admin.change", after=number)
    seen = []
    rig.clock.callLater(TICK_S, lambda: seen.append(len(rig.kept("events"))))
    rig.pass_time()
    assert (seen, len(rig.kept("events"))) == ([BATCH], 3 * BATCH)


def test_a_store_that_never_comes_back_does_not_hold_up_the_end(logged):
    rig = Rig()
    rig.store.away = True
    rig.trail("admin.change", after=1)
    rig.pass_time()
    rig.close()
    assert rig.counted == {"written": 0, "dropped": 1}
    assert [event["entries"] for event in logged("audit.dropped")] == [1]


def test_at_the_end_what_is_counted_and_what_is_queued_is_written(rig):
    rig.trail.refused(outcome())
    rig.trail.refused(outcome())
    rig.close()
    assert [entry.get("count") for entry in rig.kept()] == [None, 1]
    assert len({entry["id"] for entry in rig.kept()}) == 2


def test_an_erased_user_is_in_no_entry_and_the_others_are_whole(rig):
    rig.trail.refused(outcome())
    rig.trail.refused(outcome(user_id="eva"))
    rig.pass_time()
    before, pseudonym = rig.kept(), rig.about("ana")[0]["user"]
    success_of(Deferred.fromCoroutine(rig.store.erase(name_of("ana"))))
    rig.trail.forget(name_of("ana"))
    assert rig.about("ana") == []
    assert rig.kept() == before
    assert rig.about("eva")[0]["client"] == "192.0.2.77"
    rig.trail.refused(outcome(reason="tenant-read-only"))
    rig.pass_time()
    (after,) = rig.about("ana")
    assert (after["code"], after["user"] != pseudonym) == ("tenant-read-only", True)


def test_what_was_not_yet_written_of_an_erased_user_is_about_nobody(rig):
    rig.trail.refused(outcome())
    rig.trail.refused(outcome())
    rig.trail.refused(outcome(user_id="eva"))
    rig.trail.forget(name_of("ana"))
    rig.pass_time(WINDOW_S + TICK_S)
    assert rig.about("ana") == []
    assert [(entry["code"], "user" in entry) for entry in rig.kept() if "sealed" not in entry] == [
        ("tenant-forbidden", False),
        ("tenant-forbidden", False),
    ]
    assert len(rig.about("eva")) == 1


def test_what_an_erased_user_does_again_is_not_counted_with_what_was_before(rig):
    rig.trail.refused(outcome())
    rig.trail.forget(name_of("ana"))
    rig.trail.refused(outcome())
    rig.pass_time()
    assert ["sealed" in entry for entry in rig.kept()] == [False, True]
    assert [entry["code"] for entry in rig.about("ana")] == ["tenant-forbidden"]


def test_a_user_erased_while_keys_are_read_is_in_no_entry_and_gets_no_old_key(rig):
    waiting = rig.store.hang()
    rig.trail.refused(outcome())
    rig.pass_time()
    rig.trail.forget(name_of("ana"))
    rig.store.slow = None
    waiting.callback(None)
    assert len(rig.kept()) == 1
    assert rig.about("ana") == []
    assert rig.subjects.known("ana") is None


def test_a_key_is_read_again_after_a_while_should_nobody_have_told_of_its_erasure(rig):
    rig.trail.refused(outcome())
    rig.pass_time()
    rig.store.held.clear()
    rig.pass_time(MAX_AGE_S)
    rig.trail.refused(outcome())
    rig.pass_time()
    assert len(rig.about("ana")) == 1


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 100])
def test_with_a_key_that_is_none_the_entry_is_about_nobody(rig, key):
    rig.store.held[name_of("ana")] = key
    rig.trail.refused(outcome())
    rig.pass_time()
    assert "sealed" not in rig.kept()[0]
    assert b"192.0.2" not in rig.store.all


def test_secrets_and_floods_of_text_stay_out(rig):
    rig.trail("admin.change", after="s3cret-value", password="hunter2", cause="x" * 100_000, user_id="u" * 5000)
    rig.trail("admin.change", after={str(number): "y" * 2000 for number in range(100)}, note="kept")
    rig.trail("admin.\ud800", after="\ud800", user_id="\ud800", odd=object())
    rig.pass_time()
    assert b"s3cret" not in rig.store.all
    assert b"hunter2" not in rig.store.all
    assert all(len(entry) < 20_000 for entry in rig.store.kept["events"])
    assert rig.kept("events")[1]["note"] == "kept"
    assert len(rig.kept("events")) == 3
    assert not any("user_id" in entry for entry in rig.kept("events"))


def test_the_store_lets_go_of_what_is_old_also_when_nothing_happens(rig):
    rig.pass_time(70)
    assert rig.store.trimmed == ["events", "refusals"]
    rig.pass_time(3600)
    assert rig.store.trimmed == ["events", "refusals"] * 2


def test_after_a_store_that_lost_its_keys_entries_are_about_somebody_again(rig):
    rig.trail.refused(outcome())
    rig.pass_time()
    rig.store.held.clear()
    rig.subjects.doubt()
    rig.trail.refused(outcome(route="/api/v1/pos/**"))
    rig.pass_time()
    assert [entry["route"] for entry in rig.about("ana")] == ["/api/v1/pos/**"]
