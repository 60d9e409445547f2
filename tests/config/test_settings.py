"""The environment and the TOML file into settings, and every mistake in them at once."""

import json
import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bakerygw.config.settings import ConfigError, Settings, load_settings, masked
from bakerygw.config.values import session_secrets

ETC = Path(__file__).parents[2] / "etc"


def pem(private: object) -> str:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


RSA = pem(rsa.generate_private_key(65537, 2048))
SMALL_RSA = pem(rsa.generate_private_key(65537, 1024))  # noqa: S505 - too small on purpose
KEYS = {
    "RS256": RSA,
    "PS512": RSA,
    "ES256": pem(ec.generate_private_key(ec.SECP256R1())),
    "ES384": pem(ec.generate_private_key(ec.SECP384R1())),
    "ES512": pem(ec.generate_private_key(ec.SECP521R1())),
    "EdDSA": pem(ed25519.Ed25519PrivateKey.generate()),
}


def load(**environ: str) -> Settings:
    return load_settings({"JWT_PUBLIC_KEY": RSA, **environ})


def problems(*, demo: bool = False, config_file: str | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_settings({"JWT_PUBLIC_KEY": RSA, **environ}, config_file, demo=demo)
    return error.value.problems


def test_defaults_are_those_of_the_documentation() -> None:
    settings = load()
    assert (settings.port, settings.host, settings.admin_port, settings.admin_host) == (
        8000,
        "0.0.0.0",
        9000,
        "127.0.0.1",
    )
    assert (settings.rate_limit_requests, settings.rate_limit_window_seconds) == (300, 60)
    assert (settings.jwt_algorithm, settings.jwt_issuer, settings.jwt_audience) == ("RS256", "bakery-auth", None)
    assert settings.redis_host is None
    assert settings.cors_origins == ()
    assert settings.demo is False


def test_the_environment_wins_over_the_file_and_empty_counts_as_unset(tmp_path: Path) -> None:
    file = tmp_path / "gw.toml"
    file.write_text('port = 1\nadmin_port = 2\nlog_level = "ERROR"\nsales_service_url = ["http://a:1/", "http://b"]\n')
    environ = {"JWT_PUBLIC_KEY": RSA, "PORT": "3", "ADMIN_PORT": " ", "REDIS_HOST": ""}
    settings = load_settings(environ, str(file))
    assert (settings.port, settings.admin_port, settings.log_level) == (3, 2, "ERROR")
    assert settings.redis_host is None
    assert settings.services == {"sales": ("http://a:1", "http://b")}


def test_only_the_environment_given_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "77")
    assert load().port == 8000


def test_lower_case_variables_and_internal_fields_are_not_settings() -> None:
    settings = load(port="77", DEMO="true", SERVICES="x", ROUTES="y")
    assert (settings.port, settings.demo, settings.services) == (8000, False, {})


def test_lists_are_parsed() -> None:
    settings = load(
        CORS_ORIGINS="https://a.example, http://localhost:3000,capacitor://localhost",
        TRUSTED_PROXIES="10.0.0.0/8,::1",
        ADMIN_HOSTS="Gate.example,[::1]",
    )
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000", "capacitor://localhost")
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.admin_hosts == ("gate.example", "[::1]")


def test_any_service_url_makes_a_service() -> None:
    settings = load(
        AI_INSIGHTS_SERVICE_URL="http://AI:8000/",
        LOYALTY_CARDS_SERVICE_URL="https://[::1]:8443",
        DEMO_SALES_SERVICE_URL="http://demo",
        DEMO_LOYALTY_CARDS_SERVICE_URL="http://d1,http://d2",
    )
    assert settings.services == {"ai_insights": ("http://ai:8000",), "loyalty_cards": ("https://[::1]:8443",)}
    assert settings.demo_services == {"sales": ("http://demo",), "loyalty_cards": ("http://d1", "http://d2")}
    assert "/api/v1/loyalty-cards" in {route.prefix for route in settings.routes}


