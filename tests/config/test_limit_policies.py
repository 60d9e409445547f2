"""The `[[limit]]` entries of a routes file."""

from pathlib import Path

import pytest

from bakerygw.config.limits import MAX_POLICIES
from bakerygw.config.routes import ConfigError, load_routes_file
from bakerygw.core.stacks import LimitPolicy

WHOLE = {"name": '"bakery"', "by": '"tenant"', "requests": "5", "window_seconds": "60"}


def load(tmp_path: Path, *entries: dict[str, str], routes: str = "") -> tuple[LimitPolicy, ...]:
    file = tmp_path / "routes.toml"
    text = "".join("[[limit]]\n" + "".join(f"{key} = {its}\n" for key, its in entry.items()) for entry in entries)
    file.write_text(text + routes, encoding="utf-8")
    return load_routes_file(str(file), ())[1]


def problems(tmp_path: Path, *entries: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, *entries)
    return error.value.problems


def test_an_entry_becomes_a_policy(tmp_path: Path) -> None:
    (policy,) = load(tmp_path, {**WHOLE, "tier": '"starter"', "prefix": '"/api/v1/sales"', "shadow": "true"})
    rule = policy.rule
    assert (rule.name, rule.by, rule.requests, rule.window_s, rule.shadow) == ("bakery", "tenant", 5, 60, True)
    assert (policy.tier, policy.prefix) == ("starter", "/api/v1/sales")


def test_what_may_be_left_out_holds_for_all_and_refuses(tmp_path: Path) -> None:
    (policy,) = load(tmp_path, WHOLE)
    assert (policy.tier, policy.prefix, policy.rule.shadow, policy.rule.until) == (None, None, False, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", f'"{name}"') for name in ("default", "auth", "tenant", "concurrency", "key")),
        *(("name", f'"{name}"') for name in ("", "A", "1a", "a b", "a:b", "a_b", "a" * 33, "ä", "a\\n")),
        ("name", "5"),
        ("by", '"route"'),
        ("by", '"User"'),
        ("tier", '"gold"'),
        ("prefix", '"/api/v1/sales/"'),
        ("prefix", '"/api/v1/sales/export"'),
        ("prefix", '"/api/v1/sal"'),
        ("prefix", '""'),
        ("requests", "0"),
        ("requests", "1_000_001"),
        ("requests", '"5"'),
        ("requests", "true"),
        ("window_seconds", "0"),
        ("window_seconds", "86_401"),
        ("window_seconds", "1.5"),
        ("shadow", "1"),
        ("color", '"red"'),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, key: str, value: str) -> None:
    (problem,) = problems(tmp_path, {**WHOLE, key: value})
    assert problem.startswith(f"limit[0].{key}: ")


@pytest.mark.parametrize("key", WHOLE)
def test_what_is_missing_is_named(tmp_path: Path, key: str) -> None:
    entry = {name: value for name, value in WHOLE.items() if name != key}
    assert problems(tmp_path, entry) == [f"limit[0].{key}: missing"]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, WHOLE, WHOLE)
    assert "limit[1].name" in problem


def test_there_are_so_many_at_most(tmp_path: Path) -> None:
    entries = [{**WHOLE, "name": f'"l{number}"'} for number in range(MAX_POLICIES + 1)]
    assert len(load(tmp_path, *entries[:-1])) == MAX_POLICIES
    assert f"at most {MAX_POLICIES}" in problems(tmp_path, *entries)[0]


def test_a_prefix_may_be_that_of_a_route_of_the_same_file(tmp_path: Path) -> None:
    entry = {**WHOLE, "prefix": '"/api/v1/sales/export"'}
    assert load(tmp_path, entry, routes='[[route]]\nprefix = "/api/v1/sales/export"\n')
