"""What the bench scripts draw and write: tables, blocks of a page, charts, flame graphs."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import charts
import pytest
from flamegraph import KERNEL, PARTS, REACTOR, REST, Frame, condensed, costs, draw, parse, part_of
from page import HEAD, MEASURES, UNMEASURED, blocks_of, cost_table, figure, peers, promises, replaced, results_in, table

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "date": "2026-01-31",
    "cpu": "A CPU",
    "cores": 2,
    "hyperthreads": True,
    "system": "Linux 6",
    "python": "3.11.9",
}


def row_of(rps: float) -> dict[str, float]:
    latencies = {name: share * 100 / rps for name, share in charts.LATENCIES.items()}
    return {
        "rps": rps,
        **latencies,
        "rounds": 7,
        "errors": 0,
        "waiting": 0.02,
        "ratio": 1.05,
        "ratio_low": 0.9,
        "ratio_high": 1.2,
    }


ROWS = {
    "bakerygw": row_of(8_400),
    "plain": row_of(5_600),
    "haproxy": row_of(8_000),
    "aiohttp": row_of(1_200),
    "seed": row_of(110),
}


def words_of(picture: str) -> list[str]:
    """The texts of a picture, which must be well-formed; of the width that pages take, and static."""
    root = ElementTree.fromstring(picture)  # noqa: S314  our own text
    assert int(root.attrib["width"]) <= 900
    assert "prefers-color-scheme: dark" in picture
    assert not re.search(r"<script|@import|url\(|href", picture)
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [["1", "2"], ["3", "4"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"


@pytest.mark.parametrize("row", [["1"], ["1", "2", "3"], ["1", "2|3"]])
def test_a_row_that_would_break_a_table_is_an_error(row: list[str]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        table(("a", "b"), [row])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(21_336.4, "21,300"), (5_436, "5,440"), (123.4, "123"), (7.234, "7.23"), (0.5624, "0.562"), (0, "0")],
)
def test_figures_have_the_digits_they_are_worth(value: float, shown: str) -> None:
    assert figure(value) == shown


PAGE = "# Prose\n<!-- bench:peers -->\nold\n<!-- /bench:peers -->\nmore prose\n"


def test_a_block_is_replaced_and_the_prose_is_kept() -> None:
    once = replaced(PAGE, "peers", "new")

    assert once == "# Prose\n<!-- bench:peers -->\nnew\n<!-- /bench:peers -->\nmore prose\n"
    assert replaced(once, "peers", "old") == PAGE


@pytest.mark.parametrize(
    "page", ["", PAGE + PAGE, PAGE.replace("/bench", "bench"), "<!-- /bench:peers --><!-- bench:peers -->"]
)
def test_a_page_whose_marks_are_not_in_order_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="must be there once"):
        replaced(page, "peers", "new")


@pytest.mark.parametrize("name", ["peers", "promises", "costs"])
def test_the_page_has_a_place_for_every_block(name: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert "new text" in replaced(page, name, "new text")


def test_the_table_of_peers_tells_ratios_machine_and_what_was_set() -> None:
    used = {"connections": 50, "warm_up": 2.0, "seconds": 5.0}
    text = peers({"machine": MACHINE, "versions": {"haproxy": "2.6.12"}, "options": used, "systems": ROWS})

    assert "| bakerygw, compiled: " in text
    assert "| bakerygw, plain: the same, interpreted | 5,600 |" in text
    assert "| HAProxy 2.6.12, one thread" in text
    assert "| 8,000 | 0.625 ms | 1.24 ms | 1.25 ms | 1.05 × (0.9 to 1.2) | 7 |" in text  # noqa: RUF001
    assert "A CPU, 2 cores, the two used are threads of one core, Linux 6, Python 3.11.9" in text
    assert "RATE_LIMIT_REQUESTS=1000000" in text
    assert "for 2% of a run at most" in text


def test_the_table_of_peers_tells_of_errors() -> None:
    used = {"connections": 50, "warm_up": 2.0, "seconds": 5.0}
    systems = {**ROWS, "haproxy": {**ROWS["haproxy"], "errors": 3}}
    text = peers({"machine": MACHINE, "versions": {}, "options": used, "systems": systems})

    assert "**Answers that were errors: haproxy 3; " in text


def test_every_promise_has_a_row_and_broken_or_unmeasured_ones_stand_out() -> None:
    kept = {"name": "one_connection_added", "value": 0.25, "unit": "ms", "promise": "<= 0.6 ms", "kept": True}
    broken = {"name": "throughput_to_seed", "value": 29.0, "unit": "x", "promise": ">= 30", "kept": False}
    lines = promises({"a": {"verdicts": [kept]}, "b": {"verdicts": [broken]}}).splitlines()

    assert lines[2] == "| throughput, times FastAPI's | ≥ 30 | 29 × | **no** |"  # noqa: RUF001
    assert lines[3] == "| throughput, times `aiohttp`'s |  | **not measured** |  |"
    assert "| one connection: median added over asking the service directly | ≤ 0.6 ms | 0.25 ms | yes |" in lines
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {words}" for words in MEASURES.values()]


def test_without_a_comparison_its_block_says_so_and_the_costs_stay() -> None:
    assert blocks_of({}) == {"peers": "**not measured**", "promises": promises({})}


def test_only_the_figures_of_whole_scripts_are_read(tmp_path: Path) -> None:
    (tmp_path / "compare.subset.json").write_text('{"verdicts": []}')
    (tmp_path / "idle.json").write_text('{"verdicts": [1]}')

    assert results_in(tmp_path) == {"idle": {"verdicts": [1]}}


def block(name: str) -> list[str]:
    """The lines of a block of the page."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    return page.partition(f"<!-- bench:{name} -->\n")[2].partition(f"<!-- /bench:{name} -->")[0].splitlines()


