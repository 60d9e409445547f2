"""`bakerygw audit` on a trail in memory; that it finds the real ones is shown end to end."""

import io
import json

import pytest
from twisted.internet.defer import Deferred

from bakerygw import audit_cli
from bakerygw.cli import run
from bakerygw.ports import StoreUnavailable
from bakerygw.telemetry.entries import entry_of, sealed
from bakerygw.telemetry.redaction import Redactor
from bakerygw.telemetry.subjects import Subject, name_of
from tests.deferreds import failure_of, success_of
from tests.telemetry.audit_fakes import MemoryAudit

KEYS = {"ana": b"a" * 32, "eva": b"e" * 32}


@pytest.fixture
def store():
    made = MemoryAudit()
    made.held = {name_of(user): key for user, key in KEYS.items()}
    for number, (user, ledger) in enumerate(
        [("ana", "refusals"), ("eva", "refusals"), ("ana", "events"), ("ana", "refusals")]
    ):
        fields = {"user_id": user, "client": "192.0.2.7", "code": "x"}
        entry = entry_of("request.refused", fields, when=f"2030-01-0{9 - number}", redactor=Redactor())
        made.kept[ledger].append(sealed(entry, Subject(user, KEYS[user])))
    made.kept["refusals"].append(made.kept["refusals"][0])  # written twice, for its answer was lost
    made.kept["events"].append(
        json.dumps({"id": "odd", "user": Subject("eva", KEYS["eva"]).pseudonym, "when": "\x1b[2J\x9b\u2028"}).encode()
    )
    made.kept["events"] += [b"nonsense", b"[]", b"\xff", b'{"user": null}']
    return made


def call(act, store, user):
    out, err = io.StringIO(), io.StringIO()
    status = success_of(Deferred.fromCoroutine(act(store, user, out=out, err=err)))
    return status, out.getvalue().splitlines(), err.getvalue()


def test_an_export_is_who_the_user_is_and_all_entries_by_time_each_once(store):
    status, lines, complaint = call(audit_cli.export, store, "ana")
    head, *entries = map(json.loads, lines)
    assert (status, complaint) == (0, "")
    assert head == {"user_id": "ana", "pseudonym": Subject("ana", KEYS["ana"]).pseudonym, "entries": 3}
    assert [entry["when"] for entry in entries] == ["2030-01-06", "2030-01-07", "2030-01-09"]
    assert {(entry["user_id"], entry["client"], entry["user"]) for entry in entries} == {
        ("ana", "192.0.2.7", head["pseudonym"])
    }
    assert not any("sealed" in entry for entry in entries)


def test_an_erased_user_is_found_no_more_and_all_others_are(store):
    before = list(store.kept["refusals"])
    assert call(audit_cli.erase, store, "ana") == (
        0,
        ["erased: 3 entries about ana are nobody's now, and so is the pseudonym in the logs"],
        "",
    )
    assert call(audit_cli.export, store, "ana") == (1, [], "nothing is kept about ana, or it was erased\n")
    assert call(audit_cli.erase, store, "ana") == (1, [], "nothing is kept about ana, or it was erased before\n")
    assert call(audit_cli.export, store, "eva")[0] == 0
    assert store.kept["refusals"] == before


def test_one_entry_is_told_as_one(store):
    store.kept["refusals"] = store.kept["refusals"][:1]
    store.kept["events"] = []
    (told,) = call(audit_cli.erase, store, "ana")[1]
    assert told == "erased: 1 entry about ana is nobody's now, and so is the pseudonym in the logs"


def test_what_others_put_into_the_trail_cannot_steer_a_terminal(store):
    status, lines, _ = call(audit_cli.export, store, "eva")
    assert (status, len(lines)) == (0, 3)
    assert all(line.isprintable() for line in lines)


def test_a_store_that_is_away_is_not_taken_for_one_that_knows_nothing(store):
    async def away(name):
        raise StoreUnavailable("away")

    store.key = away
    for act in (audit_cli.export, audit_cli.erase):
        failure_of(Deferred.fromCoroutine(act(store, "ana", out=io.StringIO(), err=io.StringIO())), StoreUnavailable)


@pytest.mark.parametrize(
    "words",
    [
        ["audit"],
        ["audit", "export"],
        ["audit", "erase", "--user", "a b"],
        ["audit", "erase", "--user", "*"],
        ["audit", "drop", "--user", "a"],
    ],
)
def test_misuse_is_told(words, capsys):
    assert run(words, environ={}, out=io.StringIO(), err=io.StringIO()) == 2
    assert "usage: bakerygw audit" in capsys.readouterr().err


def test_wrong_settings_are_told_before_anything_is_done():
    err = io.StringIO()
    environ = {"AUDIT_DAYS": "0"}
    assert run(["audit", "erase", "--user", "a"], environ=environ, out=io.StringIO(), err=err) == 1
    assert "AUDIT_DAYS: got '0'; allowed: whole days from 1 to 3650" in err.getvalue()


def call_for(user, *options, **environ):
    out, err = io.StringIO(), io.StringIO()
    status = run(["audit", "erase", "--user", user, "--demo", *options], environ=environ, out=out, err=err)
    return status, out.getvalue(), err.getvalue()


def test_a_trail_that_is_not_there_is_not_taken_for_one_that_knows_nothing(tmp_path):
    status, out, err = call_for("ana", XDG_STATE_HOME=str(tmp_path))
    assert (status, out) == (1, "")
    assert f"{tmp_path}/bakerygw-audit.jsonl is not there" in err
    assert "the gateway's own settings" in err
    assert not list(tmp_path.iterdir())
