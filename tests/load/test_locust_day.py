"""The tables of the rehearsed day: they fit together, fit the gateway, and fit the demo."""

import ast
import json
import re
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from textwrap import dedent

import pytest

from bakerygw.config.routes import KNOWN_SERVICES
from bakerygw.core.problem import PROBLEMS
from bakerygw.demo.accounts import PASSWORD, demo_directory
from bakerygw.demo.data import COLLECTIONS
from tests.load import day

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
HANDBOOK = Path(__file__).parents[2] / "docs" / "operators.md"
NOW = 1_750_000_000.0
SHIFTS = [
    (role, phase, shift)
    for role, spec in day.ROLES.items()
    for _, phase in day.PHASES
    if (shift := spec.shift(phase)) is not None
]
GOOD = {"email": "a@b.example", "password": "p", "roles": ["owner", "cashier", "baker", "purchaser"]}


def test_the_curve_covers_the_day_without_a_gap() -> None:
    hours = [hour for hour, _ in day.CROWD]

    assert (hours[0], hours[-1]) == (day.FIRST_HOUR, day.LAST_HOUR)
    assert all(before < after for before, after in pairwise(hours))
    assert max(share for _, share in day.CROWD) == 1.0


@pytest.mark.parametrize(("elapsed_s", "hour"), [(0, 3.0), (300, 12.0), (600, 21.0), (9999, 21.0)])
def test_the_hours_are_spread_over_the_minutes_that_a_day_takes(elapsed_s: float, hour: float) -> None:
    assert day.hour_at(elapsed_s, 600) == hour


def test_breakfast_and_lunch_are_the_peaks_and_the_afternoon_is_quiet() -> None:
    at = {hour: day.crowd_at(hour, 100) for hour in (3.0, 7.5, 10.0, 12.5, 15.0, 21.0)}

    assert at == {3.0: 25, 7.5: 100, 10.0: 60, 12.5: 100, 15.0: 45, 21.0: 25}


@pytest.mark.parametrize("hour", [2.0, 3.0, 21.0, 22.0])
def test_somebody_is_always_there(hour: float) -> None:
    assert day.crowd_at(hour, 1) == 1


@pytest.mark.parametrize(("people", "each"), [(24, 41), (100, 10), (5000, 2)])
def test_people_leave_less_the_more_they_are(people: int, each: int) -> None:
    assert day.kept_by_each(people) == each


def test_phases_begin_in_order_and_with_the_day() -> None:
    begins = [hour for hour, _ in day.PHASES]

    assert begins[0] == day.FIRST_HOUR
    assert begins == sorted(set(begins))
    assert [day.phase_at(hour) for hour in (2.0, 3.0, 5.0, 7.0, 12.0, 16.0, 20.5)] == [
        "baking", "baking", "opening", "rush", "rush", "afternoon", "closing",
    ]  # fmt: skip


def test_every_special_phase_is_a_phase() -> None:
    names = {name for _, name in day.PHASES}

    assert [phase for role in day.ROLES.values() for phase in role.special if phase not in names] == []


@pytest.mark.parametrize(("role", "phase", "shift"), SHIFTS, ids=lambda part: part if isinstance(part, str) else "")
def test_every_shift_has_a_pause_and_weighted_tasks(role: str, phase: str, shift: day.Shift) -> None:
    shortest, longest = shift.pause_s

    assert 0 < shortest <= longest
    assert shift.tasks
    assert all(weight > 0 for weight in shift.tasks.values())


def test_bakers_work_before_dawn_and_tills_do_not() -> None:
    bakers, tills = day.ROLES["baker"].shift("baking"), day.ROLES["cashier"].shift("baking")

    assert bakers is not None
    assert tills is None


def test_tasks_are_chosen_by_weight() -> None:
    shift = day.Shift(pause_s=(1.0, 1.0), tasks={"often": 9, "rarely": 1})
    chance = Random(1)

    counted = Counter(day.chosen(shift, chance) for _ in range(1000))

    assert 850 < counted["often"] < 950
    assert counted["rarely"] == 1000 - counted["often"]


