"""What is packed: the wheel's files and promises, and that twistd and the console script find the gateway."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import bakerygw
from bakerygw.edge import gateway

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = ("bakerygw", "twisted", "setup.py", "pyproject.toml", "MANIFEST.in")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the sources, so that no earlier build's leavings get in or stay behind."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, copy / name)
    (copy / "twisted" / "plugins" / "dropin.cache").write_bytes(b"of another machine")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(copy)]
    if int(version("setuptools").partition(".")[0]) >= 77:  # else one that is new enough has to be fetched
        command.append("--no-build-isolation")
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """The wheel's METADATA."""
    return HeaderParser().parsestr(packed_text(wheel, "METADATA"))


def packed_text(wheel: zipfile.ZipFile, name: str) -> str:
    """One file of the wheel's dist-info folder."""
    return wheel.read(f"bakerygw-{bakerygw.__version__}.dist-info/{name}").decode()


def sources(pattern: str) -> set[str]:
    """The repository's files that match, as a wheel names them."""
    return {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob(pattern) if path.is_file()}


@pytest.mark.parametrize(
    "pattern",
    [
        "bakerygw/**/*.py",
        "bakerygw/**/*.lua",
        "bakerygw/edge/pages/static/*",
        "bakerygw/demo/page/**/*",
        "twisted/**/*.py",
    ],
)
def test_the_wheel_holds_every_source_file(wheel: zipfile.ZipFile, pattern: str) -> None:
    assert sources(pattern) - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert packed - sources("bakerygw/**/*") == {"twisted/plugins/bakerygw_plugin.py"}


def test_the_version_is_the_packages_own(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("bakerygw", bakerygw.__version__)
    assert metadata["Requires-Python"] == ">=3.11"


def test_an_ordinary_wheel_is_pure(wheel: zipfile.ZipFile) -> None:
    assert str(wheel.filename).endswith("-py3-none-any.whl")


def setup_value(name: str) -> Any:
    """A constant of setup.py."""
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    (found,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
    )
    return ast.literal_eval(found)


def named_compiled() -> set[str]:
    """The sources that the patterns of setup.py name."""
    return set().union(*(sources(f"bakerygw/{pattern}") for pattern in setup_value("COMPILED")))


@pytest.mark.parametrize("pattern", setup_value("COMPILED"))
def test_each_pattern_of_what_is_compiled_names_something(pattern: str) -> None:
    assert sources(f"bakerygw/{pattern}")


@pytest.mark.parametrize("name", sorted(setup_value("NOT_COMPILED") | setup_value("OFF_THE_PATH")))
def test_what_is_left_out_of_the_compiled_modules_would_be_among_them(name: str) -> None:
    assert f"bakerygw/{name}" in named_compiled()


def test_the_module_that_tells_whether_a_build_is_compiled_would_be() -> None:
    assert "bakerygw/edge/gateway.py" in named_compiled()
    assert "edge/gateway.py" not in setup_value("NOT_COMPILED") | setup_value("OFF_THE_PATH")
    assert bakerygw.is_compiled() == (not str(gateway.__file__).endswith(".py"))


@pytest.mark.parametrize(
    ("command", "told"),
    [("build_ext", "needs what is not here: the C compiler /nowhere/cc"), ("editable_wheel", "without --editable")],
)
def test_a_compiled_build_that_cannot_be_says_why(command: str, told: str) -> None:
    environment = {"PATH": os.environ["PATH"], "BAKERYGW_COMPILE": "1", "CC": "/nowhere/cc -pthread"}

    done = subprocess.run(
        [sys.executable, "setup.py", command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 1
    assert told in done.stderr


def test_the_console_script_is_declared(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(packed_text(wheel, "entry_points.txt"))

    assert dict(entry_points["console_scripts"]) == {"bakerygw": "bakerygw.cli:main"}


@pytest.mark.parametrize(
    "floor",
    [
        "twisted[tls]>=26.10",
        "autobahn>=26.7.1",
        "txredisapi>=1.6",
        "pyjwt[crypto]>=2.13",
        "cryptography>=50",
        "pyopenssl>=26",
    ],
)
def test_dependencies_have_floors_above_known_advisories(metadata: Message, floor: str) -> None:
    assert floor in metadata.get_all("Requires-Dist", [])


def test_every_dependency_has_a_floor(metadata: Message) -> None:
    required = [line.split(";")[0] for line in metadata.get_all("Requires-Dist", [])]

    assert [line for line in required if not re.search(r">=\d", line)] == []


@pytest.mark.parametrize("extra", ["test", "lint", "types", "bench", "load"])
def test_an_extra_is_offered(metadata: Message, extra: str) -> None:
    assert extra in metadata.get_all("Provides-Extra", [])


def test_twistd_finds_the_command_from_another_folder(tmp_path: Path) -> None:
    twistd = Path(sys.executable).with_name("twistd")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}

    shown = subprocess.run(
        [twistd, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert re.search(r"^ +bakerygw +The API gateway", shown.stdout, re.MULTILINE), shown.stdout + shown.stderr


def make(folder: Path, *args: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run the Makefile's targets with nothing but `path` to find programs on."""
    command = [shutil.which("make") or "make", "-f", str(REPOSITORY / "Makefile"), *args]
    return subprocess.run(
        command, cwd=folder, env={"PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with what the Makefile's targets depend on, and a `bin` with the tools of a machine without Python."""
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "echo", "touch", "sed", "rm"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).write_text("")
    return tmp_path


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_make_demo_says_so_when_there_is_no_fitting_python(bare: Path) -> None:
    executable(bare / "bin" / "python3.13", "exit 127")  # a shim of a version that is not activated

    done = make(bare, "demo", path=str(bare / "bin"))

    assert done.returncode == 2
    assert "bakerygw needs Python 3.11 or newer" in done.stderr


def test_make_demo_installs_once_and_starts_the_demo_each_time(bare: Path) -> None:
    executable(bare / "bin" / "python3.13", "exit 127")
    executable(
        bare / "bin" / "python3",
        'if [ "$2" = venv ]; then /bin/mkdir -p .venv/bin; /bin/cp bin/python3 .venv/bin/python; fi; echo "python: $*"',
    )
    (bare / ".venv" / "bin").mkdir(parents=True)
    executable(bare / ".venv" / "bin" / "twistd", 'echo "twistd: $*"')

    first, second = (make(bare, "demo", path=str(bare / "bin")) for _ in range(2))

    assert "-m pip install" in first.stdout, first.stderr
    assert first.stdout.splitlines()[-1] == "twistd: -n --pidfile= bakerygw --demo"
    assert second.stdout.splitlines() == ["twistd: -n --pidfile= bakerygw --demo"]


def test_make_compiled_builds_anew_when_a_source_has_changed(bare: Path) -> None:
    copied = "/bin/mkdir -p .venv-compiled/bin; /bin/cp bin/python3 .venv-compiled/bin/python"
    executable(
        bare / "bin" / "python3", f'if [ "$2" = venv ]; then {copied}; fi; echo "python: [$BAKERYGW_COMPILE] $*"'
    )
    source = bare / "bakerygw" / "edge" / "gateway.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    installing = "python: [1] -m pip install --quiet --disable-pip-version-check ."

    first, second = (make(bare, "compiled", path=str(bare / "bin")) for _ in range(2))
    os.utime(source, (time.time() + 60, time.time() + 60))
    third = make(bare, "compiled", path=str(bare / "bin"))

    assert [installing in done.stdout.splitlines() for done in (first, second, third)] == [True, False, True], third
