"""Which header fields cross the gateway: to the service, and back to the client. Hot path: one pass over each list."""

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote_to_bytes

from bakerygw.core.http import Pairs, RequestHead

SESSION_COOKIE: Final = b"__Host-bakery-session"

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1, and what old clients send in the same role."""

_NEVER_TO_SERVICE: Final = _HOP_BY_HOP | {
    b"cf-connecting-ip",
    b"cf-connecting-ipv6",
    b"client-ip",
    b"content-length",
    b"expect",
    b"fastly-client-ip",
    b"forwarded",
    b"host",
    b"proxy",
    b"remote-user",
    b"traceparent",
    b"true-client-ip",
    b"via",
    b"x-api-key",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-forwarded",
    b"x-host",
    b"x-http-method",
    b"x-http-method-override",
    b"x-is-demo",
    b"x-method-override",
    b"x-proxyuser-ip",
    b"x-real-ip",
    b"x-remote-user",
    b"x-request-id",
    b"x-tenant",
    b"x-user-email",
    b"x-user-id",
    b"x-user-role",
}
"""Hop by hop, the gateway's to write, or the word of some proxy for who asks, from where, and by which method."""
_NEVER_TO_SERVICE_NOR_TRACESTATE: Final = _NEVER_TO_SERVICE | {b"tracestate"}
_IDENTITY_PREFIXES: Final = (
    b"x-authenticated-",
    b"x-demo-",
    b"x-forwarded-",
    b"x-gateway-",
    b"x-internal-",
    b"x-original-",
    b"x-rewrite-",
    b"x-subscription-",
    b"x-tenant-",
)
"""Whole families that services take for the gateway's word."""

_CREDENTIALS_IN_QUERIES: Final = frozenset({b"ticket", b"token"})

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_NEVER_TO_CLIENT: Final = _HOP_BY_HOP | {
    b"content-length",
    b"server",
    # Of two such fields the first counts (RFC 6797 section 8.1), and the gateway's own would come second.
    b"strict-transport-security",
    b"x-content-type-options",
    b"x-powered-by",
    b"x-request-id",
    # The gateway's finding alone. `Proxy-Status` passes: each hop adds its own entry to it (RFC 9209 section 2).
    b"x-subscription-grace",
}
_LOOKED_INTO: Final = frozenset({b"content-location", b"location", b"set-cookie"})
_SESSION_COOKIE_IN_LOWER_CASE: Final = SESSION_COOKIE.lower()
_NEVER_TO_CLIENT_PREFIXES: Final = (b"access-control-", b"ratelimit", b"x-internal-", b"x-ratelimit-")


def forward_headers(head: RequestHead, owed: Pairs, *, via: bytes) -> Pairs:
    """The end-to-end header fields of a request as its service is to get them.

    The client's own fields keep their order, case and duplicates. `owed` is what the gateway vouches for (identity,
    request id, trace); it is appended last, so no `Connection` option of the client can take it away. `via` is the
    gateway's own entry, e.g. `1.1 bakerygw` (RFC 9110 section 7.6.3). Host and framing are the connection's affair.
    A name with `_` never passes: many frameworks read `X_User_Id` and `X-User-Id` as the same variable. Nor does an API
    key, which is for the gateway alone, also where it is mistaken for a bearer token. Of a `Referer` whose query has a
    ticket or a token, as those of streams do, the query stays here.
    """
    dropped = _NEVER_TO_SERVICE if _continues_trace(head, owed) else _NEVER_TO_SERVICE_NOR_TRACESTATE
    fields = head.fields
    if b"connection" in fields:
        dropped = dropped | _options(fields[b"connection"])
    for value in fields.get(b"authorization", ()):
        if value[7:12] == b"bkry_" or (value[:1] in (b"A", b"a") and value[:6].lower() == b"apikey"):
            dropped = dropped | {b"authorization"}
    kept = []
    for pair in head.headers if b"referer" not in fields else _with_safe_referer(head):
        name = pair[0].lower()
        if name in dropped or b"_" in name or (name[:2] == b"x-" and name.startswith(_IDENTITY_PREFIXES)):
            continue
        if name == b"cookie" and SESSION_COOKIE in pair[1]:
            cookies = _without_session(pair[1])
            if cookies:
                kept.append((pair[0], cookies))
            continue
        kept.append(pair)
    kept += owed
    _append_forwarding(kept, head, via)
    return tuple(kept)


