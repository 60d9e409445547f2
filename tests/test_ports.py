"""Ports that tests give to servers, beside other runs of tests."""

import subprocess
import sys

GIVES = "import sys; from tests.ports import free_ports; print(*free_ports(200), flush=True); sys.stdin.read()"


def test_two_runs_have_ports_apart() -> None:
    command = [sys.executable, "-c", GIVES]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        given = [set(run.stdout.readline().split()) for run in runs if run.stdout is not None]
    finally:
        for run in runs:
            run.communicate()

    assert [len(its) for its in given] == [200] * 3
    assert len(set.union(*given)) == 600