def test_settings_cannot_be_changed() -> None:
    settings = load(SALES_SERVICE_URL="http://a")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
    with pytest.raises(TypeError):
        settings.services["x"] = ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("REDIS_PORT", "0"),
        ("REDIS_TIMEOUT_MS", "0"),
        ("HOST", "example.com"),
        ("ADMIN_HOST", "*"),
        ("LISTEN", "udp:53"),
        ("LISTEN", "tcp"),
        ("LISTEN", "tcp:99999"),
        ("LISTEN", "tcp:port=x"),
        ("ADMIN_LISTEN", "unix:"),
        ("ADMIN_HOSTS", "a/b"),
        ("ENVIRONMENT", "production"),
        ("LOG_LEVEL", "TRACE"),
        ("STRUCTLOG_PRETTY_PRINT", "perhaps"),
        ("RATE_LIMIT_REQUESTS", "0"),
        ("RATE_LIMIT_WINDOW_SECONDS", "0"),
        ("RATE_LIMIT_ON_STORE_FAILURE", "shut"),
        ("UPSTREAM_CONNECT_TIMEOUT", "0"),
        ("UPSTREAM_IDLE_TIMEOUT", "inf"),
        ("UPSTREAM_FIRST_BYTE_TIMEOUT", "nan"),
        ("DRAIN_GRACE_SECONDS", "-1"),
        ("CORS_ORIGINS", "null"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("CORS_ORIGINS", "https://a.example/x"),
        ("CORS_ORIGINS", "https://a.example:443"),
        ("CORS_ORIGINS", "a.example"),
        ("CORS_ORIGINS", "https://*.a.example"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "proxy"),
        ("NOMINATIM_URL", "ftp://x"),
        ("NOMINATIM_URL", "http://nominatim.openstreetmap.org"),
        ("NOMINATIM_USER_AGENT", "línea"),
        ("NOMINATIM_USER_AGENT", "x" * 201),
        ("JWT_ALGORITHM", "HS256"),
        ("JWT_ALGORITHM", "none"),
        ("JWT_LEEWAY_SECONDS", "-1"),
        ("ADMIN_TOKEN", "two words"),
        ("PUBLISH_TOKEN", "two words"),
        ("JWT_PUBLIC_KEY", "not a key"),
        ("REDIS_CA_FILE", "/nonexistent/ca"),
        ("UPSTREAM_CA_FILE", "/nonexistent/ca"),
        ("JWT_PUBLIC_KEY_FILE", "/nonexistent/key"),
        ("ROUTES_FILE", "/nonexistent/routes"),
    ],
)
def test_a_value_out_of_bounds_is_named(name: str, value: str) -> None:
    [line] = problems(**{name: value})
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize(
    "url",
    [
        "sales:8000",
        "ftp://sales",
        "http://",
        "http://sales/api",
        "http://sales?x",
        "http://sales#x",
        "http://user:hunter2@sales",
        "http://sales:0",
        "http://sales:70000",
        "http://sales, http://b c",
        "http://sales\\x",
        "http://[::zz]",
        ",",
    ],
)
def test_a_service_url_is_a_scheme_a_host_and_a_port(url: str) -> None:
    [line] = problems(SALES_SERVICE_URL=url)
    assert line.startswith("SALES_SERVICE_URL: ")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "name",
    [
        "1X_SERVICE_URL",
        "_SERVICE_URL",
        "HEALTH_SERVICE_URL",
        "LIMITS_SERVICE_URL",
        "NOTIFICATIONS_SERVICE_URL",
        "TENANTS_SERVICE_URL",
        "DEMO_UNHEARD_SERVICE_URL",
    ],
)
def test_a_service_needs_a_usable_name(name: str) -> None:
    [line] = problems(**{name: "http://a"})
    assert line.startswith(f"{name}: ")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text('[[route]]\nprefix = "/x"\n[[route]]\nprefix = "/api/v1/sales"\nmax_body = -1\n')
    lines = problems(
        PORT="x",
        SALES_SERVICE_URL="x",
        ADMIN_HOST="0.0.0.0",
        CORS_ORIGINS="*",
        TOKEN_CACHE_SHARED="true",
        ROUTES_FILE=str(routes),
        JWT_ALGORITHM="ES256",
        ENVIRONMENT="prod",
    )
    assert [line.partition(":")[0] for line in lines] == [
        "SALES_SERVICE_URL",
        "PORT",
        "ENVIRONMENT",
        "CORS_ORIGINS",
        "CORS_ORIGINS",
        "ADMIN_HOST",
        "TOKEN_CACHE_SECRET",
        "JWT_PUBLIC_KEY",
        "ROUTES_FILE",
    ]


def test_a_problem_tells_name_value_and_what_is_allowed() -> None:
    assert problems(PORT="99999") == ["PORT: got '99999'; allowed: a port: 0 (any free one) to 65535"]
    assert problems(LOG_LEVEL="X") == ["LOG_LEVEL: got 'X'; allowed: one of DEBUG, INFO, WARNING, ERROR"]


