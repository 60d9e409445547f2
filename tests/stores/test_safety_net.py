"""The net under all tests: a failure that nobody handled fails the test that left it."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
LEFT = """
from twisted.internet.defer import fail

def test_leaves_a_failed_deferred():
    fail(ValueError("left behind"))

def test_handles_it():
    fail(ValueError("handled")).addErrback(lambda failure: None)
"""


def test_a_test_that_leaves_a_failed_deferred_fails(tmp_path):
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    (tmp_path / "test_left.py").write_text(LEFT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert "ValueError: left behind" in run.stdout
    assert "ERROR test_left.py::test_leaves_a_failed_deferred" in run.stdout
    assert "2 passed, 1 error" in run.stdout
