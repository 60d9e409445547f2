"""The tables of docs/tenants.md, row by row, from outside: real tokens, a real Redis, two instances."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.e2e.calling import WITHIN_S, code_of
from tests.e2e.tenancy_rules import AWAY, SCENARIOS, Ask, Case, World, two_instances
from tests.minting import Issuer
from tests.redis_server import RedisServer
from tests.test_docs import page, rows

RULES = {cells[0]: cells[2] for cells in rows(page("docs/tenants.md")) if re.search(r"^(passes|\d{3} `)", cells[2])}
"""Each rule's answer, as its row says it."""


def expected(told: str) -> tuple[int, str]:
    """Status and code of an answer in the table."""
    refused = re.match(r"(\d{3}) `([a-z-]+)`", told)
    return (int(refused[1]), refused[2]) if refused else (200, "")


@pytest.fixture(scope="module")
def world(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with RedisServer() as server, two_instances(server, issuer, tmp_path_factory.mktemp("rules")) as found:
        yield found


@pytest.fixture(scope="module")
def outage(world: World) -> Iterator[dict[str, Ask]]:
    """Redis is away to the end of the module; before, all rules about that were prepared."""
    asks = {rule: scenario(Case(world, rule)) for rule, scenario in AWAY.items()}
    with world.redis_away():
        yield asks


def test_every_rule_has_a_scenario_and_every_scenario_a_rule() -> None:
    assert len(RULES) > 40
    assert {*SCENARIOS, *AWAY} == set(RULES)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule in SCENARIOS])
def test_a_rule_holds_on_both_instances(world: World, rule: str) -> None:
    ask = SCENARIOS[rule](Case(world, rule))
    for number in (0, 1):
        holds(world, number, ask, expected(RULES[rule]))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule in AWAY])
def test_a_rule_holds_on_both_instances_while_redis_is_away(world: World, outage: dict[str, Ask], rule: str) -> None:
    for number in (0, 1):
        holds(world, number, outage[rule], expected(RULES[rule]))


def holds(world: World, number: int, ask: Ask, answer: tuple[int, str]) -> None:
    """The instance answers so within a second, goes on to do so, and the service was told what it should be."""
    began = time.monotonic()
    while code_of(world.ask(number, ask)) != answer:
        assert time.monotonic() - began < WITHIN_S, f"{world.ask(number, ask).text}, not {answer}"
    for _ in range(2):
        response = world.ask(number, ask)
        assert code_of(response) == answer
        assert {name: response.headers.get(name, "")[: len(start)] for name, start in ask.answered.items()} == dict(
            ask.answered
        )
        assert all(name in response.headers for name in ask.answered)
        received = world.received(response)
        if answer[0] == 200:
            ((service, request),) = received
            assert service.startswith("DEMO_") == (ask.to == "demo")
            sent = {name.decode(): value.decode() for name, value in request.headers}
            assert {name: sent.get(name) for name in ask.sent} == dict(ask.sent)
        else:
            assert received == []
            problem = response.json()
            assert {name: problem.get(name) for name in ask.members} == dict(ask.members)
            helps(problem["detail"])


def helps(detail: str) -> None:
    """It reads as help: a whole sentence that says what to do, and nothing of the inside."""
    assert detail[0].isupper()
    assert detail.endswith(".")
    assert not re.search(r"redis|tenant:|token_|Traceback|None|bakerygw", detail, re.IGNORECASE)
