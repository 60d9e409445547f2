"""The tables of operators.md about look-ups and critical operations: each row is played, and there is no other."""

import re
from dataclasses import replace
from typing import Any

import pytest

from bakerygw.ports import LookupFailed
from tests.edge.port_fakes import DAY_S, NOW, PRO, USER, Stage
from tests.test_docs import page, rows

TENANT = b"/api/v1/tenants/t-own"
PLAN = TENANT + b"/subscription"
SALES = b"/api/v1/sales/today"
LAPSED = replace(PRO, valid_until=NOW - 30 * DAY_S)
OLD = replace(USER, subscription=None)
Found = tuple[int, str]


def section(title: str) -> str:
    text = page("docs/operators.md")
    return re.split(r"^#{2,3} ", text.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def codes(cell: str) -> set[Found]:
    """The statuses and codes that a cell names."""
    found = re.match(r"(\d{3}) ((?:`[a-z-]+`(?:, )?)+)", cell)
    if found is None:
        return {(200, "")}
    return {(int(found[1]), code) for code in re.findall(r"`([a-z-]+)`", found[2])}


def asked(stage: Stage, target: bytes, method: bytes = b"GET", token: bytes = b"good") -> Found:
    answer = stage.ask(target, method=method, token=token)
    return answer.status, "" if answer.status == 200 else answer.problem()["code"]


def staged(claims: Any, answer: Any) -> Stage:
    stage = Stage()
    stage.tokens.claims[b"good"] = claims
    stage.answers.subscriptions["t-own"] = answer
    return stage


def failing(claims: Any, *kinds: str, target: bytes, method: bytes = b"GET") -> set[Found]:
    return {asked(staged(claims, LookupFailed(kind, "test")), target, method) for kind in kinds}


def delete(claims: Any, answer: Any) -> Found:
    return asked(staged(claims, answer), TENANT, b"DELETE")


def without_redis() -> Found:
    stage = staged(USER, PRO)
    stage.tenants.down = True
    return asked(stage, TENANT, b"DELETE")


OUTAGES = ("timeout", "unreachable", "unavailable", "invalid")
CRITICAL: dict[str, Any] = {
    "a demo session": lambda: {asked(Stage(), b"/api/v1/tenants/t-demo", b"DELETE", b"demo")},
    "Redis is away": lambda: {without_redis()},
    "the tenant service does not": lambda: failing(USER, *OUTAGES, target=TENANT, method=b"DELETE"),
    "it says another": lambda: {
        delete(USER, replace(PRO, tier="starter")),
        delete(USER, replace(PRO, status="past_due")),
    },
    "the same, but": lambda: {delete(OLD, replace(PRO, tier="starter"))},
    "it says that the subscription has ended": lambda: {
        delete(USER, LAPSED),
        delete(OLD, replace(PRO, status="canceled")),
    },
    "it answers 401": lambda: failing(USER, "unauthorized", target=TENANT, method=b"DELETE"),
    "it answers 403": lambda: failing(USER, "forbidden", target=TENANT, method=b"DELETE"),
    "it answers 404": lambda: failing(USER, "unknown", target=TENANT, method=b"DELETE"),
    "the same tier and status": lambda: {delete(USER, PRO), asked(staged(USER, PRO), PLAN, b"POST")},
}
LOOKED_UP: dict[str, Any] = {
    "does not answer in time": lambda: failing(OLD, *OUTAGES, target=SALES),
    "401": lambda: failing(OLD, "unauthorized", target=SALES),
    "403": lambda: failing(OLD, "forbidden", target=SALES),
    "404": lambda: failing(OLD, "unknown", target=SALES),
}


def matched(table: list[list[str]], scenarios: dict[str, Any]) -> list[tuple[str, set[Found], str]]:
    """Each row's condition, what it promises, and the scenario that plays it."""
    found = []
    for condition, promised, *_ in table:
        (name,) = [name for name in scenarios if condition.startswith(name)]
        found.append((condition, codes(promised), name))
    return found


CRITICAL_ROWS = [row for row in rows(section("Critical operations")) if row[0] != "condition"]
LOOKUP_ROWS = [row for row in rows(section("Look-ups")) if row[0].startswith(tuple(LOOKED_UP))]


def test_every_scenario_has_its_row() -> None:
    assert {name for _, _, name in matched(CRITICAL_ROWS, CRITICAL)} == CRITICAL.keys()
    assert {name for _, _, name in matched(LOOKUP_ROWS, LOOKED_UP)} == LOOKED_UP.keys()


@pytest.mark.parametrize(("condition", "promised", "name"), matched(CRITICAL_ROWS, CRITICAL))
def test_a_critical_operation_is_answered_as_the_table_says(condition: str, promised: set[Found], name: str) -> None:
    assert CRITICAL[name]() == promised


@pytest.mark.parametrize(("condition", "promised", "name"), matched(LOOKUP_ROWS, LOOKED_UP))
def test_a_look_up_is_answered_as_the_table_says(condition: str, promised: set[Found], name: str) -> None:
    assert LOOKED_UP[name]() == promised
