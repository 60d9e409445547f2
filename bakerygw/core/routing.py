"""The route table: which service or handler a path belongs to, and which policies hold there."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from bakerygw.core.limits import LimitRule
from bakerygw.core.problem import refuse
from bakerygw.core.values import value

Kind = Literal["proxy", "local", "stream"]
"""To a service; answered here; or held open by the gateway for long, and then not counted with the requests."""
Action = Literal[
    "login", "refresh", "logout", "session", "subscription", "geocode", "limits", "alerts", "ticket", "training"
]
"""What the gateway does by itself: in place of a service, or beside proxying to it."""

TENANTS: Final = "/api/v1/tenants"
"""Below this prefix the next segment is a tenant's id."""

WILDCARD: Final = "{id}"

_BELOW_TENANTS: Final = TENANTS.encode() + b"/"
_WILD_TENANT: Final = _BELOW_TENANTS + WILDCARD.encode()
_ID_AT: Final = len(_BELOW_TENANTS)
_PARAMETERS: Final = re.compile(rb";[^/]*")
_TENANT_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")

# The path of nearly every request: nothing encoded, no segment that begins with a dot, no parameters.
_CLEAN: Final = re.compile(
    rb"(/|(?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*)+/?)(?:\?([!\"$-~]*))?", re.ASCII
)
_UNPRINTABLE: Final = re.compile(rb"[^!-~]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_SEPARATOR: Final = re.compile(rb"%(2f|5c|00|0a|0d)", re.IGNORECASE)
_ENCODED_DOT: Final = re.compile(rb"%2e", re.IGNORECASE)
_DOT_SEGMENT: Final = re.compile(rb"/\.{1,2}(?=[/;]|\Z)")
_MAX_LAYERS: Final = 8
"""Percent-encodings of percent-encodings that are followed; more of them serve only to hide something."""

_SEPARATORS: Final = {
    b"2f": "slash",
    b"5c": "backslash",
    b"00": "NUL",
    b"0a": "line feed",
    b"0d": "carriage return",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One prefix and its policies."""

    prefix: str
    """Whole segments, without a slash at the end, e.g. `/api/v1/sales`; a segment `{id}` stands for a tenant's id."""
    template: str
    """For logs and metrics: the prefix with `/**` behind it, or the path itself where `exact`."""
    kind: Kind
    exact: bool = False
    """Only the path itself, nothing below. To a service and with a token, also the path with a slash at its end."""
    service: str | None = None
    """For `proxy`: the service's name, lower case with `_`, e.g. `ai_insights`."""
    auth: bool = True
    tenant: bool = True
    """Needs an effective tenant; with False tenant, subscription and read-only checks do not apply."""
    methods: frozenset[str] | None = None
    """Allowed methods; `None` allows all."""
    min_tier: str | None = None
    critical: frozenset[str] = frozenset()
    """Methods that are critical operations here."""
    limit: LimitRule | None = None
    """Applies instead of the general limit."""
    auth_limit: bool = False
    """Also under the stricter limit by client address (login, register, refresh)."""
    first_byte_timeout_s: float | None = None
    max_body: int | None = None
    """Bytes; `None`: the general cap."""
    read_only_exempt: bool = False
    subscription_exempt: bool = False
    unlimited: bool = False
    """Spends nobody's budget."""
    action: Action | None = None
    """Handled by the handler of this name, if there is one."""


@value
class Match:
    """Where a path leads."""

    route: Route
    tenant_id: str | None
    """The tenant that the path names, well-formed but not yet checked against anyone's rights."""


class Router:
    """Paths to routes by longest prefix of whole segments; immutable, swapped whole on a reload."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Raises `ValueError` if two routes have one prefix, or `{id}` stands elsewhere than behind `TENANTS`."""
        self._routes = tuple(routes)
        self._exact: dict[bytes, Match] = {}
        self._prefixes: dict[bytes, Match] = {}
        for route in self._routes:
            self._add(route)
        depths = {prefix.count(b"/") for prefix in self._prefixes}
        self._depths = tuple(sorted(depths, reverse=True))
        self._cuts = max(depths, default=0) + 1
        self._literal_tenants = any(
            prefix.startswith(_BELOW_TENANTS) and not prefix.startswith(_WILD_TENANT)
            for prefix in (*self._exact, *self._prefixes)
        )

    def _add(self, route: Route) -> None:
        key = route.prefix.encode("ascii")
        if WILDCARD in route.prefix.removeprefix(f"{TENANTS}/{WILDCARD}"):
            raise ValueError(f"{route.prefix}: {WILDCARD} is only known directly behind {TENANTS}")
        if key in self._exact or key in self._prefixes:
            raise ValueError(f"{route.prefix}: two routes with this prefix")
        match = Match(route=route, tenant_id=None)
        if not route.exact:
            self._prefixes[key] = match
            return
        self._exact[key] = match
        if route.kind != "proxy":
            return
        # Many services read a path with a slash at its end as the one without, so its policies hold there too.
        # A public path stays the one that is written: what resembles it needs a token, and gets the same handler.
        if route.auth:
            self._exact[key + b"/"] = match
        elif route.action is not None:
            self._exact[key + b"/"] = Match(route=replace(route, auth=True), tenant_id=None)

    @property
    def routes(self) -> tuple[Route, ...]:
        """All routes, in the order given."""
        return self._routes

    def match(self, path: bytes) -> Match | None:
        """The route of a path that `check_target` has passed; `None` where there is none.

        Raises `Refused` (bad-request) if the path names a tenant by what cannot be an id, or belongs to another
        route once its percent-encoding and its parameters (RFC 3986 3.3) are taken away, as services may do: that
        route's policies would be passed by.
        """
        found = self._match(path)
        if b"%" in path or b";" in path:
            plain = self._match(unquote_to_bytes(_PARAMETERS.sub(b"", path)))
            if (plain and plain.route) is not (found and found.route):
                detail = "Spell the path plainly: decoded and without parameters it belongs to another route."
                raise refuse("bad-request", detail, reason="path-spelling")
        return found

    def _match(self, path: bytes) -> Match | None:
        return self._match_tenant(path) if path.startswith(_BELOW_TENANTS) else self._longest(path)

    def _match_tenant(self, path: bytes) -> Match | None:
        end = path.find(b"/", _ID_AT)
        segment, rest = (path[_ID_AT:], b"") if end < 0 else (path[_ID_AT:end], path[end:])
        if not segment:
            return self._longest(path)
        found = self._longest(_WILD_TENANT + rest)
        if self._literal_tenants:
            found = _deeper(self._longest(path), found)
        if found is None or not found.route.tenant:
            return found
        if _TENANT_ID.fullmatch(segment) is None:
            raise refuse(
                "bad-request",
                "Name the tenant in the path by its id: 1 to 64 unencoded letters, digits and . _ - characters.",
                reason="tenant-id",
            )
        return Match(route=found.route, tenant_id=segment.decode("ascii"))

    def _longest(self, path: bytes) -> Match | None:
        found = self._exact.get(path)
        if found is not None:
            return found
        # Cutting a bounded number of segments keeps the cost of a path of thousands of them that of a short one.
        parts = path.split(b"/", self._cuts)
        prefixes = self._prefixes
        for depth in self._depths:
            found = prefixes.get(b"/".join(parts[: depth + 1]))
            if found is not None:
                return found
        return None


def _deeper(literal: Match | None, wild: Match | None) -> Match | None:
    """The longer prefix of the two; between equals the one spelt out."""
    if literal is None or wild is None:
        return literal or wild
    return literal if literal.route.prefix.count("/") >= wild.route.prefix.count("/") else wild


def routes_by_prefix(routes: Iterable[Route]) -> Mapping[str, Route]:
    """The routes under their prefixes; of two with one prefix the later."""
    return {route.prefix: route for route in routes}


def check_target(target: bytes) -> tuple[bytes, bytes | None]:
    """Path and query of a request target in origin form (RFC 9112 3.2.1), cut at the first `?`, otherwise unchanged.

    Raises `Refused` (bad-request) for a path that could mean another one to a service that decodes or
    normalises it, and for bytes that no target may hold (RFC 3986). The query is `None` without a `?`.
    """
    clean = _CLEAN.fullmatch(target)
    if clean is not None:
        return clean[1], clean[2]
    if not target.startswith(b"/"):
        raise refuse("bad-request", "Begin the request target with a slash.", reason="target-form")
    if _UNPRINTABLE.search(target) is not None:
        raise refuse("bad-request", "Send printable ASCII without spaces as the request target.", reason="target-bytes")
    if b"#" in target:
        raise refuse("bad-request", "Leave the fragment (#) out of the request target.", reason="target-fragment")
    path, mark, query = target.partition(b"?")
    _check_path(path)
    return path, query if mark else None


def _check_path(path: bytes) -> None:
    if b"//" in path:
        raise refuse("bad-request", "Spell the path without empty segments (//).", reason="path-empty-segment")
    if b"\\" in path:
        raise refuse("bad-request", "Spell the path without backslashes.", reason="path-backslash")
    if _BAD_ESCAPE.search(path) is not None:
        raise refuse("bad-request", "Put two hex digits behind each percent sign in the path.", reason="path-escape")
    text = path
    for layer in range(_MAX_LAYERS):
        _check_layer(text, layer)
        decoded = unquote_to_bytes(text)
        if decoded == text:
            return
        text = decoded
    raise refuse("bad-request", "Percent-encode the path once, not many times over.", reason="path-layers")


def _check_layer(text: bytes, layer: int) -> None:
    """Refuse what one more decoding would turn into a separator or a dot segment; `layer` decodings lie behind."""
    times = "" if layer == 0 else "doubly "
    encoded = _ENCODED_SEPARATOR.search(text)
    if encoded is not None:
        name = _SEPARATORS[encoded[1].lower()]
        raise refuse("bad-request", f"Leave out the {times}percent-encoded {name}.", reason="path-encoded-separator")
    if layer and _ENCODED_DOT.search(text) is not None:
        raise refuse("bad-request", "Spell the path without a doubly percent-encoded dot.", reason="path-encoded-dot")
    if _DOT_SEGMENT.search(text) is not None:
        raise refuse("bad-request", "Resolve the dot segments (. or ..).", reason="path-dot-segment")
