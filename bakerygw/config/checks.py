"""What settings, each right by itself, may not be together."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from bakerygw.config.values import endpoint_is_local, is_loopback

if TYPE_CHECKING:
    from bakerygw.config.settings import Settings

_CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_MIN_SECRET: Final = 32
"""Characters: what is sealed with it can be read by others, who may try out shorter ones."""
_PUBLIC_NOMINATIM: Final = "nominatim.openstreetmap.org"
_USER_AGENT: Final = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")

Findings = Iterator[tuple[tuple[str, ...], str]]
"""Fields that do not go together, the one to name first, and what is allowed."""


def findings(settings: "Settings") -> Findings:
    """Everything that does not go together."""
    for check in _CHECKS:
        yield from check(settings)
    if settings.demo:
        yield from _check_demo(settings)


def _check_transport(settings: "Settings") -> Findings:
    over_tls = settings.listen is not None and settings.listen.startswith("ssl:")
    if settings.environment == "prod" and not over_tls and not settings.trusted_proxies:
        fields = ("environment", "listen", "trusted_proxies")
        yield fields, "prod needs TLS: LISTEN=ssl:..., or TRUSTED_PROXIES naming the proxies that end it"


def _check_cors(settings: "Settings") -> Findings:
    if "*" not in settings.cors_origins:
        return
    if settings.cors_allow_credentials:
        yield ("cors_origins", "cors_allow_credentials"), "* only with CORS_ALLOW_CREDENTIALS=false"
    if settings.environment == "prod":
        yield ("cors_origins", "environment"), "prod needs the origins by name, not *"


def _check_admin(settings: "Settings") -> Findings:
    if settings.admin_token is not None:
        return
    if settings.admin_listen is None:
        if not is_loopback(settings.admin_host):
            yield ("admin_host", "admin_token", "admin_listen"), "beyond loopback ADMIN_TOKEN must be set"
    elif not endpoint_is_local(settings.admin_listen):
        fields = ("admin_listen", "admin_token")
        yield fields, "without ADMIN_TOKEN: unix:..., or tcp: or ssl: with interface= on loopback"


def _check_publishing(settings: "Settings") -> Findings:
    its, admins = settings.publish_token, settings.admin_token
    if its is not None and admins is not None and its.get_secret_value() == admins.get_secret_value():
        yield ("publish_token", "admin_token"), "other than ADMIN_TOKEN, or it opens all of the admin port"


def _check_cache(settings: "Settings") -> Findings:
    secret = settings.token_cache_secret
    if secret is None:
        if settings.token_cache_shared:
            yield ("token_cache_secret", "token_cache_shared"), "TOKEN_CACHE_SHARED=true needs it"
    elif settings.environment == "prod" and len(secret.get_secret_value()) < _MIN_SECRET:
        allowed = f"in prod at least {_MIN_SECRET} characters, e.g. of openssl rand -hex 32"
        yield ("token_cache_secret", "environment"), allowed


def _check_api_keys(settings: "Settings") -> Findings:
    secret = settings.api_key_secret
    if secret is not None and len(secret.get_secret_value()) < _MIN_SECRET:
        yield ("api_key_secret",), f"at least {_MIN_SECRET} characters that nobody can guess"


def _check_key(settings: "Settings") -> Findings:
    if settings.jwt_public_key is not None:
        unfit = _unfit(settings.jwt_public_key, settings.jwt_algorithm)
        if unfit:
            yield ("jwt_public_key", "jwt_algorithm"), f"JWT_ALGORITHM {settings.jwt_algorithm} needs {unfit}"
        if settings.jwt_jwks_url is not None:
            fields = ("jwt_jwks_url", "jwt_public_key")
            yield fields, "a key is given too, by JWT_PUBLIC_KEY or JWT_PUBLIC_KEY_FILE; one of the two"
    elif settings.jwt_jwks_url is None and not settings.demo:
        yield (
            ("jwt_public_key", "jwt_jwks_url"),
            "JWT_PUBLIC_KEY, JWT_PUBLIC_KEY_FILE or JWT_JWKS_URL must give the key that tokens are checked with",
        )


def _unfit(pem: str, algorithm: str) -> str:
    """The kind of key that the algorithm needs, if this is another; else empty (RFC 7518 3.3-3.5, RFC 8037)."""
    key = load_pem_public_key(pem.encode())
    curve = _CURVES.get(algorithm)
    if curve is not None:
        fits = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == curve
        return "" if fits else f"an EC key on {curve}"
    if algorithm == "EdDSA":
        return "" if isinstance(key, ed25519.Ed25519PublicKey) else "an Ed25519 key"
    fits = isinstance(key, rsa.RSAPublicKey) and _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS
    return "" if fits else f"an RSA key of {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits"


def is_public_nominatim(url: str) -> bool:
    """Whether this is the server that OpenStreetMap's foundation runs for all, whose rules bind."""
    return urlsplit(url).hostname == _PUBLIC_NOMINATIM


def may_geocode(settings: "Settings") -> bool:
    """Whether anybody may be asked for addresses: the public server only by those who say who they are."""
    return settings.nominatim_user_agent is not None or not is_public_nominatim(settings.nominatim_url)


def _check_geocoding(settings: "Settings") -> Findings:
    agent = settings.nominatim_user_agent
    if agent is not None and _USER_AGENT.fullmatch(agent) is None:
        yield ("nominatim_user_agent",), "1 to 200 printable ASCII characters: your application and how to reach you"
    if is_public_nominatim(settings.nominatim_url) and not settings.nominatim_url.startswith("https:"):
        yield ("nominatim_url",), f"{_PUBLIC_NOMINATIM} is asked over https"


def _check_demo(settings: "Settings") -> Findings:
    if settings.environment == "prod":
        yield ("environment",), "--demo is not for prod"
    for name in ("host", "admin_host"):
        if not is_loopback(getattr(settings, name)):
            yield (name,), "--demo listens on loopback only"
    for name in ("listen", "admin_listen"):
        endpoint = getattr(settings, name)
        if endpoint is not None and not endpoint_is_local(endpoint):
            yield (name,), "--demo listens on loopback only: unix:..., or tcp: or ssl: with interface= on loopback"


_CHECKS: Final = (
    _check_transport,
    _check_cors,
    _check_admin,
    _check_publishing,
    _check_cache,
    _check_api_keys,
    _check_key,
    _check_geocoding,
)
