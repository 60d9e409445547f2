"""The storm of tests/chaos in short: instances killed, Redis paused and restarted, readers cut; nothing goes unsaid."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("scenario", "alerts"), [("kills", 2400), ("redis", 1800), ("nobody", 600)])
def test_no_reader_misses_an_alert_or_sees_one_twice_but_where_a_gap_says_so(scenario: str, alerts: int) -> None:
    command = [sys.executable, "-m", "tests.chaos.alerts", "--scenarios", scenario, "--alerts", str(alerts)]
    storm = subprocess.run(
        [*command, "--rate", "600", "--tenants", "3", "--readers", "3"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert storm.returncode == 0, storm.stdout[-8000:]
    assert "all is well" in storm.stdout
