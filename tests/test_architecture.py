"""The import rules and house sizes of the package, checked on its source; and the check, on bad source."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "bakerygw"

ADAPTERS = frozenset({"stores", "tokens", "upstream", "telemetry"})
BELOW_SERVICE = ADAPTERS | {"admin", "config", "core", "demo", "edge", "lifecycle", "ports", "realtime", "runtime"}

# Part of the package -> the parts that it may import besides itself and the bare `bakerygw` (the version).
MAY_IMPORT: dict[str, frozenset[str]] = {
    "bakerygw": frozenset(),
    "core": frozenset(),
    "ports": frozenset({"core"}),
    "runtime": frozenset({"core"}),
    "config": frozenset({"core"}),
    "demo": frozenset({"core"}),
    **dict.fromkeys(ADAPTERS, frozenset({"ports", "core", "runtime"})),
    "edge": frozenset({"ports", "core", "runtime"}),
    "realtime": frozenset({"edge", "ports", "core", "runtime"}),
    "admin": frozenset({"edge", "ports", "core", "runtime"}),
    "house": frozenset({"config", "core", "edge"}),
    "demo_settings": frozenset({"config", "demo"}),
    "lifecycle": BELOW_SERVICE - {"lifecycle"} | {"demo_settings", "house"},
    "state": frozenset({"config", "ports", "stores", "upstream"}),
    "auditing": frozenset({"config", "core", "ports", "state", "stores", "telemetry"}),
    "signing": frozenset({"config", "ports", "state", "tokens", "upstream"}),
    "handlers": BELOW_SERVICE | {"state"},
    "sessions": frozenset({"config", "core", "edge", "ports", "state", "tokens"}),
    "streaming": BELOW_SERVICE | {"state"},
    "edition": BELOW_SERVICE | {"sessions", "signing", "state"},
    "service": BELOW_SERVICE | {"auditing", "edition", "handlers", "state", "streaming"},
    "tap": BELOW_SERVICE | {"cli", "service"},
    "cli": BELOW_SERVICE | {"audit_cli", "service"},
    "audit_cli": frozenset({"auditing", "config", "core", "ports", "stores", "telemetry"}),
}

STANDARD_LIBRARY_ONLY = frozenset({"core", "ports"})
# Clocks, chance, logging and the outside: what would make a decision depend on more than its arguments.
IMPURE = frozenset({"asyncio", "logging", "os", "random", "secrets", "socket", "subprocess", "threading", "time"})

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60


def imports_of(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, whether it runs when the module is imported) of every import in `tree`.

    `from a import b` counts as `a.b`, whichever kind of thing `b` is.
    """

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                source = absolute(child, module, is_package=is_package)
                yield from ((f"{source}.{alias.name}", child.lineno, at_import) for alias in child.names)
            else:
                in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_import and not in_function and not only_for_types(child))

    yield from walk(tree, True)


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The dotted name of the module that a `from … import` names, relative ones resolved."""
    if node.level == 0:
        return node.module or ""
    parents = module.split(".")[: None if is_package and node.level == 1 else (is_package - node.level)]
    return ".".join([*parents, node.module] if node.module else parents)


def only_for_types(node: ast.AST) -> bool:
    """Whether this is an `if TYPE_CHECKING:` block."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def part_of(module: str) -> str:
    """`bakerygw.stores.redis` -> `stores`; the package itself is its own part."""
    names = module.split(".")
    return names[1] if len(names) > 1 else names[0]


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def import_violation(module: str, name: str, at_import: bool) -> str | None:
    """Why `module` may not import `name`, or `None`."""
    part, top = part_of(module), name.split(".", maxsplit=1)[0]
    if top == "bakerygw":
        # What is no part is a name of the package itself, such as its version.
        target = part_of(name) if part_of(name) in MAY_IMPORT else part
        allowed = target in {"bakerygw", part} or target in MAY_IMPORT[part]
        return None if allowed else f"{part} may not import {target}"
    if part in STANDARD_LIBRARY_ONLY and top not in sys.stdlib_module_names:
        return f"{part} may import the standard library only, not {top}"
    if part == "core" and top in IMPURE:
        return f"core is pure and may not import {top}"
    if is_within(name, "twisted.internet.reactor") and module != "bakerygw.tap":
        return "only bakerygw.tap may import the global reactor"
    if top == "txredisapi" and (module != "bakerygw.stores.redis_protocol" or at_import):
        return (
            "txredisapi brings the global reactor: only bakerygw.stores.redis_protocol may import it, inside a function"
        )
    return None


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its decorators and docstring left out."""
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    told = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - told


def is_bare_logger(node: ast.AST) -> bool:
    """Whether this is a class that keeps a `Logger` as anything but a `ClassVar`.

    Compiled, it would be an attribute of each instance, and its events would not say where they come from.
    """
    return isinstance(node, ast.ClassDef) and any(
        isinstance(item, ast.Assign) and ast.unparse(item.value).startswith("Logger(") for item in node.body
    )


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Every broken rule in one module's source, each with its line."""
    if part_of(module) not in MAY_IMPORT:
        return [f"{module}: an unknown part of the package; say in MAY_IMPORT what it may import"]
    tree = ast.parse(source)
    found = [
        f"{module}:{line}: {why}"
        for name, line, at_import in imports_of(tree, module, is_package=is_package)
        if (why := import_violation(module, name, at_import))
    ]
    if (lines := len(source.splitlines())) > MAX_MODULE_LINES:
        found.append(f"{module}: {lines} lines, at most {MAX_MODULE_LINES}")
    bare = (node.lineno for node in ast.walk(tree) if is_bare_logger(node))
    found.extend(f"{module}:{line}: a class's Logger is a ClassVar" for line in bare)
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    found.extend(
        f"{module}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for node in functions
        if (lines := function_lines(node)) > MAX_FUNCTION_LINES
    )
    return found


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    names = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_module_keeps_the_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")

    assert violations(module_name(path), source, is_package=path.name == "__init__.py") == []


