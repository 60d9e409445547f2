"""The gateway's settings: environment and TOML file in, one frozen value or every error at once out."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bakerygw.config.checks import findings
from bakerygw.config.draft import Draft
from bakerygw.config.routes import (
    KNOWN_SERVICES,
    ConfigError,
    builtin_routes,
    load_routes_file,
    merge_routes,
    taken_prefix,
)
from bakerygw.config.secrecy import masked
from bakerygw.config.surroundings import surrounding_findings
from bakerygw.config.values import (
    ALGORITHMS,
    Algorithm,
    Amount,
    Bool,
    Count,
    Endpoint,
    Grace,
    Host,
    HostNames,
    KeySetUrl,
    Networks,
    Origins,
    Path,
    Pem,
    Port,
    Rate,
    Seconds,
    Secret,
    SessionSecrets,
    Text,
    Token,
    Url,
    Window,
    as_text,
    base_urls,
    description_of,
    public_pem,
)
from bakerygw.core.routing import Route
from bakerygw.core.stacks import LimitPolicy

__all__ = ["ALGORITHMS", "ConfigError", "Settings", "load_settings", "masked"]

_SERVICE_URL: Final = re.compile(r"([A-Z][A-Z0-9_]*)_SERVICE_URL")
_NOT_VARIABLES: Final = frozenset({"services", "demo_services", "routes", "limit_policies", "demo"})
_FILES: Final = ("redis_ca_file", "upstream_ca_file", "jwt_public_key_file")


ServiceUrls = Mapping[str, tuple[str, ...]]


class Settings(BaseSettings):
    """What an operator decides. Each field is the variable of the same name in capitals; made by `load_settings`.

    Fields without a unit in their name are in seconds where they are `float`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", enable_decoding=False, hide_input_in_errors=True)

    port: Port = 8000
    host: Host = "0.0.0.0"  # noqa: S104 - the public listener is public
    admin_port: Port = 9000
    admin_host: Host = "127.0.0.1"
    listen: Endpoint | None = None
    """Instead of `host` and `port`."""
    admin_listen: Endpoint | None = None
    admin_token: Token | None = None
    admin_hosts: HostNames = ("localhost", "127.0.0.1", "[::1]")
    environment: Literal["dev", "staging", "prod"] = "dev"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    structlog_pretty_print: Bool = False
    log_anonymize: Bool = False
    audit_days: Annotated[int, Field(ge=1, le=3650, description="whole days from 1 to 3650")] = 365
    audit_file: Text | None = None
    """`None`: `bakerygw-audit.jsonl` in `$XDG_STATE_HOME`, else in the working directory; unused with Redis."""

    routes_file: Path | None = None
    redis_host: Text | None = None
    """`None`: the embedded store."""
    redis_port: Annotated[int, Field(ge=1, le=65535, description="a port: 1 to 65535")] = 6379
    redis_db: Amount = 0
    redis_username: Text | None = None
    redis_password: Secret | None = None
    redis_tls: Bool = False
    redis_ca_file: Path | None = None
    redis_timeout_ms: Annotated[int, Field(ge=1, le=60_000, description="milliseconds: 1 to 60000")] = 50

    jwt_public_key: Pem | None = None
    """The PEM text, whether it was given itself or by `jwt_public_key_file`; `None` only with a URL or `demo`."""
    jwt_public_key_file: Path | None = None
    jwt_jwks_url: KeySetUrl | None = None
    jwt_algorithm: Annotated[
        Algorithm, Field(description=f"one of {', '.join(ALGORITHMS)}; HMAC needs a shared secret and is refused")
    ] = "RS256"
    jwt_issuer: Text = "bakery-auth"
    jwt_audience: Text | None = None
    jwt_leeway_seconds: Annotated[int, Field(ge=0, le=300, description="whole seconds from 0 to 300")] = 10
    token_cache_ttl_seconds: Window = 900
    token_cache_shared: Bool = False
    token_cache_secret: Secret | None = None
    api_key_secret: Secret | None = None
    """What records of API keys are sealed with, besides the keys themselves."""

    session_cookies: Bool = False
    session_secret: SessionSecrets | None = None

    rate_limit_requests: Count = 300
    rate_limit_window_seconds: Window = 60
    rate_limit_on_store_failure: Literal["local", "open", "closed"] = "local"
    auth_rate_limit_requests: Count = 20
    max_connections: Count | None = None
    """`None`: what the limit of open files allows, less a reserve for the admin port."""
    max_connections_per_client: Count = 2000
    max_request_body_bytes: Count = 10_485_760
    tenant_max_concurrent: Count = 100
    subscription_grace_days: Amount = 7

    cors_origins: Origins = ()
    cors_allow_credentials: Bool = True
    trusted_proxies: Networks = ()

    upstream_connect_timeout: Seconds = 2.0
    upstream_first_byte_timeout: Seconds = 15.0
    upstream_idle_timeout: Seconds = 30.0
    upstream_keepalive_seconds: Seconds = 4.0
    upstream_ca_file: Annotated[Path | None, BeforeValidator(lambda value: None if value == "system" else value)] = None
    """`None`: the system's."""
    health_check_interval: Seconds = 10.0
    health_cache_ttl_seconds: Seconds = 30.0
    nominatim_url: Url = "https://nominatim.openstreetmap.org"
    nominatim_user_agent: Text | None = None

    sse_heartbeat_seconds: Seconds = 15.0
    sse_history_events: Count = 1000
    sse_history_seconds: Count = 86_400
    sse_max_per_user: Count = 5
    sse_max_per_tenant: Count = 200
    sse_max_streams: Count = 20_000
    """Of the whole instance."""
    sse_new_per_second: Count = 200
    ws_max_per_user: Count = 5
    ws_max_per_tenant: Count = 200
    ws_max_sockets: Count = 2000
    """Of the whole instance."""
    ws_frames_per_second: Rate = 1000
    """Of each client; 0: any number."""
    publish_token: Token | None = None
    """Opens the admin port's call that publishes alerts, and nothing else."""
    drain_grace_seconds: Grace = 5.0
    drain_timeout_seconds: Grace = 30.0

    services: Annotated[ServiceUrls, AfterValidator(MappingProxyType)] = MappingProxyType({})
    """Base URLs by service name in lower case, e.g. `ai_insights`; those of `<NAME>_SERVICE_URL`."""
    demo_services: Annotated[ServiceUrls, AfterValidator(MappingProxyType)] = MappingProxyType({})
    """The same for demo sessions; those of `DEMO_<NAME>_SERVICE_URL`."""
    routes: tuple[Route, ...] = ()
    """The whole route table."""
    limit_policies: tuple[LimitPolicy, ...] = ()
    """The limits that the routes file stacks upon the general one."""
    demo: bool = False
    """Started with `--demo`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but the values given: `load_settings` reads the sources, so that no process environment leaks in."""
        return (init_settings,)


