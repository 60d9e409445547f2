"""What the bench scripts need of the machine, and what they leave on it."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import compare
import folders
import pytest
from rig import RESULTS, Unusable, folder_of, require


def test_programs_that_start_the_others_are_required_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(Unusable, match=r"(?s)not installed: setpriv, taskset\n.*apt install util-linux$"):
        require()


def test_folders_of_killed_scripts_are_deleted_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = time.time() - folders.LEFT_S - 1
    left, young, foreign = (tmp_path / name for name in ("bakerygw-bench-a", "bakerygw-bench-b", "other"))
    for folder in (left, young, foreign):
        folder.mkdir()
    for folder in (left, foreign):
        os.utime(folder, (old, old))
    with folders.temporary_folder() as used:
        assert {used, young, foreign} == set(tmp_path.iterdir())
        os.utime(used, (old, old))
        folders.tidy(tmp_path)
        assert {used, young, foreign} == set(tmp_path.iterdir())
    assert {young, foreign} == set(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ([], RESULTS),
        (["--plain"], RESULTS),
        (["--seconds", "60"], RESULTS),
        (["--seconds", "1"], RESULTS / "own"),
        (["--plain", "--seconds", "1"], RESULTS / "own"),
        (["--quick"], RESULTS / "quick"),
        (["--quick", "--seconds", "1"], RESULTS / "quick"),
    ],
)
def test_figures_are_for_the_page_only_if_they_measured_what_is_promised(options: list[str], folder: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--seconds", type=int, default=60)

    assert folder_of(parser, parser.parse_args(options)) == folder


@pytest.mark.parametrize(
    ("words", "folder", "rounds"),
    [
        ("", RESULTS, 7),
        ("--rounds 7", RESULTS, 7),
        ("--rounds 3", RESULTS / "own", 3),
        ("--systems bakerygw,haproxy", RESULTS / "own", 7),
        ("--quick", RESULTS / "quick", 1),
        ("--quick --rounds 2", RESULTS / "quick", 2),
    ],
)
def test_a_comparison_as_promised_is_for_the_page(words: str, folder: Path, rounds: int) -> None:
    found, options = compare.asked(words.split())

    assert (found, options.rounds) == (folder, rounds)
