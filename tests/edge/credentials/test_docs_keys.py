"""What the pages say about API keys, against the code."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_key_admission import KEY, SALES, TERMS, TILL, KeyStage, code

from bakerygw.admin.key_fields import FIELDS
from bakerygw.admin.keys import MAX_OVERLAP_S
from bakerygw.core.api_keys import id_of
from bakerygw.core.problem import PROBLEMS
from bakerygw.ports import StoreUnavailable, TokenRefused
from bakerygw.tokens.api_keys import CODES
from tests.test_docs import ROOT, page, rows


def section(name: str, title: str) -> str:
    return page(name).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


CLIENTS = section("docs/clients.md", "API keys")
OPERATORS = section("docs/operators.md", "API keys")
ANSWERS = [cells[0] for cells in rows(CLIENTS) if re.match(r"\d{3} ", cells[0])]


def answered(answer: str) -> tuple[int, str]:
    """The answer that a key gets for what the page says of it."""
    stage = KeyStage(known=False)
    match answer:
        case "token-invalid":
            stage.keys.failure = TokenRefused("token-invalid", "key-unknown")
        case "token-expired":
            stage.keys.failure = TokenRefused(CODES["expired"], "key-expired")
        case "token-revoked":
            stage.store.revoked = {TILL.digest: True}
        case "tenant-forbidden":
            stage.keys.claims = {KEY: replace(TILL, key=replace(TERMS, methods=frozenset({"POST"})))}
        case "state-unavailable":
            stage.keys.failure = StoreUnavailable("gone")
    return code(stage.ask(SALES))


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_that_machines_are_told_of_is_one(answer: str) -> None:
    status, name = answer.replace("`", "").split()
    assert PROBLEMS[name][0] == int(status)
    assert answered(name) == (int(status), name)


def test_machines_are_told_of_all_codes_of_their_own() -> None:
    told = {answer.replace("`", "").split()[1] for answer in ANSWERS}
    assert told == {"token-invalid", *CODES.values(), "tenant-forbidden", "state-unavailable"}


def test_the_key_that_the_page_shows_has_the_form_of_one() -> None:
    (shown,) = re.findall(r"\n`(bkry_[^`]+)`", CLIENTS)
    assert id_of(shown.encode()) is not None
    scanned = re.search(r"find keys by `([^`]+)`", OPERATORS)
    assert scanned is not None
    assert re.fullmatch(scanned[1], shown)


def test_operators_are_told_of_every_member() -> None:
    members = OPERATORS.partition("| member |")[2].partition("\n\n")[0]
    named = {name for line in members.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert named == set(FIELDS)
    assert f"0 to {MAX_OVERLAP_S}" in page("docs/operators.md")


def test_operators_are_told_of_every_reason_in_the_audit_log() -> None:
    package = ROOT / "bakerygw"
    source = "".join(
        Path(package, name).read_text(encoding="utf-8")
        for name in ("core/api_keys.py", "core/key_terms.py", "tokens/api_keys.py", "edge/credentials/keys.py")
    )
    reasons = {f"key-{reason}" for reason in re.findall(r'ClaimsError\("([a-z-]+)"\)', source)}
    reasons |= set(re.findall(r'(?:reason=|"token-invalid", )"(key-[a-z]+)"', source))
    (row,) = [cells for cells in rows(OPERATORS) if cells[0] == "key.refused"]
    assert set(re.findall(r"`(key-[a-z-]+)`", row[2])) == reasons