def _is_service(variable: str) -> bool:
    return variable.endswith("_SERVICE_URL") and variable.isupper()


class _Environ(PydanticBaseSettingsSource):
    """Variables in capitals, from the mapping given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self._environ = environ

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._environ.get(field_name.upper()), field_name, False

    def __call__(self) -> dict[str, Any]:
        fields = Settings.model_fields.items()
        own = {name: self.get_field_value(field, name)[0] for name, field in fields if name not in _NOT_VARIABLES}
        services = {name.lower(): value for name, value in self._environ.items() if _is_service(name)}
        return {name: value for name, value in {**own, **services}.items() if value is not None}


def load_settings(environ: Mapping[str, str], config_file: str | None = None, *, demo: bool = False) -> Settings:
    """The settings of an environment over a TOML file, checked as a whole.

    Raises `ConfigError` that lists every problem. An empty value counts as not given.
    """
    draft = Draft(given={}, values={"demo": demo}, problems=[], bad=set())
    readable = config_file is None or _take_file(draft, config_file)
    draft.given |= {name: value for name, value in _Environ(environ)().items() if value.strip()}
    draft.values |= {name: value for name, value in draft.given.items() if not name.endswith("_service_url")}
    if demo:
        draft.values.setdefault("host", "127.0.0.1")
    _take_services(draft)
    _take_files(draft)
    settings = _validated(draft)
    if readable:
        _cross_check(draft, settings, environ)
    routes, policies = _routes(draft, settings)
    if draft.problems:
        raise ConfigError(draft.problems)
    return settings.model_copy(update={"routes": routes, "limit_policies": policies})


def _take_file(draft: Draft, path: str) -> bool:
    """Read the TOML file into the draft; whether it could be read."""
    try:
        with open(path, "rb"):
            data = TomlConfigSettingsSource(Settings, path).toml_data
    except OSError as error:
        draft.problems.append(f"{path}: cannot be read: {error.strerror or error}")
        return False
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        draft.problems.append(f"{path}: is not TOML: {error}")
        return False
    known = Settings.model_fields.keys() - _NOT_VARIABLES
    for name, value in data.items():
        text = as_text(value)
        if name not in known and not (name.islower() and _is_service(name.upper())):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            draft.problems.append(f"{path}: unknown key {name!r}{hint}")
        elif text is None:
            draft.bad.add(name)
            draft.problems.append(f"{path}: {name}: got a {type(value).__name__}; a string, number, boolean or list")
        elif text.strip():
            draft.given[name] = text
    return True


def _take_services(draft: Draft) -> None:
    services: dict[str, tuple[str, ...]] = {}
    demo_services: dict[str, tuple[str, ...]] = {}
    given = {name: value for name, value in draft.given.items() if name.endswith("_service_url")}
    plain = {name.removesuffix("_service_url") for name in given} | set(KNOWN_SERVICES)
    for name, value in given.items():
        service = name.removesuffix("_service_url")
        is_demo = service.startswith("demo_")
        target = service.removeprefix("demo_")
        if _SERVICE_URL.fullmatch(name.upper()) is None:
            draft.wrong(name, "the name before _SERVICE_URL is letters, digits and _, and begins with a letter")
        elif is_demo and target not in plain:
            draft.wrong(name, f"a demo URL needs {target.upper()}_SERVICE_URL beside it, or a known service's name")
        elif taken_prefix(target):
            draft.wrong(name, "the path of a service with this name belongs to the gateway or a known service")
        else:
            urls = base_urls(value)
            (demo_services if is_demo else services)[target] = urls
            if not urls:
                draft.wrong(name, "one or more http(s)://host[:port], comma separated, without path, query or user")
    draft.values |= {"services": services, "demo_services": demo_services}


def _take_files(draft: Draft) -> None:
    """Check that the files named can be read, and take the key's text from its file."""
    for name in _FILES:
        path = draft.values.get(name)
        if path is None or (name == "upstream_ca_file" and path == "system"):
            continue
        try:
            with open(path, encoding="ascii", errors="replace") as stream:
                text = stream.read()
        except OSError as error:
            draft.wrong(name, f"cannot be read: {error.strerror or error}")
            continue
        if name != "jwt_public_key_file":
            continue
        if "jwt_public_key" in draft.values:
            draft.wrong(name, "JWT_PUBLIC_KEY is given too; one of the two")
            continue
        try:
            draft.values["jwt_public_key"] = public_pem(text)
        except ValueError:
            draft.wrong(name, "the file must hold a public key in PEM")
    if "jwt_public_key_file" in draft.bad:
        draft.bad.add("jwt_public_key")


