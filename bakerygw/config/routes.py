"""The route table: what the gateway knows by itself, and what a routes file changes or adds."""

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bakerygw.config.limits import FileLimit, FilePolicy, limit_policies
from bakerygw.core.http import WRITING_METHODS
from bakerygw.core.limits import LimitRule
from bakerygw.core.routing import TENANTS, WILDCARD, Action, Route, Router, routes_by_prefix
from bakerygw.core.stacks import LimitPolicy

if TYPE_CHECKING:
    from bakerygw.config.settings import Settings

API: Final = "/api/v1"
KNOWN_SERVICES: Final = (
    "auth",
    "sales",
    "forecasting",
    "training",
    "inventory",
    "production",
    "recipes",
    "orders",
    "suppliers",
    "procurement",
    "pos",
    "external",
    "notification",
    "ai_insights",
    "orchestrator",
    "tenant",
)
_PLURAL: Final = {"notification": "notifications", "tenant": "tenants"}
"""Services whose path is not their name."""

_ACTIONS: Final[dict[str, Action]] = {"login": "login", "register": "login", "refresh": "refresh"}

READING: Final = frozenset({"GET", "HEAD"})

_PREFIX: Final = re.compile(r"(?:/(?:\.?[A-Za-z0-9_~-][A-Za-z0-9._~-]*|\{id\}))+")
_MAX_PREFIX: Final = 200
"""Characters; a prefix names a limit, and names of limits go into keys of the store."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` tells every reason, one line each, without any secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def service_prefix(service: str) -> str:
    """The path under which a service is reached, e.g. `/api/v1/ai-insights` for `ai_insights`."""
    return f"{API}/{_PLURAL.get(service, service).replace('_', '-')}"


def _exact(path: str, **policies: Any) -> Route:
    return Route(**{"prefix": path, "template": path, "kind": "proxy", "exact": True, **policies})


def _below(prefix: str, **policies: Any) -> Route:
    return Route(**{"prefix": prefix, "template": f"{prefix}/**", "kind": "proxy", **policies})


def _auth_routes() -> Iterator[Route]:
    exempt: dict[str, Any] = {"service": "auth", "subscription_exempt": True, "read_only_exempt": True}
    for public in ("login", "register", "refresh"):
        # Exact in path and method: what merely looks like a public path falls to the authenticated prefix.
        yield _exact(
            f"{API}/auth/{public}",
            methods=frozenset({"POST"}),
            auth=False,
            tenant=False,
            auth_limit=True,
            action=_ACTIONS.get(public),
            **exempt,
        )
    yield _below(f"{API}/auth", **exempt)
    yield _exact(f"{API}/auth/logout", action="logout", **exempt)
    yield _exact(f"{API}/auth/session", action="session", **exempt)


def _tenant_routes() -> Iterator[Route]:
    one = f"{TENANTS}/{WILDCARD}"
    yield _below(TENANTS, service="tenant")
    yield _exact(one, service="tenant", critical=frozenset({"DELETE"}))
    yield _below(
        f"{one}/subscription",
        service="tenant",
        critical=WRITING_METHODS,
        action="subscription",
        subscription_exempt=True,
        read_only_exempt=True,
    )


def _own_routes() -> Iterator[Route]:
    """What the gateway answers by itself."""
    post = frozenset({"POST"})
    public: dict[str, Any] = {"kind": "local", "auth": False, "tenant": False, "methods": READING}
    for path in ("/health", f"{API}/health"):
        yield _exact(path, unlimited=True, **public)
    yield _exact("/openapi.json", **public)
    yield _below("/docs", **public)
    yield _exact("/bakerygw.js", **public)
    yield _exact(f"{API}/alerts/stream", kind="stream", action="alerts", methods=frozenset({"GET"}))
    yield _exact(f"{API}/alerts/ticket", kind="local", action="ticket", methods=post, read_only_exempt=True)
    yield _exact(f"{API}/training/ws", kind="stream", service="training", action="training", methods=frozenset({"GET"}))
    yield _exact(f"{API}/geocode", kind="local", action="geocode", methods=post, read_only_exempt=True)
    yield _exact(f"{API}/limits", kind="local", action="limits", methods=READING)


def builtin_routes(services: Iterable[str] = ()) -> tuple[Route, ...]:
    """The table without a routes file: the gateway's own routes, the known services, and those named in `services`."""
    special = (*_own_routes(), *_auth_routes(), *_tenant_routes())
    plain = (name for name in dict.fromkeys((*KNOWN_SERVICES, *services)) if name not in {"auth", "tenant"})
    return (*special, *(_below(service_prefix(name), service=name) for name in plain))


def taken_prefix(service: str) -> bool:
    """Whether the path of a further service with this name already belongs to the gateway or to a known service."""
    return service not in KNOWN_SERVICES and service_prefix(service) in routes_by_prefix(builtin_routes())


Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _FileRoute(_Strict):
    prefix: str
    service: str | None = None
    auth: Literal["required", "public"] | None = None
    tenant: Literal["required", "none"] | None = None
    methods: Annotated[list[Method] | None, Field(min_length=1)] = None
    min_tier: Literal["starter", "professional", "enterprise"] | None = None
    critical: bool | None = None
    limit: FileLimit | None = None
    first_byte_timeout: Annotated[float | None, Field(gt=0, le=86_400, allow_inf_nan=False)] = None
    max_body: Annotated[int | None, Field(ge=0)] = None
    read_only_exempt: bool | None = None


