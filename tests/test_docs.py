"""The documentation against the code: what a page lists must be all that there is, and true."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.config.limits import FilePolicy
from bakerygw.config.routes import KNOWN_SERVICES, _FileRoute, load_routes, load_routes_file
from bakerygw.config.settings import Settings
from bakerygw.core.claims import Claims, Subscription
from bakerygw.core.cors import ALLOWED_HEADERS, EXPOSED, CorsPolicy
from bakerygw.core.http import Pairs
from bakerygw.core.limits import LimitRule
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import PROBLEMS, Refused
from bakerygw.core.routing import Route, Router
from bakerygw.core.tenancy import TenantView
from bakerygw.edge.admission import Grant
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.lifecycle import NEEDS_RESTART
from bakerygw.ports import UpstreamFailed
from bakerygw.telemetry.metrics import Metrics
from tests.admin.admin_fakes import Admin
from tests.deferreds import failure_of
from tests.heads import make_head

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

NOT_VARIABLES = {"services", "demo_services", "routes", "limit_policies", "demo"}
"""Fields that are made from others."""
VARIABLES = sorted(name for name in Settings.model_fields if name not in NOT_VARIABLES)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row; the first cell without its backticks."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            first, *others = (cell.strip() for cell in line.strip("|").split(" | "))
            yield [first.strip("| `"), *(cell.strip("| ") for cell in others)]


def shown_default(value: object) -> str:
    if value is None or value == ():
        return "–"  # noqa: RUF001  as the tables write "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings, code blocks left out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", VARIABLES)
def test_every_setting_is_documented_with_its_default_and_when_it_takes_effect(name: str) -> None:
    found = [cells for cells in rows(page("docs/operators.md")) if cells[0] == name.upper()]

    assert len(found) == 1
    assert found[0][1] == shown_default(Settings.model_fields[name].default)
    assert found[0][-1] == ("restart" if NEEDS_RESTART.fullmatch(name) else "reload")


@pytest.mark.parametrize("name", VARIABLES)
def test_every_setting_is_in_both_example_files(name: str) -> None:
    assert re.search(rf"^#?{name.upper()}=", page("etc/bakerygw.env.example"), re.MULTILINE)
    assert re.search(rf"^#?{name} = ", page("etc/bakerygw.toml.example"), re.MULTILINE)


def test_every_variable_of_the_examples_is_a_setting() -> None:
    names = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", page("etc/bakerygw.env.example"), re.MULTILINE)

    assert {name.lower() for name in names if not name.endswith("_SERVICE_URL")} == set(VARIABLES)


@pytest.mark.parametrize("service", KNOWN_SERVICES)
def test_every_known_service_is_named(service: str) -> None:
    assert re.search(rf"\b{service.upper()}\b", page("docs/operators.md"))
    assert f"{service.upper()}_SERVICE_URL=" in page("etc/bakerygw.env.example")


def test_every_key_of_a_routes_file_is_documented() -> None:
    documented = {cells[0] for cells in rows(page("docs/operators.md"))}

    assert set(_FileRoute.model_fields) <= documented
    for name in _FileRoute.model_fields:
        assert re.search(rf"^#   {name} ", page("etc/routes.toml.example"), re.MULTILINE)


def test_every_key_of_a_stacked_limit_is_documented() -> None:
    section = page("docs/operators.md").partition("\n### Limits upon limits\n")[2].partition("\n## ")[0]

    assert {cells[0] for cells in rows(section)} >= set(FilePolicy.model_fields)
    for name in FilePolicy.model_fields:
        assert re.search(rf"^#   {name} ", page("etc/routes.toml.example"), re.MULTILINE)


@pytest.mark.parametrize("source", ["docs/operators.md", "etc/routes.toml.example"])
def test_the_examples_of_a_routes_file_are_accepted(source: str, tmp_path: Path) -> None:
    text = page(source)
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if source.endswith(".md") else [text]
    file = tmp_path / "routes.toml"
    file.write_text("\n".join(blocks), encoding="utf-8")

    assert load_routes(str(file), ())
    assert load_routes_file(str(file), ())[1]


def test_every_problem_code_is_in_the_clients_table_with_its_status() -> None:
    table = {cells[0]: cells[1] for cells in rows(page("docs/clients.md")) if len(cells) == 4}
    documented = {code: status for code, status in table.items() if status.isdigit()}

    assert documented == {code: str(status) for code, (status, _) in PROBLEMS.items()}


def test_every_problem_code_is_in_the_picture_of_a_requests_way() -> None:
    picture = page("docs/img/request.svg")
    drawn = {code for code in PROBLEMS if re.search(rf"(?<![a-z-]){code}(?![a-z-])", picture)}

    assert drawn == set(PROBLEMS)


def test_every_metric_is_documented_and_no_other() -> None:
    exposition = Metrics(CollectorRegistry()).exposition()[0].decode()
    exposed = set(re.findall(r"^# TYPE (gateway_\w+) ", exposition, re.MULTILINE))
    documented = set(re.findall(r"\bgateway_[a-z_]+", page("docs/operators.md")))

    assert exposed
    assert documented == exposed


def test_every_admin_call_is_documented_and_no_other() -> None:
    calls = json.loads(Admin().call("GET", b"/").body)["calls"]
    there = {f"{call['method']} {call['path']}" for call in calls}
    section = page("docs/operators.md").partition("\n## The admin port\n")[2].partition("\n## ")[0]
    documented = {cells[0] for cells in rows(section) if re.match(r"(GET|PUT|POST|DELETE) /", cells[0])}

    assert documented == there


class _Recorder:
    """Services that remember the header fields of the last request and answer none."""

    def __init__(self) -> None:
        self.headers: Pairs = ()

    def has(self, service: str) -> bool:
        return True

    async def request(self, service, request):
        self.headers = request.headers
        raise UpstreamFailed("upstream-unreachable", "connection_refused", "recorded")


def sent_to_service() -> set[str]:
    """The names of all fields that the gateway itself adds, from a request of a demo session that brings none."""
    subscription = Subscription(tier="starter", status="active", valid_until=None)
    claims = Claims(
        user_id="u", email="u@x.example", tenant_id="t", role="owner", subscription=subscription, tenant_access=(),
        exp=2.0, iat=1.0, nbf=None, is_demo=True, demo_session_id="d", jti=None,
    )  # fmt: skip
    view = TenantView(tenant_id="t", role="owner", subscription=subscription, own=True)
    services = _Recorder()
    limit = LimitRule(name="default", requests=1, window_s=1)
    policies = Policies(
        router=Router(()), cors=CorsPolicy(origins=frozenset()), credentials={}, upstreams=services,
        general_limit=limit, auth_limit=limit, grace_days=7, max_body_bytes=1,
    )  # fmt: skip
    sending = Proxy(Clock()).send(
        make_head(target=b"/api/v1/sales", headers=[(b"Host", b"gw.example")]),
        b"",
        route=Route(prefix="/api/v1/sales", template="/api/v1/sales/**", kind="proxy", service="sales"),
        grant=Grant(claims=claims, view=view),
        policies=policies,
        trace=Trace(request_id="request-1", started=0.0, traceparent=b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"),
    )
    failure_of(Deferred.fromCoroutine(sending), Refused)
    return {name.decode() for name, _ in services.headers} - {"Host"}


def test_every_header_that_a_service_gets_is_documented() -> None:
    sent = sent_to_service()
    documented = {cells[0] for cells in rows(page("docs/services.md"))}

    assert len(sent) > 10
    assert sent <= documented


def test_what_scripts_of_other_origins_may_send_and_read_is_documented() -> None:
    text = page("docs/clients.md")

    assert ALLOWED_HEADERS.decode() in text
    assert not [name for name in EXPOSED.decode().split(", ") if name not in text]


PACKAGES = sorted(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "bakerygw").glob("*/**/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_in_the_maintainers_table(package: str) -> None:
    table = page("docs/architecture.md").partition("\n## Files\n")[2].partition("\n## ")[0]

    assert package in {cells[0] for cells in rows(table)}


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.count("/") == 1])
def test_every_part_of_the_package_is_in_the_readme(package: str) -> None:
    where = page("README.md").partition("\n## Where things are\n")[2].partition("\n## ")[0]

    assert f"`{package.removeprefix('bakerygw/')}`" in where.replace("bakerygw/", "")


def test_the_maintainers_table_names_every_module_of_a_package_that_it_tells_the_modules_of() -> None:
    table = page("docs/architecture.md").partition("\n## Files\n")[2].partition("\n## ")[0]
    told = {cells[0]: set(re.findall(r"`(\w+)`", cells[2])) for cells in rows(table)}
    there = {name: {path.stem for path in (ROOT / name).glob("*.py")} - {"__init__"} for name in PACKAGES}

    assert {name: names ^ told[name] for name, names in there.items() if told[name] and names != told[name]} == {}


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (source.parent / path).resolve() if path else source
        if not file.is_file() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("picture", sorted((DOCS / "img").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_narrow_enough_and_serve_light_and_dark(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    width = re.search(r'<svg[^>]* width="(\d+)"', text)

    assert width is not None
    assert int(width[1]) <= 900
    assert "prefers-color-scheme: dark" in text
    assert "<title" in text
