"""What the bench scripts make of what they read: wrk's result, answers, /proc, rounds and ratios, growth."""

import math
import os
import random
import sys
from pathlib import Path

import pytest
from builds import build_arguments, compiled, differing, of, plain
from client import Tally, parse_answer
from compare import order, ratios, summary
from procfs import stat_seconds, status_bytes
from rig import Issuer, Unusable, http_request, require, verdict
from soak import ALLOWED, MIX, LogWatch, grown, growth, mixture
from transfer import MIB, content, digest_of
from wrk import PERCENTILES, parse, write_requests

LATENCIES = ", ".join(f'"{name}": {number}.5' for number, name in enumerate(PERCENTILES, 1))
RESULT = f'wrk-result {{"requests": 600, "seconds": 2.0, "not_2xx": 0, "broken": 0, {LATENCIES}}}'


def test_wrks_result_is_found_among_its_other_lines() -> None:
    found = parse(f"Running 2s test\n  600 requests in 2.00s\n{RESULT}\n")

    assert found["rps"] == 300
    assert [found[name] for name in PERCENTILES] == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]


@pytest.mark.parametrize("output", ["", "Running 2s test\n", f"{RESULT}\n{RESULT}\n"])
def test_a_run_of_wrk_without_one_result_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match="no result"):
        parse(output)


def test_the_load_asks_for_every_percentile_that_is_read() -> None:
    script = (Path(__file__).parents[2] / "bench" / "requests.lua").read_text()

    asked = ", ".join(name.removeprefix("p") for name in PERCENTILES)
    assert f"ipairs({{{asked}}})" in script


def test_each_request_of_the_load_is_written_after_its_length(tmp_path: Path) -> None:
    assert write_requests(tmp_path / "r", [b"GET /\r\n\r\n", b"x"]).read_bytes() == b"9\nGET /\r\n\r\n1\nx"


def test_a_request_announces_the_length_of_its_body() -> None:
    assert http_request("POST", "/a", "t0", b"{}").split(b"\r\n")[2:] == [
        b"Authorization: Bearer t0", b"Content-Type: application/json", b"Content-Length: 2", b"", b"{}",
    ]  # fmt: skip
    assert b"Content-Length" not in http_request("GET", "/a")


ANSWER = b"HTTP/1.1 404 Not Found\r\nA: b\r\ncontent-length: 3\r\n\r\nabc"


@pytest.mark.parametrize("cut", range(len(ANSWER)))
def test_an_answer_is_not_taken_before_it_is_whole(cut: int) -> None:
    assert parse_answer(ANSWER[:cut]) is None


def test_an_answer_ends_where_its_length_says() -> None:
    assert parse_answer(ANSWER + b"HTTP/1.1 200 OK") == (404, len(ANSWER))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nContent-Length: 2",
        b"hi\r\n\r\n",
    ],
)
def test_an_answer_without_a_length_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        parse_answer(data)


def test_percentiles_of_a_paced_run() -> None:
    tally = Tally()
    tally.latencies_ms.extend(float(number) for number in reversed(range(100)))

    assert (tally.percentile(0.5), tally.percentile(0.99), tally.percentile(1.0)) == (50, 99, 99)
    assert math.isnan(Tally().percentile(0.5))


def test_memory_and_processor_time_out_of_proc() -> None:
    stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 " + "250 50 0 0"

    assert status_bytes("Name:\ttwistd\nVmRSS:\t   2048 kB\n", "VmRSS") == 2 * MIB
    assert stat_seconds(stat)[0] == 5 * stat_seconds(stat)[1] > 0
    with pytest.raises(ValueError, match="VmRSS"):
        status_bytes("Name:\tx\n", "VmRSS")


def test_systems_take_turns_in_who_begins_and_slow_ones_run_seldom() -> None:
    systems = ["bakerygw", "haproxy", "seed"]

    assert [order(systems, number) for number in range(4)] == [
        ["bakerygw", "haproxy", "seed"],
        ["haproxy", "bakerygw"],
        ["bakerygw", "haproxy"],
        ["seed", "haproxy", "bakerygw"],
    ]


