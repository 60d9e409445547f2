"""The builds of the gateway that are measured: compiled, from an environment of its own, and plain, from this checkout.

`make compiled` makes `.venv-compiled`; COMPILED_PYTHON names the Python of another one. Nothing is measured under the
wrong name: an environment that is not compiled, or that was made from other sources than these, is refused.
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rig import ROOT, Unusable, arguments

ASK: Final = "import bakerygw; print(bakerygw.is_compiled(), bakerygw.__path__[0])"
REMEDY: Final = "`make compiled` makes it anew; or measure the plain build with --plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One of them: its name, and how it runs."""

    name: str
    python: Path
    environ: Mapping[str, str]

    def command(self) -> list[str]:
        """The gateway in the foreground, by the `twistd` beside its Python."""
        return [str(self.python.with_name("twistd")), "-n", "--pidfile=", "bakerygw"]


def plain() -> Build:
    """The sources of this checkout, by this Python."""
    return Build(name="plain", python=Path(sys.executable), environ={"PYTHONPATH": str(ROOT)})


@functools.cache
def compiled() -> Build:
    """The compiled build. Raises `Unusable` if there is none, or none of these sources."""
    python = Path(os.environ.get("COMPILED_PYTHON", ROOT / ".venv-compiled" / "bin" / "python"))
    if not python.exists():
        raise Unusable(f"no compiled build: {python} is not there; {REMEDY}")
    told = subprocess.run([python, "-c", ASK], cwd="/", capture_output=True, text=True, check=False)
    state, _, folder = told.stdout.strip().partition(" ")
    if state != "True":
        raise Unusable(f"{python} has no compiled bakerygw; {REMEDY}\n{told.stderr}")
    changed = differing(ROOT / "bakerygw", Path(folder))
    if changed:
        raise Unusable(f"{python} has other sources than this checkout ({', '.join(changed[:3])}); {REMEDY}")
    return Build(name="compiled", python=python, environ={})


def differing(sources: Path, installed: Path) -> list[str]:
    """The Python files of `sources` that are not the same in `installed`."""
    names = sorted(path.relative_to(sources) for path in sources.rglob("*.py"))
    return [
        str(name)
        for name in names
        if not (installed / name).exists() or (installed / name).read_bytes() != (sources / name).read_bytes()
    ]


def of(given: argparse.Namespace) -> Build:
    """The build that the command line asks for."""
    return plain() if given.plain else compiled()


def build_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of scripts that measure one build."""
    parser = arguments(description)
    parser.add_argument("--plain", action="store_true", help="measure the plain build, not the compiled one")
    return parser
