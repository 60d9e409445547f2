"""What makes a bench script fail: nothing measured, faults, hung requests, promises that nobody tested."""

import ast
import os
import struct
from collections import Counter
from pathlib import Path

import compare
import pytest
import sockets
import wrk
from client import Tally
from flame import amiss
from rig import Unusable
from soak import ALLOWED, BUSY, UNEVEN, LogWatch, Samples, not_a_capacity, report

ROOT = Path(__file__).resolve().parents[2]
LATENCIES = ", ".join(f'"{name}": 1.5' for name in wrk.PERCENTILES)


def result_of(requests: int, broken: int = 0) -> str:
    return f'wrk-result {{"requests": {requests}, "seconds": 2.0, "not_2xx": 0, "broken": {broken}, {LATENCIES}}}'


def test_a_run_in_which_nothing_was_answered_is_an_error() -> None:
    with pytest.raises(ValueError, match="not one request"):
        wrk.parse(result_of(0))


def test_requests_that_hang_count_as_broken() -> None:
    assert wrk.parse(result_of(600, broken=2), hung=3)["broken"] == 5


@pytest.mark.parametrize(("seconds", "waits"), [(1, 0.5), (5, 2.5), (20, 10), (300, 10)])
def test_an_answer_is_waited_for_during_half_of_a_run_at_most(seconds: float, waits: float) -> None:
    assert wrk.patience(seconds) == waits


def socket_message(inode: int, silent_ms: int) -> bytes:
    """What the kernel tells of one socket: `inet_diag_msg`, an attribute to be skipped, and a `tcp_info`."""
    message = bytes(68) + struct.pack("=I", inode)
    message += struct.pack("=HHBxxx", 5, 8, 0)
    message += struct.pack("=HH", 4 + 104, 2) + bytes(52) + struct.pack("=I", silent_ms) + bytes(48)
    return struct.pack("=IHHII", 16 + len(message), 20, 2, 1, 0) + message


def test_the_kernel_tells_how_long_connections_have_received_nothing() -> None:
    done = struct.pack("=IHHII", 20, 3, 2, 1, 0) + bytes(4)

    assert list(sockets.received(socket_message(77, 1500) + socket_message(78, 3))) == [(77, 1500), (78, 3)]
    assert list(sockets.received(done)) == []


def test_a_kernel_that_tells_nothing_is_an_error() -> None:
    with pytest.raises(PermissionError):
        list(sockets.received(struct.pack("=IHHIIi", 36, 2, 2, 1, 0, -1) + bytes(16)))


@pytest.mark.parametrize(
    "line",
    [
        b'{"level":"critical","event":"poller.failed"}\n',
        b'{"level":"info","event":"x","exception":[{"exc_type":"AttributeError"}]}\n',
        b'{"level":"error","event":"x"}\n',
    ],
)
def test_a_failure_in_the_log_is_a_fault(line: bytes) -> None:
    watch = LogWatch()
    with watch:
        watch.look(line)

    assert watch.faults.total() == 1
    assert watch.first_fault


def flat_samples(tmp_path: Path) -> Samples:
    return Samples(1, tmp_path / "inside", {name: [1.0] * 9 for name in ALLOWED})


def test_a_soak_fails_when_no_log_was_read_and_nothing_was_answered(tmp_path: Path) -> None:
    watch = LogWatch()
    with watch:
        found = report(Tally(seconds=1.0), flat_samples(tmp_path), watch)

    assert found["wrong"] == ["not one request was answered", "not one line of the log was read"]


def test_what_was_wrong_with_the_capacity_fails_the_soak(tmp_path: Path) -> None:
    with LogWatch() as watch:
        os.write(watch.write, b'{"level":"info"}\n')
    found = report(Tally(answers=Counter({200: 5}), seconds=1.0), flat_samples(tmp_path), watch, ["capacity: idle"])

    assert found["wrong"] == ["capacity: idle"]


RUN = {"requests": 10_000.0, "broken": 0.0, "not_2xx": 1_500.0}


@pytest.mark.parametrize(
    ("differs", "busy", "complaints"),
    [
        ({}, BUSY, []),
        ({"not_2xx": 1_500.0 + UNEVEN}, BUSY, []),
        ({}, BUSY - 0.01, ["of its core"]),
        ({"broken": 1.0}, 1.0, ["1 requests broken"]),
        ({"not_2xx": 10_000.0}, 1.0, ["10000 of 10000 answers from 400 on, 15.0% are right"]),
        ({"not_2xx": 0.0}, 1.0, ["0 of 10000 answers from 400 on"]),
    ],
)
def test_a_capacity_needs_the_core_and_the_right_answers(
    differs: dict[str, float], busy: float, complaints: list[str]
) -> None:
    found = list(not_a_capacity({**RUN, **differs}, busy, 0.15))

    assert len(found) == len(complaints)
    assert all(part in told for part, told in zip(complaints, found, strict=True))


def test_costs_are_worth_nothing_after_errors_or_without_samples() -> None:
    good, bad = {"broken": 0.0, "not_2xx": 0.0}, {"broken": 2.0, "not_2xx": 1.0}

    assert amiss([good, good], 10) == []
    assert amiss([good, bad], 10) == ["3 answers were errors"]
    assert amiss([good, good], 0) == ["no sample was taken"]


def row_of(ratio: float, p99_ratio: float, errors: int = 0) -> dict[str, float]:
    return {
        "rps": 1.0,
        "p50": 1.0,
        "p99": 1.0,
        "ratio": ratio,
        "ratio_low": 1.0,
        "ratio_high": 1.0,
        "p99_ratio": p99_ratio,
        "errors": errors,
    }


@pytest.mark.parametrize("failing", ["bakerygw", "haproxy", None])
def test_no_promise_is_kept_by_answers_that_were_errors(failing: str | None) -> None:
    rows = {name: row_of(1.0, 1.0, errors=int(name == failing)) for name in ("bakerygw", "haproxy")}

    assert [it["kept"] for it in compare.report(rows)] == [failing is None] * 2


def test_figures_of_some_systems_are_kept_apart_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.result_name(compare.SYSTEMS) == "compare"
    assert not capsys.readouterr().out
    assert compare.result_name(["haproxy", "bakerygw"]) == "compare.subset"
    assert capsys.readouterr().out.startswith("without plain, aiohttp, seed: ")


def test_a_comparison_that_tests_no_promise_fails() -> None:
    assert not compare.all_kept(compare.report({"haproxy": row_of(1.0, 1.0)}))
    assert not compare.all_kept([{"kept": True}, {"kept": False}])
    assert compare.all_kept([{"kept": True}])


@pytest.mark.parametrize("peer", sorted(compare.IMPORTED))
def test_what_a_python_peer_imports_is_required(peer: str) -> None:
    tree = ast.parse((ROOT / "bench" / "peers" / f"{peer}_stack.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in imported} & {
        *("aiohttp", "fastapi", "httpx", "jwt", "prometheus_client", "redis", "structlog", "uvicorn", "uvloop")
    }

    assert others <= set(compare.IMPORTED[peer].split(", "))


def test_a_python_of_the_peers_that_lacks_a_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *jwt*) exit 1 ;; esac\n')
    python.chmod(0o755)
    monkeypatch.setenv("PEERS_PYTHON", str(python))

    with pytest.raises(Unusable, match="cannot import all of: aiohttp, jwt"):
        compare.require_peers(["aiohttp"])
    compare.require_peers(["bakerygw", "haproxy"])