def test_a_wrong_field_raises_no_further_problem_that_follows_from_it() -> None:
    assert len(problems(ADMIN_HOST="0.0.0.0", ADMIN_TOKEN="a b")) == 1
    assert len(problems(JWT_ALGORITHM="HS512", JWT_PUBLIC_KEY=KEYS["EdDSA"])) == 1


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    secrets = {"ADMIN_TOKEN": "hush-a", "REDIS_PASSWORD": "hush-b", "TOKEN_CACHE_SECRET": "hush-c" * 6}
    secrets |= {"API_KEY_SECRET": "hush-d" * 6, "PUBLISH_TOKEN": "hush-e"}
    settings = load(**secrets)
    for text in (repr(settings), str(settings), json.dumps(masked(settings))):
        assert "hush" not in text
    assert masked(settings)["admin_token"] == "***"
    assert masked(load())["admin_token"] is None
    lines = problems(**{**secrets, "ADMIN_TOKEN": "hush a", "JWT_PUBLIC_KEY": "hush-pem"})
    assert len(lines) == 2
    assert "hush" not in "".join(lines)


def test_masked_settings_are_json_with_services_and_without_routes() -> None:
    shown = masked(load(SALES_SERVICE_URL="http://a", TRUSTED_PROXIES="10.0.0.0/8"))
    assert json.loads(json.dumps(shown)) == shown
    assert shown["services"] == {"sales": ["http://a"]}
    assert shown["trusted_proxies"] == ["10.0.0.0/8"]
    assert "routes" not in shown


@pytest.mark.parametrize(("algorithm", "key"), KEYS.items())
def test_the_key_must_fit_the_algorithm(algorithm: str, key: str) -> None:
    assert load(JWT_PUBLIC_KEY=key, JWT_ALGORITHM=algorithm).jwt_algorithm == algorithm
    for other in set(KEYS.values()) - {key} | {SMALL_RSA}:
        [line] = problems(JWT_PUBLIC_KEY=other, JWT_ALGORITHM=algorithm)
        assert line.startswith("JWT_PUBLIC_KEY: got ***")


def test_a_key_may_have_escaped_newlines_or_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(RSA)
    assert load(JWT_PUBLIC_KEY=RSA.strip().replace("\n", "\\n")).jwt_public_key == RSA
    assert load(JWT_PUBLIC_KEY="", JWT_PUBLIC_KEY_FILE=str(file)).jwt_public_key == RSA
    [line] = problems(JWT_PUBLIC_KEY_FILE=str(file))
    assert line.startswith("JWT_PUBLIC_KEY_FILE: ")
    file.write_text("no key")
    [line] = problems(JWT_PUBLIC_KEY="", JWT_PUBLIC_KEY_FILE=str(file))
    assert line.startswith("JWT_PUBLIC_KEY_FILE: ")


def test_a_key_is_required_outside_the_demo() -> None:
    [line] = problems(JWT_PUBLIC_KEY="")
    assert line.startswith("JWT_PUBLIC_KEY: not set")
    assert load_settings({}, demo=True).jwt_public_key is None


def test_a_key_set_by_url_takes_the_place_of_a_pem() -> None:
    settings = load(JWT_PUBLIC_KEY="", JWT_JWKS_URL="https://auth/jwks")
    assert (settings.jwt_jwks_url, settings.jwt_public_key) == ("https://auth/jwks", None)


def test_a_key_and_a_key_set_together_refuse() -> None:
    [line] = problems(JWT_JWKS_URL="https://auth/jwks")
    assert line.startswith("JWT_JWKS_URL: got 'https://auth/jwks'; a key is given too")


@pytest.mark.parametrize(
    "url",
    [
        *("auth.example/jwks", "ftp://auth/jwks", "https://", "https:///jwks", "https://u:p@auth/jwks"),
        *("https://auth/jwks#a", "https://auth/a b", "https://auth/\n", "https://auth:0/", "https://auth:99999/"),
        *("https://auth:x/", "file:///etc/jwks.json", "https://au_th/jwks", "https://[::1/jwks"),
    ],
)
def test_what_is_no_url_of_a_key_set_is_refused(url: str) -> None:
    [line] = problems(JWT_PUBLIC_KEY="", JWT_JWKS_URL=url)
    assert line.startswith("JWT_JWKS_URL: got ")
    assert "u:p@" not in line


