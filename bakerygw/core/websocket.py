"""The opening handshake of WebSocket (RFC 6455 section 4) on both of its sides, and the codes that end it."""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from hashlib import sha1
from typing import Final
from urllib.parse import unquote_to_bytes

from bakerygw.core.http import Pairs, RequestHead
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.values import value

VERSION: Final = b"13"
MAX_REASON_BYTES: Final = 123
"""Of a close frame's 125 two are the code's (RFC 6455 section 5.5)."""
BEARER: Final = "bearer"
"""The subprotocol, in any case, behind which a page offers its access token, as it can send no header of its own."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRETS_IN_QUERY: Final = frozenset({b"ticket", b"token"})
_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
"""Those below 3000 that an endpoint may send (the registry of RFC 6455 section 11.7)."""


class NotOffered(ValueError):
    """A service has chosen a subprotocol that its client has not offered; `str()` says so."""


@value
class Handshake:
    """A client's offer."""

    key: bytes
    protocols: tuple[str, ...]
    """In the client's order of preference."""


def handshake_of(head: RequestHead, *, offers_upgrade: bool) -> Handshake:
    """The offer of a request (RFC 6455 section 4.2.1).

    `offers_upgrade`: it is HTTP/1.1, and its `Connection` allows what its `Upgrade` names. Raises `Refused`:
    upgrade-required (no WebSocket, or another version of it), bad-request (not a well-formed handshake).
    """
    fields = head.fields
    upgrades = {part.strip(b" \t").lower() for each in fields.get(b"upgrade", ()) for part in each.split(b",")}
    if not offers_upgrade or head.method != "GET" or b"websocket" not in upgrades:
        raise _upgrade_required("Ask for it as a WebSocket: a GET over HTTP/1.1 that offers to upgrade to websocket.")
    versions = fields.get(b"sec-websocket-version", ())
    if len(versions) > 1:
        raise refuse("bad-request", "Send one Sec-WebSocket-Version: 13.", reason="websocket-version")
    if versions != (VERSION,):
        raise _upgrade_required("Speak version 13 of WebSocket, the one of RFC 6455.")
    keys = fields.get(b"sec-websocket-key", ())
    if len(keys) != 1 or not _is_key(keys[0]):
        detail = "Send one Sec-WebSocket-Key: 16 random bytes in base64."
        raise refuse("bad-request", detail, reason="websocket-key")
    return Handshake(key=keys[0], protocols=_protocols(fields.get(b"sec-websocket-protocol", ())))


def _upgrade_required(detail: str) -> Refused:
    headers = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Version", VERSION))
    return Refused(Problem(code="upgrade-required", detail=detail, headers=headers))


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(b64decode(key, validate=True)) == 16
    except Base64Error:
        return False


def _protocols(values: Sequence[bytes]) -> tuple[str, ...]:
    offered = [part.strip(b" \t") for each in values for part in each.split(b",")]
    if len(set(offered)) != len(offered) or not all(map(_TOKEN.fullmatch, offered)):
        detail = "Offer in Sec-WebSocket-Protocol each subprotocol once, by a name of letters, digits and signs."
        raise refuse("bad-request", detail, reason="websocket-protocol")
    return tuple(each.decode("ascii") for each in offered)


def accept_of(key: bytes) -> bytes:
    """What `Sec-WebSocket-Accept` must be for this key."""
    return b64encode(sha1(key + _GUID).digest())  # noqa: S324  what RFC 6455 asks for; it guards nothing


def without_bearer(protocols: Sequence[str]) -> tuple[str, ...]:
    """The subprotocols that are for the service: without `bearer` and the token that stands behind it."""
    at = _place_of_bearer(protocols)
    return tuple(protocols) if at is None else (*protocols[:at], *protocols[at + 2 :])


def answered_protocol(chosen: str | None, offered: Sequence[str]) -> str | None:
    """What the client is told: the service's choice, else `bearer` as it was offered, else nothing."""
    at = _place_of_bearer(offered)
    return chosen if chosen is not None or at is None else offered[at]


def _place_of_bearer(protocols: Sequence[str]) -> int | None:
    return next((at for at, name in enumerate(protocols) if name.lower() == BEARER), None)


def without_secrets(head: RequestHead) -> bytes:
    """The target byte for byte, but for the parameters of its query that are credentials, however they are spelt."""
    if head.query is None:
        return head.target
    parts = head.query.split(b"&")
    kept = [part for part in parts if unquote_to_bytes(part.partition(b"=")[0]) not in _SECRETS_IN_QUERY]
    if len(kept) == len(parts):
        return head.target
    return head.path + b"?" + b"&".join(kept) if kept else head.path


def chosen_protocol(headers: Pairs, key: bytes, offered: Sequence[str]) -> str | None:
    """The subprotocol that a service has chosen in its 101 to the key that was sent (RFC 6455 section 4.2.2).

    Raises `ValueError`, with why, for a 101 that is no sound answer; `NotOffered` if the client has its part in that.
    """
    fields: dict[bytes, list[bytes]] = {}
    for name, its in headers:
        fields.setdefault(name.lower(), []).append(its.strip(b" \t"))
    if [each.lower() for each in fields.get(b"upgrade", [])] != [b"websocket"]:
        raise ValueError("101 to another protocol")
    if fields.get(b"sec-websocket-accept") != [accept_of(key)]:
        raise ValueError("wrong Sec-WebSocket-Accept")
    if b"sec-websocket-extensions" in fields:
        raise ValueError("an extension that was not offered")
    chosen = fields.get(b"sec-websocket-protocol", [])
    if not chosen:
        return None
    choice = chosen[0].decode("latin-1")
    if len(chosen) > 1 or choice not in offered:
        raise NotOffered("a subprotocol that was not offered")
    return choice


def close_fault(code: int | None, reason: bytes) -> tuple[int, str] | None:
    """Why a close frame is none that an endpoint may send, and the code to fail with (RFC 6455 section 7.4)."""
    if code is not None and code not in _CODES and not 3000 <= code <= 4999:
        return 1002, f"close code {code} is not for the wire"
    try:
        reason.decode()
    except UnicodeDecodeError:
        return 1007, "the reason is not UTF-8"
    return None


def cut_reason(reason: bytes) -> bytes:
    """A reason that is UTF-8, as far as there is room for it, cut between two characters."""
    return reason[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode()