def reply_headers(headers: Pairs, *, authorities: Collection[str]) -> Pairs:
    """The header fields of a service's response as the client is to get them.

    `authorities` are those of all services, as `host[:port]`: behind the gateway they share one space of paths, so a
    `Location` or `Content-Location` that names any of them becomes relative. The session cookie, framing, CORS, rate
    limit, request id, grace, HSTS and `X-Content-Type-Options` are the gateway's to write.
    """
    dropped: Collection[bytes] = _NEVER_TO_CLIENT
    named = [value for name, value in headers if len(name) == 10 and name.lower() == b"connection"]
    if named:
        dropped = _NEVER_TO_CLIENT | _options(named)
    kept = []
    for pair in headers:
        name = pair[0].lower()
        if name in dropped or name.startswith(_NEVER_TO_CLIENT_PREFIXES):
            continue
        if name not in _LOOKED_INTO:
            kept.append(pair)
        elif name != b"set-cookie":
            kept.append((pair[0], _relative(pair[1], authorities)))
        elif pair[1].partition(b"=")[0].strip(b" \t").lower() != _SESSION_COOKIE_IN_LOWER_CASE:
            kept.append(pair)
    return tuple(kept)


def _options(values: Collection[bytes]) -> frozenset[bytes]:
    """The names that `Connection` fields list, in lower case."""
    return frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b","))


def _continues_trace(head: RequestHead, owed: Pairs) -> bool:
    """Whether a trusted peer's `tracestate` belongs to the trace that the gateway goes on with.

    Its `traceparent` must be the only one, and sound: only then has the gateway's own the same trace id (W3C Trace
    Context section 3.3: without a valid parent, the state is not to be used).
    """
    if not head.trusted or b"tracestate" not in head.fields:
        return False
    parents = head.fields.get(b"traceparent", ())
    return len(parents) == 1 and any(
        name == b"traceparent" and _trace_id(value) == _trace_id(parents[0]) for name, value in owed
    )


def _trace_id(traceparent: bytes) -> bytes:
    """W3C Trace Context section 3.2.2."""
    return traceparent[3:35]


def _without_session(cookies: bytes) -> bytes:
    """One `Cookie` value less the gateway's own session; the other cookies stay as they were spelt."""
    others = [part for part in cookies.split(b";") if part.partition(b"=")[0].strip(b" \t") != SESSION_COOKIE]
    return b";".join(others).strip(b" \t")


def _with_safe_referer(head: RequestHead) -> Pairs:
    """The fields with every `Referer` less its query, if that names a credential."""
    if not any(map(_names_credential, head.fields[b"referer"])):
        return head.headers
    kept = []
    for pair in head.headers:
        if pair[0].lower() != b"referer" or not _names_credential(pair[1]):
            kept.append(pair)
        elif not pair[1].startswith(b"?"):
            kept.append((pair[0], pair[1].partition(b"?")[0]))
    return tuple(kept)


def _names_credential(url: bytes) -> bool:
    """Whether the query has one of the parameters by which streams take credentials, percent-encoded or not."""
    query = url.partition(b"?")[2]
    return any(unquote_to_bytes(pair.partition(b"=")[0]) in _CREDENTIALS_IN_QUERIES for pair in query.split(b"&"))


def _append_forwarding(kept: list[tuple[bytes, bytes]], head: RequestHead, via: bytes) -> None:
    """Add where the request came from; only a trusted proxy's own account of that is carried on."""
    fields = head.fields
    peer = head.peer.encode()
    host = fields[b"host"][0] if b"host" in fields else b""
    if head.trusted:
        peer = b", ".join((*fields.get(b"x-forwarded-for", ()), peer))
        via = b", ".join((*fields.get(b"via", ()), via))
        host = nearest_host(fields.get(b"x-forwarded-host", ())) or host
    kept.append((b"X-Forwarded-For", peer))
    kept.append((b"X-Forwarded-Proto", b"https" if head.secure else b"http"))
    if host:
        kept.append((b"X-Forwarded-Host", host))
    kept.append((b"Via", via))


def nearest_host(values: tuple[bytes, ...]) -> bytes:
    """The host that the nearest hop names, the last of all; empty if that is none."""
    host = values[-1].rpartition(b",")[2].strip(b" \t") if values else b""
    return host if _HOST.fullmatch(host) is not None else b""


def _relative(location: bytes, authorities: Collection[str]) -> bytes:
    """`location` without scheme and authority if the authority is one of `authorities`, else unchanged."""
    scheme, separator, rest = location.partition(b"//")
    scheme = scheme.lower()
    if not separator or scheme not in (b"http:", b"https:", b""):
        return location
    end = min((at for at in map(rest.find, (b"/", b"?", b"#", b"\\")) if at >= 0), default=len(rest))
    # latin-1 maps every byte; a foreign authority then simply equals none of ours.
    authority = rest[:end].rpartition(b"@")[2].decode("latin-1")
    if _plain(authority) not in {_plain(own) for own in authorities}:
        return location
    path = rest[end:]
    if path[:1] != b"/":
        return b"/" + path
    # A path that begins like `//host` would itself be read as another authority (RFC 3986 section 4.2).
    return b"/." + path if path[1:2] in (b"/", b"\\") else path


def _plain(authority: str) -> str:
    """An authority in lower case, without the port that its scheme implies."""
    return authority.lower().removesuffix(":80").removesuffix(":443")