@pytest.mark.parametrize("url", ["http://auth:8000/jwks?tenant=a", "https://[::1]:8443/k", "http://10.0.0.1/"])
def test_a_key_set_may_be_anywhere(url: str) -> None:
    assert load(JWT_PUBLIC_KEY="", JWT_JWKS_URL=url).jwt_jwks_url == url


def test_prod_needs_tls_and_origins_by_name() -> None:
    [line] = problems(ENVIRONMENT="prod")
    assert line.startswith("ENVIRONMENT: ")
    assert load(ENVIRONMENT="prod", TRUSTED_PROXIES="10.0.0.0/8").environment == "prod"
    anyone = {"CORS_ORIGINS": "*", "CORS_ALLOW_CREDENTIALS": "false"}
    [line] = problems(ENVIRONMENT="prod", TRUSTED_PROXIES="10.0.0.0/8", **anyone)
    assert line.startswith("CORS_ORIGINS: ")
    assert load(**anyone).cors_origins == ("*",)


def test_any_origin_with_credentials_refuses() -> None:
    [line] = problems(CORS_ORIGINS="*")
    assert "CORS_ALLOW_CREDENTIALS" in line


@pytest.mark.parametrize(
    ("environ", "local"),
    [
        ({"ADMIN_HOST": "0.0.0.0"}, False),
        ({"ADMIN_HOST": "::1"}, True),
        ({"ADMIN_HOST": "127.0.0.2"}, True),
        ({"ADMIN_HOST": "localhost"}, True),
        ({"ADMIN_LISTEN": "tcp:9000"}, False),
        ({"ADMIN_LISTEN": "tcp:9000:interface=127.0.0.1"}, True),
        ({"ADMIN_LISTEN": r"tcp:port=9000:interface=\:\:1"}, True),
        ({"ADMIN_LISTEN": r"tcp:9000:interface=\:\:"}, False),
        ({"ADMIN_LISTEN": "unix:/run/x"}, True),
        ({"ADMIN_LISTEN": "systemd:domain=INET:index=0"}, False),
    ],
)
def test_an_admin_port_beyond_loopback_needs_a_token(environ: dict[str, str], local: bool) -> None:
    load(**environ, ADMIN_TOKEN="long-enough")
    if local:
        load(**environ)
    else:
        [line] = problems(**environ)
        assert line.startswith("ADMIN_")


def test_a_shared_token_cache_needs_a_secret() -> None:
    assert len(problems(TOKEN_CACHE_SHARED="true")) == 1
    assert load(TOKEN_CACHE_SHARED="true", TOKEN_CACHE_SECRET="s" * 32).token_cache_shared


def test_in_prod_a_short_secret_may_not_seal_what_others_can_read() -> None:
    prod = {"ENVIRONMENT": "prod", "TRUSTED_PROXIES": "10.0.0.0/8"}
    for shared in ("true", "false"):  # what was looked up is sealed with it either way
        [line] = problems(**prod, TOKEN_CACHE_SHARED=shared, TOKEN_CACHE_SECRET="s" * 31)
        assert line.startswith("TOKEN_CACHE_SECRET: got ***; in prod at least 32")
    assert load(**prod, TOKEN_CACHE_SECRET="s" * 32).token_cache_secret is not None
    assert load(TOKEN_CACHE_SECRET="s").token_cache_secret is not None


def test_what_api_keys_are_sealed_with_must_be_long_enough() -> None:
    assert load(API_KEY_SECRET="x" * 32).api_key_secret is not None
    (problem,) = problems(API_KEY_SECRET="x" * 31)
    assert problem.startswith("API_KEY_SECRET: got ***; at least 32")


def test_the_publishers_token_is_not_the_admins() -> None:
    assert load(PUBLISH_TOKEN="publish", ADMIN_TOKEN="admin").publish_token is not None
    (problem,) = problems(PUBLISH_TOKEN="same", ADMIN_TOKEN="same")
    assert problem.startswith("PUBLISH_TOKEN: got ***; other than ADMIN_TOKEN")


def test_the_demo_stays_on_loopback_and_out_of_prod() -> None:
    assert load_settings({}, demo=True).host == "127.0.0.1"
    assert load_settings({"HOST": "::1"}, demo=True).host == "::1"
    for environ in (
        {"HOST": "0.0.0.0"},
        {"ADMIN_HOST": "10.0.0.1", "ADMIN_TOKEN": "t"},
        {"LISTEN": "tcp:80"},
        {"ADMIN_LISTEN": "tcp:80", "ADMIN_TOKEN": "t"},
        {"ENVIRONMENT": "prod", "TRUSTED_PROXIES": "::1"},
    ):
        [line] = problems(demo=True, **environ)
        assert line.startswith(f"{next(iter(environ))}: ")


