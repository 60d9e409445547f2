"""Lines that tell nobody who it was: request lines, and all others."""

import json

import pytest
import structlog
from twisted.internet.task import Clock

from bakerygw.telemetry.anonymous import MAX_WAITING, SPARE_S, Anonymous
from bakerygw.telemetry.logs import LogWriter, RequestLog, configure_logging
from bakerygw.telemetry.subjects import Subject, Subjects, name_of
from tests.telemetry.audit_fakes import MemoryAudit, outcome


class Rig:
    def __init__(self, path):
        self.path, self.clock, self.store = path, Clock(), MemoryAudit()
        with path.open("wb") as file:
            self.writer = LogWriter(file.fileno(), self.clock)
        self.system = configure_logging(self.writer)
        self.subjects = Subjects(self.store, self.clock)
        self.anonymous = Anonymous(self.subjects, self.clock)
        self.system.disguise = self.anonymous.record
        self.log = RequestLog(self.system, self.anonymous)

    def text(self):
        self.writer.flush_now()
        return self.path.read_text()

    def records(self):
        return [json.loads(line) for line in self.text().splitlines()]

    def pseudonym(self, user_id):
        return Subject(user_id, self.store.held[name_of(user_id)]).pseudonym


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "log")
    yield made
    made.writer.close()
    structlog.reset_defaults()


def test_request_lines_name_the_user_by_pseudonym_and_the_network(rig):
    rig.log.began(outcome().trace)
    for _ in range(2):
        rig.log.ended(outcome())
    before, first, second = rig.records()
    assert before["client"] == first["client"] == "192.0.2.0/24"
    assert first["user_id"] == second["user_id"] == rig.pseudonym("ana")
    assert first["tenant_id"] == "bakery-1"
    assert "ana" not in rig.text()
    assert rig.store.asked == 1


def test_a_line_waits_for_its_users_key_and_no_other_line_waits_for_it(rig):
    rig.log.ended(outcome(user_id="eva"))
    waiting = rig.store.hang()
    rig.log.ended(outcome(request_id="request-1"))
    rig.log.ended(outcome(request_id="request-2", user_id="leo"))
    rig.log.ended(outcome(request_id="request-3", user_id="eva"))
    rig.log.ended(outcome(request_id="request-4", user_id=None))
    assert [record["request_id"] for record in rig.records()][1:] == ["request-3", "request-4"]
    waiting.callback(None)
    late = rig.records()[3:]
    assert [(record["request_id"], record["user_id"]) for record in late] == [
        ("request-1", rig.pseudonym("ana")),
        ("request-2", rig.pseudonym("leo")),
    ]


def test_without_a_key_a_line_has_no_user_and_never_the_real_one(rig):
    rig.store.away = True
    rig.log.ended(outcome())
    rig.log.ended(outcome())
    assert [("user_id" in record, record["client"]) for record in rig.records()] == 2 * [(False, "192.0.2.0/24")]
    assert rig.store.asked == 1
    rig.store.away = False
    rig.clock.advance(SPARE_S)
    rig.log.ended(outcome())
    assert rig.records()[2]["user_id"] == rig.pseudonym("ana")


def test_only_so_many_lines_wait(rig):
    waiting = rig.store.hang()
    for _ in range(MAX_WAITING + 5):
        rig.log.ended(outcome())
    assert ["user_id" in record for record in rig.records()] == 5 * [False]
    waiting.callback(None)
    assert len(rig.records()) == MAX_WAITING + 5


def test_at_the_end_what_waits_is_written_without_a_user(rig):
    rig.store.hang()
    rig.log.ended(outcome())
    rig.log.ended(outcome(user_id="eva"))
    rig.anonymous.close()
    assert ["user_id" in record for record in rig.records()] == [False, False]


def test_a_fault_while_keys_are_read_loses_no_line(rig, logged_failures):
    waiting = rig.store.hang()
    rig.log.ended(outcome())
    waiting.errback(RuntimeError("fault"))
    assert ["user_id" in record for record in rig.records()] == [False]
    assert len(logged_failures) == 1
    logged_failures.clear()


def test_after_an_erasure_the_same_user_has_another_pseudonym(rig):
    rig.log.ended(outcome())
    before = rig.records()[0]["user_id"]
    rig.store.held.clear()
    rig.subjects.forget(name_of("ana"))
    rig.log.ended(outcome())
    assert rig.records()[1]["user_id"] == rig.pseudonym("ana") != before


def test_all_other_lines_follow(rig):
    line = rig.system.logger("bakerygw.audit").info
    line("admin.refused", client="2001:db8:7:8::9", user_id="ana", who="ana", tenant_id="t")
    rig.log.ended(outcome())
    line("key.used", client="192.0.2.9", user_id="ana", who="admin")
    first, _, second = rig.records()
    assert (first["client"], "user_id" in first, "who" in first) == ("2001:db8:7::/48", False, False)
    assert (second["client"], second["user_id"], second["who"]) == ("192.0.2.0/24", rig.pseudonym("ana"), "admin")


def test_without_the_setting_lines_are_as_they_are(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno(), Clock())
    RequestLog(configure_logging(writer)).ended(outcome())
    writer.close()
    record = json.loads((tmp_path / "log").read_text())
    assert (record["user_id"], record["client"]) == ("ana", "192.0.2.77")
    structlog.reset_defaults()
