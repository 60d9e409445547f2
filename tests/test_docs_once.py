"""The documentation says a thing once, of what there is: rows, log events, Redis keys."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import PAGES, ROOT, page

SOURCES = sorted(path for path in (ROOT / "bakerygw").rglob("*.py") if "demo" not in path.relative_to(ROOT).parts)
LEVELS = {"debug", "info", "warn", "error", "critical"}
EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")


def tables(text: str) -> Iterator[list[list[str]]]:
    """The cells of each table's rows, its head left out; an empty first cell is that of the row before."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        table: list[list[str]] = []
        for line in block.splitlines()[2:]:
            first, *others = (cell.strip() for cell in line.strip("|").split(" | "))
            table.append([first or (table[-1][0] if table else ""), *others])
        yield table


def logged() -> Iterator[tuple[str, Path]]:
    """Every event that a logger is called with, and where; those of `failure`, defects, have one row in common."""
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args or not isinstance(call.func, ast.Attribute):
                continue
            event = call.args[0]
            is_text = isinstance(event, ast.Constant) and isinstance(event.value, str)
            if call.func.attr in LEVELS and is_text and EVENT.fullmatch(event.value):
                yield event.value, path


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_table_says_a_thing_twice(source: Path) -> None:
    for table in tables(source.read_text(encoding="utf-8")):
        twice = [cells for cells, number in Counter(tuple(row[:2]) for row in table).items() if number > 1]
        assert [cells for cells in twice if cells[1:]] == []


def test_every_event_in_the_log_is_in_the_operators_table() -> None:
    section = page("docs/operators.md").partition("\n## Logs\n")[2].partition("\n## The admin port")[0]
    told = set(re.findall(r"`([a-z_.]+)`", section))
    events = {event: path.name for event, path in logged()}
    assert len(events) > 15
    assert {event: where for event, where in events.items() if event not in told} == {}
    assert "| any other with an `exception` |" in section


def test_every_record_in_redis_is_in_the_operators_table() -> None:
    section = page("docs/operators.md").partition("\n## Redis\n")[2].partition("\n### ")[0]
    name = re.compile(r'return \(?f?"([a-z-]+(?::[a-z]+)?):(?:"|\{)')
    stored = [path for path in SOURCES if re.search(r"\bRecords\b", path.read_text(encoding="utf-8"))]
    found = {match for path in stored for match in name.findall(path.read_text(encoding="utf-8"))}
    assert found >= {"session", "refresh", "apikey", "geocode:answer"}
    assert [prefix for prefix in sorted(found) if f"`bakerygw:{prefix}:" not in section] == []


def test_maintainers_are_told_of_every_module_and_of_no_other_file() -> None:
    text = page("docs/architecture.md")
    table = text.partition("\n## Files\n")[2].partition("\n## ")[0]
    for package in sorted(path.parent for path in (ROOT / "bakerygw").glob("*/**/__init__.py")):
        name = package.relative_to(ROOT).as_posix()
        (row,) = re.findall(rf"^\| `{name}` \|.*\|(.*)\|$", table, re.MULTILINE)
        modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
        assert set(re.findall(r"`([a-z_]+)`", row)) == modules, name
    for name in re.findall(r"`([a-z_/]+\.(?:py|lua))`", text):
        places = [path for top in ("bakerygw", "tests", "bench") for path in (ROOT / top).rglob(Path(name).name)]
        assert any(path.as_posix().endswith(f"/{name}") for path in [*places, *ROOT.glob(name)]), name


def test_the_unit_keeps_the_audit_trail_where_a_restart_does_not_end_it() -> None:
    unit = page("etc/bakerygw.service")
    assert "\nStateDirectory=bakerygw\n" in unit
    assert "\nEnvironment=XDG_STATE_HOME=%S/bakerygw\n" in unit


@pytest.mark.parametrize("name", ["architecture", "clients", "operators", "services", "tenants"])
def test_a_guide_lists_its_chapters_in_their_order(name: str) -> None:
    text = page(f"docs/{name}.md")
    head, *_ = text.partition("\n## ")
    listed = [" ".join(words.split()) for words in re.findall(r"\[([^\]]+)\]\(#", head)]
    chapters = re.findall(r"^## (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    assert [words for words in listed if words in chapters] == chapters