def test_the_plain_build_is_this_checkout_by_this_python() -> None:
    build = of(build_arguments("").parse_args(["--plain"]))

    assert build == plain()
    assert build.command()[0] == str(Path(sys.executable).with_name("twistd"))
    assert build.environ == {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def test_a_build_of_other_sources_is_found_out(tmp_path: Path) -> None:
    for folder, text in (("sources", "a"), ("same", "a"), ("other", "b"), ("empty", None)):
        (tmp_path / folder / "core").mkdir(parents=True)
        if text is not None:
            (tmp_path / folder / "core" / "limits.py").write_text(text)
    sources = tmp_path / "sources"

    assert differing(sources, tmp_path / "same") == []
    assert differing(sources, tmp_path / "other") == differing(sources, tmp_path / "empty") == ["core/limits.py"]


@pytest.mark.parametrize("answer", [None, "echo False /nowhere", "exit 1"])
def test_without_a_compiled_build_its_figures_are_not_taken(
    answer: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    if answer is not None:
        python.write_text(f"#!/bin/sh\n{answer}\n")
        python.chmod(0o755)
    monkeypatch.setenv("COMPILED_PYTHON", str(python))
    compiled.cache_clear()

    with pytest.raises(Unusable, match="make compiled"):
        compiled()


def run_of(number: int, rps: float) -> dict[str, float]:
    return {
        "round": number,
        "rps": rps,
        "waiting": 0.01,
        "broken": 0,
        "not_2xx": 0,
        **dict.fromkeys(PERCENTILES, rps / 100),
    }


RUNS = {
    "bakerygw": [run_of(0, 100), run_of(1, 50), run_of(2, 400), run_of(3, 90)],
    "haproxy": [run_of(0, 100), run_of(1, 100), run_of(2, 200), run_of(3, 100)],
    "seed": [run_of(3, 10), run_of(0, 5)],
}


def test_ratios_are_of_runs_of_the_same_round() -> None:
    assert ratios(RUNS, "haproxy") == [1, 0.5, 2, 0.9]
    assert ratios(RUNS, "seed") == [9, 20]


def test_the_summary_has_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    found = summary(RUNS)["haproxy"]

    assert found["ratio"] == pytest.approx(0.95)
    assert (found["ratio_low"], found["ratio_high"], found["rps"], found["rounds"]) == (0.5, 2, 100, 4)
    assert math.isnan(summary({"haproxy": RUNS["haproxy"]})["haproxy"]["ratio"])


def test_a_missing_program_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(Unusable, match=r"(?s)not installed: setpriv, taskset, wrk\n.*apt install util-linux wrk$"):
        require("wrk")


@pytest.mark.parametrize(("kept", "word"), [(True, "ok"), (False, "BROKEN")])
def test_a_verdict_is_one_line(kept: bool, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = verdict("added", 0.25, "ms", "<= 0.6 ms", kept)

    assert capsys.readouterr().out == f"added 0.25 ms (promise: <= 0.6 ms) {word}\n"
    assert told["kept"] is kept


def test_growth_is_seen_through_bursts_and_a_burst_is_none() -> None:
    steady = [100.0, 500.0, 100.0] * 10
    leaking = [value + number for number, value in enumerate(steady)]

    assert growth([*steady[:-1], 900.0]) == 0
    assert growth(leaking) == 20
    assert math.isnan(growth([1.0] * 5))


def test_what_grows_beyond_its_allowance_is_named() -> None:
    flat = {name: [1.0] * 9 for name in ALLOWED}
    rising = [1.0] * 6 + [1.0 + ALLOWED["files"] + 1] * 3

    assert grown(flat) == {}
    assert grown({**flat, "files": rising}) == {"files": ALLOWED["files"] + 1}
    assert list(grown({name: values for name, values in flat.items() if name != "timers"})) == ["timers"]


def test_faults_in_the_log_are_counted_and_lines_may_come_in_pieces() -> None:
    with LogWatch() as watch:
        for piece in (b'{"level":"info","event":"request.done"}\nUnhandled er', b"ror in Deferred:\n", b"Traceback "):
            os.write(watch.write, piece)
        os.write(watch.write, b'(most recent call last):\n  File "x"\n')

    assert dict(watch.faults) == {"Unhandled error": 1, "Traceback (most recent call last)": 1}
    assert watch.first_fault.startswith(b"Unhandled error")
    assert watch.lines == 4


def test_an_ordinary_log_has_no_faults() -> None:
    with LogWatch() as watch:
        os.write(watch.write, b'{"level":"info","event":"request.done","status":404}\n' * 100)

    assert (watch.lines, dict(watch.faults)) == (100, {})


def test_the_mix_holds_every_kind_of_answer() -> None:
    issuer = Issuer()
    planned = mixture([issuer.token(1)], issuer, random.Random(2))
    statuses = [it.status for it in planned]

    assert sum(MIX.values()) == 100
    shares = {status: statuses.count(status) / len(statuses) for status in (200, 401, 402, 404)}
    assert shares == pytest.approx({200: 0.85, 401: 0.05, 402: 0.05, 404: 0.05}, abs=0.03)
    assert any(it.request.startswith(b"POST ") for it in planned)


def test_content_has_the_length_asked_for_and_no_two_pieces_alike() -> None:
    pieces = list(content(2 * MIB + 5))

    assert sum(map(len, pieces)) == 2 * MIB + 5
    assert len(set(pieces)) == 3
    assert digest_of(MIB) != digest_of(MIB + 1)
