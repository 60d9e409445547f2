"""Credentials of what stays open: browsers can give neither an `EventSource` nor a `WebSocket` a header field."""

from dataclasses import replace
from typing import Final
from urllib.parse import unquote_to_bytes

from bakerygw.core.claims import MAX_TOKEN_BYTES
from bakerygw.core.http import RequestHead
from bakerygw.core.origins import check_socket_origin
from bakerygw.core.problem import Refused, refuse
from bakerygw.core.routing import Match, Route
from bakerygw.edge.credentials.requests import presented
from bakerygw.edge.policies import Policies
from bakerygw.ports import Scheme

BEARER_PROTOCOL: Final = b"bearer"
"""The subprotocol behind which a `WebSocket` offers its access token."""
_PARAMETERS: Final[tuple[tuple[bytes, Scheme], ...]] = ((b"ticket", "ticket"), (b"token", "bearer"))


def presented_on(head: RequestHead, match: Match | None, policies: Policies) -> tuple[Scheme, bytes]:
    """The one credential of a request, as `presented`; for what stays open also one of the query or a subprotocol.

    Raises `Refused`: token-missing, token-invalid, bad-request (several at once); for a session csrf and
    origin-forbidden.
    """
    if match is None or match.route.kind != "stream":
        return presented(head, policies.credentials, policies.sessions)
    found: list[tuple[Scheme, bytes]] = []
    for parameter, kind in _PARAMETERS:
        values = query_values(head.query, parameter)
        if len(values) > 1:
            raise _invalid(f"Send {parameter.decode()} once in the query.", "repeated-parameter")
        found.extend((kind, value) for value in values)
    if is_socket(match.route):
        token = _bearer_protocol(head)
        if token is not None:
            found.append(("bearer", token))
    if len(found) + (b"authorization" in head.fields) > 1:
        detail = "Send one credential only: the Authorization header, a ticket, a token, or the subprotocol."
        raise refuse("bad-request", detail, reason="several-credentials")
    if found:
        scheme, secret = found[0]
        if not secret or len(secret) > MAX_TOKEN_BYTES:
            raise _invalid("The credential is empty or too long; get another one.", "malformed-parameter")
        return scheme, secret
    scheme, secret = presented(head, policies.credentials, policies.sessions)
    if scheme == "session" and is_socket(match.route):
        check_socket_origin(head, policies.cors.origins, cookie=True)
    return scheme, secret


def is_socket(route: Route) -> bool:
    """Whether a WebSocket is spoken on this route."""
    return route.action == "training"


def with_query_tenant(head: RequestHead) -> RequestHead:
    """The head with `?tenant_id=` read as if it were sent as `X-Tenant-ID`; sent twice it is no id."""
    values = query_values(head.query, b"tenant_id")
    return with_tenant(head, b",".join(values)) if values else head


def with_tenant(head: RequestHead, tenant_id: bytes) -> RequestHead:
    """The head with one more tenant named as by `X-Tenant-ID`."""
    names = (*head.fields.get(b"x-tenant-id", ()), tenant_id)
    return replace(head, fields={**head.fields, b"x-tenant-id": names})


def query_values(query: bytes | None, name: bytes) -> list[bytes]:
    """Every value under this name in a query, names and values percent-decoded (WHATWG URL 5.1)."""
    if query is None:
        return []
    pairs = (pair.partition(b"=") for pair in query.split(b"&"))
    return [unquote_to_bytes(value.replace(b"+", b" ")) for key, _, value in pairs if unquote_to_bytes(key) == name]


def _bearer_protocol(head: RequestHead) -> bytes | None:
    """The token behind `bearer` among the subprotocols that are offered, if `bearer` is."""
    fields = head.fields.get(b"sec-websocket-protocol", ())
    offered = [name.strip(b" \t") for field in fields for name in field.split(b",")]
    if BEARER_PROTOCOL not in offered:
        return None
    behind = offered[offered.index(BEARER_PROTOCOL) + 1 :]
    if not behind or not behind[0] or BEARER_PROTOCOL in behind:
        raise _invalid("Offer the subprotocol 'bearer' once, and the access token next to it.", "bearer-protocol")
    return behind[0]


def _invalid(detail: str, reason: str) -> Refused:
    return refuse("token-invalid", detail, reason=reason)
