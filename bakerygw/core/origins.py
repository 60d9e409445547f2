"""Whether a request of a browser comes from a page that may act for its user (Fetch standard, Fetch Metadata)."""

from collections.abc import Collection

from bakerygw.core.forwarding import nearest_host
from bakerygw.core.http import RequestHead
from bakerygw.core.problem import refuse


def check_origin(head: RequestHead, allowed: Collection[bytes]) -> None:
    """Refuse what a browser says a page of another site has sent.

    `allowed` are origins such as `https://app.example`; the request's own is always allowed. Where neither
    `Origin` nor `Sec-Fetch-Site` is sent, nothing is known. Raises `Refused`: csrf, origin-forbidden.
    """
    for site in head.fields.get(b"sec-fetch-site", ()):
        if site.strip().lower() == b"cross-site":
            detail = "A page of another site sent this; the gateway's sessions are for pages of its own site alone."
            raise refuse("csrf", detail, reason="cross-site")
    origins = head.fields.get(b"origin", ())
    if not origins:
        return
    if len(origins) > 1 or (origins[0] not in allowed and origins[0].lower() != own_origin(head)):
        detail = "Pages of this origin may not act for a user who is signed in here; it must be in CORS_ORIGINS."
        raise refuse("origin-forbidden", detail, reason="session-origin")


def check_socket_origin(head: RequestHead, allowed: Collection[bytes], *, cookie: bool) -> None:
    """Refuse a WebSocket that a browser says a page of another site opens (RFC 6455 10.2).

    `allowed` are origins such as `https://app.example`, or `*` for any; the request's own always is, `null` never.
    No `Origin`, as programs send none, or `*` are not enough for the `cookie` of a session: it comes along by itself.
    Raises `Refused` origin-forbidden.
    """
    origins = head.fields.get(b"origin", ())
    if not origins and not cookie:
        return
    if len(origins) == 1 and origins[0] not in (b"null", b"*"):
        if origins[0] in allowed or origins[0].lower() == own_origin(head):
            return
        if b"*" in allowed and not cookie:
            return
    detail = "Pages of this origin may open no sockets here; it must be in CORS_ORIGINS."
    raise refuse("origin-forbidden", detail, reason="socket-origin")


def own_origin(head: RequestHead) -> bytes:
    """The origin of pages that this gateway serves, as this client reaches it; empty if it does not tell."""
    host = head.first(b"host") or b""
    if head.trusted:
        host = nearest_host(head.fields.get(b"x-forwarded-host", ())) or host
    scheme, port = (b"https://", b":443") if head.secure else (b"http://", b":80")
    return scheme + host.lower().removesuffix(port) if host else b""