def folder_of(module: str) -> str | None:
    """`bakerygw.edge.pages.health` -> `edge.pages`; what lies directly in a part is in none of its folders."""
    names = module.split(".")
    return ".".join(names[1:3]) if len(names) > 3 else None


def circle(sources: Iterable[tuple[str, str]]) -> list[str]:
    """Folders, each of which imports the one before it, and the first the last; empty if there is no such circle.

    `sources` are names of modules, none of them a package's own, with their text.
    """
    below: defaultdict[str, set[str]] = defaultdict(set)
    for module, source in sources:
        if folder := folder_of(module):
            names = (name for name, _, _ in imports_of(ast.parse(source), module, is_package=False))
            below[folder] |= {it for name in names if (it := folder_of(name))} - {folder}
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_folders_do_not_import_each_other_in_circles() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]

    assert circle((module_name(path), path.read_text(encoding="utf-8")) for path in modules) == []


def test_a_circle_of_folders_is_found() -> None:
    layers = [
        ("bakerygw.edge.gateway", "from bakerygw.edge.limits.crowd import Crowd"),
        ("bakerygw.edge.limits.crowd", "from bakerygw.edge.gateway import Gateway"),
        ("bakerygw.edge.limits.page", "from ..pages.common import json_reply\nfrom .crowd import Crowd"),
    ]

    assert circle(layers) == []
    assert circle([*layers, ("bakerygw.edge.pages.common", "from bakerygw.edge.limits import crowd")]) != []


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}

    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_folder_of_plugins_is_no_package() -> None:
    """An `__init__.py` there would hide Twisted itself."""
    assert list((PACKAGE.parent / "twisted").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("bakerygw.core.limits", "import orjson", "standard library only"),
        ("bakerygw.core.limits", "from twisted.internet import defer", "standard library only"),
        ("bakerygw.core.limits", "import time", "pure"),
        ("bakerygw.core.limits", "def f():\n    from random import random", "pure"),
        ("bakerygw.core.limits", "from bakerygw.ports import Credentials", "core may not import ports"),
        ("bakerygw.core.limits", "from bakerygw import ports", "core may not import ports"),
        ("bakerygw.core.limits", "from ..ports import Credentials", "core may not import ports"),
        ("bakerygw.ports", "from bakerygw.edge.site import Site", "ports may not import edge"),
        ("bakerygw.ports", "import pydantic", "standard library only"),
        ("bakerygw.config.settings", "from bakerygw.ports import Credentials", "config may not import ports"),
        ("bakerygw.stores.redis", "import bakerygw.telemetry.metrics", "stores may not import telemetry"),
        ("bakerygw.stores.redis", "from ..tokens import keys", "stores may not import tokens"),
        ("bakerygw.tokens.keys", "from bakerygw.edge import site", "tokens may not import edge"),
        ("bakerygw.edge.proxy", "from bakerygw.upstream.pool import Pool", "edge may not import upstream"),
        ("bakerygw.edge.proxy", "if TYPE_CHECKING:\n    from bakerygw.admin import site", "edge may not import admin"),
        ("bakerygw.demo.auth", "from bakerygw.edge import site", "demo may not import edge"),
        ("bakerygw.lifecycle", "from bakerygw.service import build", "lifecycle may not import service"),
        ("bakerygw.service", "from bakerygw.tap import Options", "service may not import tap"),
        ("bakerygw.service", "from twisted.internet import reactor", "global reactor"),
        ("bakerygw.edge.site", "def f():\n    import twisted.internet.reactor", "global reactor"),
        ("bakerygw.stores.redis", "def f():\n    import txredisapi", "only bakerygw.stores.redis_protocol"),
        ("bakerygw.stores.redis_protocol", "import txredisapi", "inside a function"),
        ("bakerygw.stores.redis_protocol", "class Link:\n    from txredisapi import RedisFactory", "inside a function"),
        ("bakerygw.edge.site", "from bakerygw.state import make_state", "edge may not import state"),
        ("bakerygw.state", "from bakerygw.edge import site", "state may not import edge"),
        ("bakerygw.edge.site", "class Site:\n    _log = Logger()", "ClassVar"),
        ("bakerygw.helpers", "", "unknown part"),
        ("bakerygw.core.limits", "x = 1\n" * (MAX_MODULE_LINES + 1), "lines, at most"),
        ("bakerygw.core.limits", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES, "f has 61 lines"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str, why: str) -> None:
    found = violations(module, source)

    assert len(found) == 1
    assert why in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bakerygw.core.limits", "import json\nfrom bakerygw.core.http import Pairs\nfrom .http import Reply"),
        ("bakerygw.ports", "from bakerygw.core.claims import Claims"),
        ("bakerygw.stores.redis", "from bakerygw.ports import AdmissionStore\nfrom twisted.internet import defer"),
        ("bakerygw.stores.redis_protocol", "def f():\n    import txredisapi"),
        ("bakerygw.stores.redis_protocol", "if TYPE_CHECKING:\n    import txredisapi"),
        ("bakerygw.edge.pages.apidocs", "from bakerygw import __version__"),
        ("bakerygw.admin.site", "from bakerygw.edge.deliver import deliver"),
        ("bakerygw.service", "from bakerygw.demo import services\nfrom bakerygw.upstream.pool import Pool"),
        ("bakerygw.tap", "def f():\n    from twisted.internet import reactor"),
        ("bakerygw.core.limits", 'def f():\n    """Told.\n' + "\n" * MAX_FUNCTION_LINES + '    """\n    return 1'),
    ],
)
def test_a_kept_rule_is_let_pass(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_relative_imports_of_a_package_resolve_to_itself() -> None:
    assert (
        violations("bakerygw.stores", "from .memory import Store\nfrom ..ports import Credentials", is_package=True)
        == []
    )
    assert violations("bakerygw.stores", "from ..edge import site", is_package=True) != []