def _validated(draft: Draft) -> Settings:
    """The settings, with defaults where a value is wrong, so that the other checks can go on."""
    values = {name: value for name, value in draft.values.items() if name not in draft.bad}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        for name in dict.fromkeys(str(detail["loc"][0]) for detail in error.errors()):
            draft.wrong(name, f"allowed: {description_of(Settings.model_fields[name])}")
    return Settings.model_validate({name: value for name, value in values.items() if name not in draft.bad})


def _routes(draft: Draft, settings: Settings) -> tuple[tuple[Route, ...], tuple[LimitPolicy, ...]]:
    builtin = builtin_routes(settings.services)
    if settings.routes_file is None:
        return builtin, ()
    try:
        changes, policies = load_routes_file(settings.routes_file, settings.services)
        return merge_routes(builtin, changes), policies
    except ConfigError as error:
        draft.problems += [f"ROUTES_FILE: {settings.routes_file}: {problem}" for problem in error.problems]
    return builtin, ()


def _cross_check(draft: Draft, settings: Settings, environ: Mapping[str, str]) -> None:
    """Note what is wrong between fields or on this machine, unless one of them is known to be wrong by itself."""
    wrong_before = frozenset(draft.bad)
    if environ.get("XDG_RUNTIME_DIR"):
        draft.given["xdg_runtime_dir"] = environ["XDG_RUNTIME_DIR"]
    for names, allowed in (*findings(settings), *surrounding_findings(settings, environ)):
        if wrong_before.isdisjoint(names):
            draft.wrong(names[0], allowed)
