"""What operators may say of an API key: read strictly, and in one spelling each."""

from collections.abc import Callable, Collection
from ipaddress import IPv6Network, ip_network
from typing import Final

from bakerygw.admin.fields import bad_field, read_object, text_of, time_of, whole_number
from bakerygw.core.api_keys import ApiKey
from bakerygw.core.claims import MAX_UNIX_S, is_id
from bakerygw.core.heads import METHODS
from bakerygw.core.limits import MAX_REQUESTS, MAX_WINDOW_S
from bakerygw.core.problem import Refused
from bakerygw.core.routing import TENANTS, WILDCARD, Router, check_target

FIELDS: Final = (
    "tenant_id",
    "name",
    "role",
    "routes",
    "methods",
    "addresses",
    "expires_at",
    "expires_in",
    "limit",
    "by",
)
MAX_NAME_CHARS: Final = 100
MAX_BY_CHARS: Final = 200
MAX_PATH_CHARS: Final = 200
MAX_ITEMS: Final = 50
MAX_LIFE_S: Final = 10 * 366 * 86_400


def new_record(body: bytes, key_id: str, router: Router, now: float) -> ApiKey:
    """The record, still without a secret, of the key that the body describes. Raises `Refused` bad-request."""
    members = read_object(body, FIELDS)
    tenant_id = _id(members, "tenant_id")
    return ApiKey(
        key_id=key_id,
        tenant_id=tenant_id,
        name=_required(members, "name", MAX_NAME_CHARS),
        role=_id(members, "role"),
        routes=_items(members, "routes", lambda text: _path(text, tenant_id, router)),
        methods=_items(members, "methods", _method),
        addresses=_items(members, "addresses", _network),
        limit=_limit(members.get("limit")),
        created_at=now,
        created_by=text_of(members, "by", MAX_BY_CHARS) or "admin",
        expires_at=_expiry(members, now),
        revoked_at=None,
        secrets=(),
    )


def _required(members: dict[str, object], name: str, max_chars: int) -> str:
    text = text_of(members, name, max_chars)
    if text is None:
        bad_field(name, "is needed")
    return text


def _id(members: dict[str, object], name: str) -> str:
    text = _required(members, name, 64)
    if not is_id(text):
        bad_field(name, "must have 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return text


def _items(members: dict[str, object], name: str, read: Callable[[str], str | None]) -> tuple[str, ...] | None:
    """The items of a list, each read and once, in order; `None` without the list."""
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        bad_field(name, "must be a list of at least one text; leave it out to set no bound")
    if len(value) > MAX_ITEMS:
        bad_field(name, f"must have at most {MAX_ITEMS} items")
    found = []
    for item in value:
        text = read(item) if isinstance(item, str) else None
        if text is None:
            bad_field(name, f"cannot have the item {str(item)[:64]!a}{_HINTS[name]}")
        found.append(text)
    return tuple(sorted(set(found)))


_HINTS: Final = {
    "routes": "; each is a path of whole segments that a route with a token has, e.g. /api/v1/pos",
    "methods": f"; each is one of {', '.join(sorted(METHODS))}",
    "addresses": "; each is an address or a network, e.g. 192.0.2.0/24 or 2001:db8::/32",
}


def _path(text: str, tenant_id: str, router: Router) -> str | None:
    """The path as requests of this tenant spell it, `{id}` being its own id."""
    wild = f"{TENANTS}/{WILDCARD}"
    if text == wild or text.startswith(wild + "/"):
        text = f"{TENANTS}/{tenant_id}{text[len(wild) :]}"
    path = text.rstrip("/")
    if len(path) > MAX_PATH_CHARS or not path.isascii() or "?" in path:
        return None
    try:
        match = router.match(check_target(path.encode("ascii"))[0])
    except Refused:
        return None
    return path if match is not None and match.route.auth else None


def _method(text: str) -> str | None:
    return text if text in METHODS else None


def _network(text: str) -> str | None:
    """The network in its canonical spelling (RFC 5952), bits behind the prefix cleared."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    if isinstance(network, IPv6Network):
        if network.network_address.scope_id is not None:
            return None
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return f"{mapped}/{network.prefixlen - 96}"
    return str(network)


def _limit(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    names: Collection[str] = {"requests", "window_seconds"}
    if not isinstance(value, dict) or value.keys() != names:
        bad_field("limit", 'must be an object such as {"requests": 60, "window_seconds": 60}')
    return (
        whole_number(value["requests"], "limit.requests", 1, MAX_REQUESTS),
        whole_number(value["window_seconds"], "limit.window_seconds", 1, MAX_WINDOW_S),
    )


def _expiry(members: dict[str, object], now: float) -> float | None:
    moment, seconds = time_of(members, "expires_at"), members.get("expires_in")
    if moment is not None and seconds is not None:
        bad_field("expires_in", "cannot go with expires_at; send one of them")
    if seconds is not None:
        return float(int(now) + whole_number(seconds, "expires_in", 1, MAX_LIFE_S))
    if moment is None:
        return None
    expires_at = moment.timestamp()
    if not now < expires_at <= MAX_UNIX_S:
        bad_field("expires_at", "must lie in the future")
    return expires_at