def test_mistakes_in_the_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "gw.toml"
    file.write_text(
        'prot = 1\nport = true\nservices = "x"\ndemo = true\nhost = {a = 1}\nSales_service_url = "http://a"\n'
    )
    lines = "\n".join(problems(config_file=str(file)))
    assert "unknown key 'prot'; did you mean 'port'?" in lines
    assert "PORT: got 'true'" in lines
    for name in ("services", "demo", "Sales_service_url"):
        assert f"unknown key '{name}'" in lines
    assert "host: got a dict" in lines


@pytest.mark.parametrize("content", [None, "port = ", b"\xff"])
def test_an_unreadable_file_is_a_problem_beside_the_others(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "gw.toml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    lines = problems(config_file=str(file), PORT="x", JWT_PUBLIC_KEY="")
    assert [line.partition(":")[0] for line in lines] == [str(file), "PORT"]


def documented(name: str) -> set[str]:
    text = (ETC / name).read_text()
    return {
        match[1].lower() for match in re.finditer(r"^#?([A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*) ?= ?\S", text, re.M)
    }


def example_environ(*, commented: bool) -> dict[str, str]:
    lines = (ETC / "bakerygw.env.example").read_text().splitlines()
    chosen = [line.lstrip("#") if commented and not line.startswith("# ") else line for line in lines]
    return dict(line.split("=", 1) for line in chosen if "=" in line and not line.startswith("#"))


def test_the_example_environment_and_file_say_the_same(tmp_path: Path) -> None:
    examples = example_environ(commented=False)
    toml = (ETC / "bakerygw.toml.example").read_text()
    (key,) = re.findall(r'^jwt_public_key_file = "(.*)"$', toml, re.M)
    assert examples["JWT_PUBLIC_KEY_FILE"] == key
    (tmp_path / "jwt.pem").write_text(RSA)
    here = {"JWT_PUBLIC_KEY_FILE": str(tmp_path / "jwt.pem")}
    environ = load_settings({**examples, **here})
    assert environ == load_settings(here, str(ETC / "bakerygw.toml.example"))
    assert len(environ.services) == 16


def test_systemd_and_docker_read_the_example_environment_alike() -> None:
    # Of what is not in quotes systemd takes away each backslash; docker leaves quotes where they are.
    assert [value for value in example_environ(commented=False).values() if re.search(r"""[\\"']""", value)] == []


@pytest.mark.parametrize("name", ["bakerygw.env.example", "bakerygw.toml.example"])
def test_the_examples_are_complete(name: str) -> None:
    expected = Settings.model_fields.keys() - {"services", "demo_services", "routes", "limit_policies", "demo"}
    assert expected <= documented(name)
    unknown = {entry for entry in documented(name) - expected if not entry.endswith("_service_url")}
    assert not unknown


def test_the_defaults_that_the_example_shows_are_true() -> None:
    examples = example_environ(commented=True)
    illustrations = {"LISTEN", "ADMIN_LISTEN", "ADMIN_TOKEN", "MAX_CONNECTIONS", "ENVIRONMENT"}
    fields = Settings.model_fields
    shown = {name: value for name, value in examples.items() if name not in illustrations and name.lower() in fields}
    defaults = {name: value for name, value in shown.items() if fields[name.lower()].default not in (None, ())}
    assert load(**defaults) == load()
    assert len(defaults) > 30


def test_sessions_may_have_a_secret() -> None:
    assert load(SESSION_COOKIES="true").session_secret is None
    assert load(SESSION_COOKIES="true", SESSION_SECRET="s" * 32).session_cookies


@pytest.mark.parametrize("secret", ["s" * 31, "s" * 32 + "," + "t" * 31, "s" * 32 + ",", "s" * 16 + " " * 40])
def test_each_secret_of_sessions_is_long(secret: str) -> None:
    (problem,) = problems(SESSION_SECRET=secret)
    assert problem.startswith("SESSION_SECRET: got ***; allowed: one text or more")


def test_secrets_of_sessions_come_apart_and_are_never_shown() -> None:
    settings = load(SESSION_SECRET=f"{'n' * 32} , {'o' * 40}")
    assert settings.session_secret is not None
    assert session_secrets(settings.session_secret) == ("n" * 32, "o" * 40)
    assert masked(settings)["session_secret"] == "***"