def locust_classes() -> dict[str, set[str]]:
    """For each class of the locustfile with a role: the names of its methods."""
    found = {}
    for node in ast.parse(LOCUSTFILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            roles = [
                str(item.value.value)
                for item in node.body
                if isinstance(item, ast.Assign)
                and isinstance(item.value, ast.Constant)
                and ast.unparse(item.targets[0]) == "role"
            ]
            found |= dict.fromkeys(roles, methods)
    return found


def test_every_role_has_a_class_and_every_task_a_method() -> None:
    classes = locust_classes()
    of_all = {"refresh"}  # of `Person`

    assert classes.keys() == day.ROLES.keys()
    assert [
        (role, task) for role, _, shift in SHIFTS for task in shift.tasks if task not in classes[role] | of_all
    ] == []


@pytest.mark.parametrize("deed", day.DEEDS, ids=lambda deed: str(deed.name))
def test_every_deed_is_refused_with_a_code_of_that_status(deed: day.Deed) -> None:
    assert PROBLEMS[deed.code][0] == deed.status


def test_every_path_belongs_to_a_service_of_the_gateway_and_to_the_demo() -> None:
    paths = {*day.DASHBOARD, *day.REPORT, day.RECIPES, day.SUPPLIERS, day.TERMINALS, day.WEATHER, day.HOLIDAYS}
    known = {"notifications" if name == "notification" else name.replace("_", "-") for name in KNOWN_SERVICES}

    assert {path.split("/")[3] for path in paths} <= known
    assert paths <= {f"/api/v1/{collection.path}" for collection in COLLECTIONS}


def test_the_accounts_are_those_of_the_demo_in_the_state_that_they_are_used_for() -> None:
    directory = demo_directory(lambda: NOW)
    people = {account.email: account for account in directory.accounts}
    flags = directory.flags()

    for account in day.DEMO:
        person = people[account.email]
        tenant = directory.tenants[person.tenant_id]
        hold = tenant.tenant_id in flags and flags[tenant.tenant_id].read_only is not None
        assert account.password == PASSWORD
        assert account.tenant in (None, *(access.tenant_id for access in person.access))
        assert hold == ("on-hold" in account.roles)
        assert tenant.demo == ("visitor" in account.roles)
        assert (tenant.valid_until < "2025-06-15") == (account.in_grace or "unpaid" in account.roles)


def test_a_file_of_accounts_is_read_as_toml_or_json(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text(
        'password = "p"\n'
        '[[account]]\nemail = "a@b.example"\nroles = ["owner", "cashier", "baker"]\n'
        '[[account]]\nemail = "c@b.example"\nroles = ["purchaser"]\ntenant = "t-2"\nin_grace = true\n'
    )
    as_json.write_text(json.dumps({"account": [GOOD | {"password": "q"}]}))

    first, second = day.accounts_in(toml)

    assert (first.email, first.password, first.tenant, first.in_grace) == ("a@b.example", "p", None, False)
    assert (second.roles, second.tenant, second.in_grace) == (("purchaser",), "t-2", True)
    assert [account.password for account in day.accounts_in(as_json)] == ["q"]


def test_the_example_of_the_handbook_is_accepted() -> None:
    text = HANDBOOK.read_text(encoding="utf-8")
    (example,) = re.findall(r"^    password = .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)

    accounts = day.accounts_from(tomllib.loads(dedent(example)))

    assert [account.roles for account in accounts] == [("cashier",), ("owner", "baker", "purchaser")]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "needs one"),
        ({"account": [{**GOOD, "password": 1}]}, "email and password"),
        ({"account": [{**GOOD, "tennant": "t"}]}, "unknown field tennant"),
        ({"account": [{**GOOD, "roles": ["emperor"]}]}, "roles must be"),
        ({"account": [{**GOOD, "roles": ["careless"]}]}, "roles must be"),
        ({"account": [{**GOOD, "roles": ["owner", "baker", "purchaser"]}]}, "no account has the role cashier"),
    ],
)
def test_accounts_that_cannot_be_used_are_named(document: dict[str, object], says: str) -> None:
    with pytest.raises(day.BadAccounts, match=says):
        day.accounts_from(document)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(day.BadAccounts, match=r"none\.toml"):
        day.accounts_in(tmp_path / "none.toml")
