"""The types of single settings: what text each accepts, and how that is told to people."""

import ipaddress
import re
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic.fields import FieldInfo

# A dot that no other follows: no label of a name is empty (RFC 1035 section 2.3.1).
_NAME: Final = r"[a-z0-9](?:(?:[a-z0-9_-]|\.(?!\.))*[a-z0-9])?"
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:(?:[a-z0-9_-]|\.(?!\.))+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_URL: Final = re.compile(rf"(https?)://({_NAME}|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?/?", re.I)
_HOST_NAME: Final = re.compile(r"[a-z0-9](?:(?:[a-z0-9-]|\.(?!\.))*[a-z0-9])?|\[[0-9a-f:.]+\]")
MIN_SESSION_SECRET: Final = 32
"""Characters: what `openssl rand -hex 16` gives, and not a word that somebody has thought of."""
_ENDPOINTS: Final = frozenset({"tcp", "ssl", "unix", "systemd"})


def _items(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is on loopback. Raises `ValueError` for anything else."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _host(value: str) -> str:
    is_loopback(value)
    return value


def _base_url(value: str) -> str:
    parts = _URL.fullmatch(value)
    if parts is None or not 0 < int(parts[3] or 80) <= 65535:
        raise ValueError("not a base URL")
    if parts[2].startswith("["):
        ipaddress.IPv6Address(parts[2][1:-1])
    return value.rstrip("/").lower()


def base_urls(value: str) -> tuple[str, ...]:
    """The base URLs of a service, each once; none if one of them is wrong."""
    try:
        return tuple(dict.fromkeys(_base_url(part.strip()) for part in value.split(",") if part.strip()))
    except ValueError:
        return ()


def _origin(value: str) -> str:
    # Browsers leave the default port out, so an origin that has it would never match.
    if value != "*" and (_ORIGIN.fullmatch(value) is None or re.fullmatch(r"http:.*:80|https:.*:443", value)):
        raise ValueError("not an origin")
    return value


def _host_name(value: str) -> str:
    if _HOST_NAME.fullmatch(value.lower()) is None:
        raise ValueError("not a host name")
    return value.lower()


def _endpoint(value: str) -> str:
    kind, *parts = endpoint_parts(value)
    if kind not in _ENDPOINTS or not parts or not parts[0]:
        raise ValueError("not an endpoint")
    if kind in {"tcp", "ssl"}:
        port = next((part[5:] for part in parts if part.startswith("port=")), parts[0])
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError("not a port")
    return value


def endpoint_parts(value: str) -> list[str]:
    """Split a Twisted endpoint description at the colons that no backslash escapes."""
    return [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:\\.|[^:\\])+", value)]


def endpoint_is_local(value: str) -> bool:
    """Whether a Twisted endpoint description surely listens on this machine alone."""
    kind, *parts = endpoint_parts(value)
    interface = next((part[10:] for part in parts if part.startswith("interface=")), "")
    try:
        return kind == "unix" or (kind in {"tcp", "ssl"} and is_loopback(interface))
    except ValueError:
        return False


def public_pem(value: str) -> str:
    """A public key in PEM with real newlines. Raises `ValueError` if it is none."""
    text = value.replace("\\n", "\n").strip() + "\n"
    try:
        load_pem_public_key(text.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("unsupported key") from error
    return text


def _key_set_url(value: str) -> str:
    parts = urlsplit(value)
    if (
        re.fullmatch(r"https?://[!-~]+", value) is None
        or not parts.hostname
        or parts.port == 0
        or "@" in parts.netloc
        or "#" in value
    ):
        raise ValueError("not the URL of a key set")
    return value


def _token(value: SecretStr) -> SecretStr:
    if re.fullmatch(r"[!-~]+", value.get_secret_value()) is None:
        raise ValueError("not a bearer token")
    return value


def session_secrets(value: SecretStr) -> tuple[str, ...]:
    """The single secrets, the one that is in use first."""
    return tuple(part.strip() for part in value.get_secret_value().split(","))


def _session_secrets(value: SecretStr) -> SecretStr:
    if any(len(secret) < MIN_SESSION_SECRET for secret in session_secrets(value)):
        raise ValueError("too short")
    return value


def _allowed(text: str) -> Any:
    return Field(description=text)


Bool = Annotated[bool, _allowed("true or false")]
Port = Annotated[int, Field(ge=0, le=65535, description="a port: 0 (any free one) to 65535")]
Count = Annotated[int, Field(ge=1, le=2**40, description="a whole number from 1")]
Rate = Annotated[int, Field(ge=0, le=2**40, description="a whole number from 0")]
Amount = Annotated[int, Field(ge=0, le=3650, description="a whole number from 0 to 3650")]
Window = Annotated[int, Field(ge=1, le=86_400, description="whole seconds from 1 to 86400")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False, description="seconds: over 0, at most 86400")]
Grace = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False, description="seconds: 0 to 3600")]
Text = Annotated[str, Field(pattern=r"^[ -~]+$", description="printable ASCII")]
Path = Annotated[str, _allowed("the path of a readable file")]
Secret = Annotated[SecretStr, _allowed("text")]
Token = Annotated[SecretStr, AfterValidator(_token), _allowed("printable ASCII without spaces")]
SessionSecrets = Annotated[
    SecretStr,
    AfterValidator(_session_secrets),
    _allowed("one text or more, comma separated, each of 32 characters or more"),
]
Host = Annotated[str, AfterValidator(_host), _allowed("an IPv4 or IPv6 address, or localhost")]
Endpoint = Annotated[
    str, AfterValidator(_endpoint), _allowed("a Twisted endpoint: tcp:..., ssl:..., unix:... or systemd:...")
]
Url = Annotated[
    str, AfterValidator(_base_url), _allowed("http(s)://host or http(s)://host:port, and nothing behind it")
]
KeySetUrl = Annotated[str, AfterValidator(_key_set_url), _allowed("http(s)://host[:port]/path, without user or #")]
Pem = Annotated[str, AfterValidator(public_pem), _allowed("a public key in PEM, its lines apart by newlines or \\n")]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ALGORITHMS: Final[tuple[str, ...]] = get_args(Algorithm)
HostNames = Annotated[
    tuple[Annotated[str, AfterValidator(_host_name)], ...],
    BeforeValidator(_items),
    _allowed("host names without ports, comma separated; IPv6 addresses in brackets"),
]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...],
    BeforeValidator(_items),
    _allowed("origins as browsers send them, scheme://host[:port] in lower case, comma separated; or *"),
]
Networks = Annotated[
    tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
    BeforeValidator(_items),
    _allowed("networks (CIDR) without host bits, or addresses, comma separated"),
]


def as_text(value: object) -> str | None:
    """A TOML value as the environment would spell it; `None` for tables and the like."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return None


def description_of(field: FieldInfo) -> str:
    """What the type of a field says is allowed."""
    if field.description is not None:
        return field.description
    for part in get_args(field.annotation):
        notes = getattr(part, "__metadata__", ())
        found = [note.description for note in notes if isinstance(note, FieldInfo) and note.description]
        if found:
            return str(found[0])
    return "one of " + ", ".join(str(value) for value in get_args(field.annotation))