def test_the_page_has_a_row_for_every_promise_as_the_command_writes_it() -> None:
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in block("promises")]

    assert rows[0] == list(HEAD)
    assert [row[0] for row in rows[2:]] == list(MEASURES.values())
    for _, promise, found, kept in rows[2:]:
        assert (found == UNMEASURED) == (not promise) == (not kept.strip())
        assert kept.strip() in {"", "yes", "**no**"}


def test_the_page_compares_with_peers_as_the_command_writes_it() -> None:
    lines = block("peers")

    assert lines == [UNMEASURED] or lines[0].endswith("(img/peers.svg)")


def test_what_was_found_of_the_plain_build_says_so() -> None:
    kept = {"name": "one_connection_added", "value": 0.25, "unit": "ms", "promise": "<= 0.6 ms", "kept": True}
    machines = {build: {**MACHINE, "build": build} for build in ("plain", "compiled")}
    lines = {
        build: next(
            row for row in promises({"a": {"machine": machine, "verdicts": [kept]}}).splitlines() if "0.25" in row
        )
        for build, machine in machines.items()
    }

    assert "(plain build)" in lines["plain"]
    assert "build" not in lines["compiled"]


def test_every_script_that_promises_something_is_in_the_table() -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "bench").glob("*.py"))
    named = set(re.findall(r'\b(?:verdict|run)\("(\w+)"', sources)) - {"request_cost", "page"}

    assert {name for name in MEASURES if not name.startswith("throughput_to_")} == named


def test_the_picture_of_the_comparison_names_each_system_twice_with_its_throughput() -> None:
    words = words_of(charts.comparison(ROWS, "Title"))

    for name, (shown, _, _) in charts.SHOWN.items():
        assert words.count(shown) == 2
        assert f"{ROWS[name]['rps']:,.0f}" in words


def test_each_further_nine_takes_as_much_room() -> None:
    p50, p90, p99, p999 = (charts.position(share) for share in (50, 90, 99, 99.9))

    assert (p50, p999) == (charts.PLOT[0], pytest.approx(charts.PLOT[1]))
    assert p99 - p90 == pytest.approx(p999 - p99)


def test_latencies_that_hardly_differ_still_have_an_axis() -> None:
    assert charts.decades({"a": dict.fromkeys(charts.LATENCIES, 10.0)}) == (1, 2)
    assert charts.decades({"a": dict.fromkeys(charts.LATENCIES, 0.0)}) == (-3, -2)


def test_labels_keep_their_order_and_their_distance() -> None:
    found = charts.spread({"a": 10.0, "b": 12.0, "c": 60.0, "d": 11.0}, step=15.0)

    assert found == {"a": 10.0, "d": 25.0, "b": 40.0, "c": 60.0}


LOOP = "run (twisted/internet/base.py:1);ReactorBase.mainLoop (twisted/internet/base.py:2)"
RECEIVE = f"{LOOP};callWithLogger (twisted/python/log.py);Connection.doRead (twisted/internet/tcp.py:3)"
SERVE = f"{RECEIVE};EdgeChannel.dataReceived (bakerygw/edge/channel.py)"
RAW = f"""\
{RECEIVE} 20
{RECEIVE};Connection._dataReceived (twisted/internet/tcp.py);Odd<name> & more (bakerygw/edge/channel.py) 10
{SERVE};Deferred.callback (twisted/internet/defer.py);_inlineCallbacks (twisted/internet/defer.py);match (re.py) 30
{SERVE};Gateway.reply_to (bakerygw/edge/gateway.py);Connection.write (twisted/internet/abstract.py) 39
{SERVE};Gateway.rare (bakerygw/core/routing.py) 1
Thread.run (threading.py);Condition.wait (threading.py) 400
"""