class _File(_Strict):
    route: list[_FileRoute] = []
    limit: list[FilePolicy] = []


def load_routes(path: str, services: Collection[str]) -> tuple[Route, ...]:
    """The routes alone of a routes file, as `load_routes_file` reads it. Raises `ConfigError`."""
    return load_routes_file(path, services)[0]


def load_routes_file(path: str, services: Collection[str]) -> tuple[tuple[Route, ...], tuple[LimitPolicy, ...]]:
    """The routes of a routes file (TOML, one `[[route]]` each), complete, and its limits (one `[[limit]]` each).

    A key that an entry leaves out is as in the built-in route that covers its prefix. `services` are the
    names of the configured services beside the known ones. Raises `ConfigError` with every problem.
    """
    try:
        with open(path, "rb") as stream:
            file = _File.model_validate(tomllib.load(stream))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror or error}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"is not TOML: {error}"]) from None
    except ValidationError as error:
        raise ConfigError([_schema_problem(detail) for detail in error.errors()]) from None
    builtin = builtin_routes(services)
    problems, routes = [], []
    seen: set[str] = set()
    for index, entry in enumerate(file.route):
        where = f"route[{index}]"
        wrong = [*_prefix_problems(entry.prefix, builtin, seen)]
        seen.add(entry.prefix)
        route = None if wrong else _route(entry, builtin)
        if route is not None:
            wrong += _route_problems(route, entry, services)
            routes.append(route)
        problems += [f"{where}.{line}" for line in wrong]
    policies, wrong = limit_policies(file.limit, merge_routes(builtin, routes))
    problems += wrong
    if problems:
        raise ConfigError(problems)
    return tuple(routes), policies


def merge_routes(builtin: Iterable[Route], changes: Iterable[Route]) -> tuple[Route, ...]:
    """The built-in table with the file's routes: one of the same prefix is replaced, the others are added."""
    return tuple({**routes_by_prefix(builtin), **routes_by_prefix(changes)}.values())


def build_router(settings: "Settings") -> Router:
    """A router over the settings' whole route table."""
    return Router(settings.routes)


def _schema_problem(detail: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if detail["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: got {detail['input']!r:.80}; {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _prefix_problems(prefix: str, builtin: tuple[Route, ...], seen: set[str]) -> Iterator[str]:
    if len(prefix) > _MAX_PREFIX or _PREFIX.fullmatch(prefix) is None:
        yield (
            f"prefix: got {prefix!r:.80}; a path of whole segments of letters, digits and . _ ~ -, beginning with "
            f"a slash, without one at the end, at most {_MAX_PREFIX} characters"
        )
    elif WILDCARD in prefix.removeprefix(f"{TENANTS}/{WILDCARD}"):
        yield f"prefix: got {prefix!r}; {WILDCARD} may only follow {TENANTS}"
    elif prefix in seen:
        yield f"prefix: got {prefix!r}; an earlier entry has the same prefix"
    elif any(_shadows(prefix, route) for route in builtin if route.kind != "proxy"):
        yield f"prefix: got {prefix!r}; the gateway answers this path itself"


def _shadows(prefix: str, own: Route) -> bool:
    return prefix == own.prefix or (not own.exact and prefix.startswith(f"{own.prefix}/"))


def _covering(prefix: str, builtin: tuple[Route, ...]) -> Route | None:
    """The built-in route of the prefix itself, else the longest that holds below it."""
    table = routes_by_prefix(builtin)
    if prefix in table:
        return table[prefix]
    parent = prefix
    while parent := parent.rpartition("/")[0]:
        route = table.get(parent)
        if route is not None and not route.exact:
            return route
    return None


def _route(entry: _FileRoute, builtin: tuple[Route, ...]) -> Route:
    base = _covering(entry.prefix, builtin) or _below(entry.prefix)
    if base.prefix != entry.prefix:
        base = replace(base, prefix=entry.prefix, template=f"{entry.prefix}/**")
    auth = base.auth if entry.auth is None else entry.auth == "required"
    tenant = (base.tenant and auth) if entry.tenant is None else entry.tenant == "required"
    critical = base.critical if entry.critical is None else WRITING_METHODS if entry.critical else frozenset[str]()
    return replace(
        base,
        service=base.service if entry.service is None else entry.service,
        auth=auth,
        tenant=tenant,
        methods=base.methods if entry.methods is None else frozenset[str](entry.methods),
        min_tier=entry.min_tier,
        critical=critical,
        limit=_limit(entry),
        first_byte_timeout_s=entry.first_byte_timeout,
        max_body=entry.max_body,
        read_only_exempt=base.read_only_exempt if entry.read_only_exempt is None else entry.read_only_exempt,
    )


def _limit(entry: _FileRoute) -> LimitRule | None:
    return None if entry.limit is None else entry.limit.rule(entry.prefix)


def _route_problems(route: Route, entry: _FileRoute, services: Collection[str]) -> Iterator[str]:
    if route.service is None:
        yield "service: missing; no built-in route covers this prefix"
    elif route.service not in KNOWN_SERVICES and route.service not in services:
        known = ", ".join(sorted({*KNOWN_SERVICES, *services}))
        yield f"service: got {route.service!r:.80}; one of {known}"
    if route.tenant and not route.auth:
        yield 'tenant: got "required"; a public route knows no tenant'
    if not route.tenant and entry.min_tier is not None:
        yield f'min_tier: got "{entry.min_tier}"; needs auth and tenant "required"'
    if not route.tenant and route.critical:
        yield 'critical: holds here; needs auth and tenant "required"'