def test_stacks_begin_at_the_reactors_loop_and_other_threads_are_left_out() -> None:
    stacks = parse(RAW)

    assert sum(stacks.values()) == 100
    assert {stack[0] for stack in stacks} == {Frame("ReactorBase.mainLoop", "twisted/internet/base.py")}


def test_time_belongs_to_the_innermost_frame_that_is_no_plumbing() -> None:
    found = costs(parse(RAW))

    assert found[KERNEL] == 0.20
    assert found["client side: channel, parser, answer"] == pytest.approx(0.40)  # a library's too
    assert found[REACTOR] == 0.39
    assert found["decisions: routes, tokens, tenants"] == 0.01
    assert sum(found.values()) == pytest.approx(1)
    assert costs({}) == dict.fromkeys(PARTS, 0.0)


@pytest.mark.parametrize(
    ("frame", "part"),
    [
        (Frame("f", "bakerygw/stores/redis.py"), "limits and flags: Redis"),
        (Frame("f", "bakerygw/upstream/pool.py"), "service side: pool, connection"),
        (Frame("f", "bakerygw/telemetry/writer.py"), "log lines"),
        (Frame("f", "bakerygw/telemetry/series.py"), "metrics"),
        (Frame("f", "bakerygw/tokens/verifier.py"), "decisions: routes, tokens, tenants"),
        (Frame("f", "json/encoder.py"), REST),
        (Frame("_Plain.doRead", "bakerygw/runtime/sockets.py"), KERNEL),
        (Frame("TurnPoller._serve", "bakerygw/runtime/poller.py"), REACTOR),
        (Frame("Task.step", "bakerygw/runtime/task.py"), REST),
        (Frame("Connection.doRead", "bakerygw/upstream/pool.py"), "service side: pool, connection"),
    ],
)
def test_files_belong_to_parts(frame: Frame, part: str) -> None:
    assert part_of([frame]) == part


def test_plumbing_is_drawn_once_and_logging_contexts_not_at_all() -> None:
    deferred, context = "twisted/internet/defer.py", "twisted/python/context.py"
    stack = [Frame("a", "x.py"), Frame("c", context), Frame("d", deferred), Frame("e", deferred), Frame("b", "x.py")]

    assert condensed(stack) == (Frame("a", "x.py"), Frame("Deferred", deferred), Frame("b", "x.py"))


def test_a_flame_graph_shows_wide_frames_by_name_and_leaves_out_narrow_ones() -> None:
    stacks = parse(RAW.replace("routing.py) 1", "routing.py) 1") + f"{SERVE};tiny (bakerygw/core/http.py) 1\n")
    many = {stack: count * 1000 if stack[-1].name != "tiny" else 1 for stack, count in stacks.items()}
    picture = draw(many, "Where & why")
    words = words_of(picture)

    assert {"ReactorBase.mainLoop", "EdgeChannel.dataReceived", "Gateway.reply_to", "Deferred"} <= set(words)
    assert "Odd&lt;name&gt; &amp; more (bakerygw/edge/channel.py) 10.0%" in picture
    assert "Gateway.rare" in picture
    assert "tiny" not in picture


def test_only_what_is_itself_in_the_kernel_has_its_colour() -> None:
    calling = f"{LOOP};EPollReactor.doPoll (twisted/internet/epollreactor.py);f (bakerygw/edge/gateway.py) 9\n"
    picture = draw(parse(calling + f"{LOOP};Connection.doRead (twisted/internet/tcp.py) 9\n"), "Title")

    assert f'<g class="{PARTS[REACTOR][0]}"><title>EPollReactor.doPoll' in picture
    assert f'<g class="{PARTS[KERNEL][0]}"><title>Connection.doRead' in picture


def test_boxes_stay_within_those_of_their_callers() -> None:
    root = ElementTree.fromstring(draw(parse(RAW), "Title"))  # noqa: S314  our own text
    boxes: dict[str, Any] = {}
    for group in root.iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        if title is not None and rect is not None:
            boxes[(title.text or "").split(" (")[0]] = {name: float(value) for name, value in rect.attrib.items()}
    caller, callee = boxes["EdgeChannel.dataReceived"], boxes["Gateway.reply_to"]

    assert caller["x"] <= callee["x"]
    assert callee["x"] + callee["width"] <= caller["x"] + caller["width"] + 0.2
    assert callee["y"] > caller["y"]
    assert callee["width"] / boxes["ReactorBase.mainLoop"]["width"] == pytest.approx(0.39, abs=0.01)


def test_the_table_of_costs_adds_up() -> None:
    parts = {**dict.fromkeys(PARTS, 0.0), KERNEL: 30.0, REACTOR: 10.0}
    lines = cost_table({"machine": MACHINE, "parts": parts}).splitlines()

    assert f"| {KERNEL} | 30.0 | 75% |" in lines
    assert "| **all of it** | **40.0** |  |" in lines
    assert not [line for line in lines if line.startswith(f"| {REST} ")]
