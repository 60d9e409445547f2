"""From parsed request lines and fields to a `RequestHead` that the rest may trust (RFC 9112 §3, §6)."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from bakerygw.core.http import Pairs, RequestHead
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.routing import check_target

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ALLOW: Final = (b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")

MAX_LENGTH_DIGITS: Final = 15
"""A petabyte: longer `Content-Length` values are attacks on somebody's integer."""

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_METHOD_TOKEN = re.compile(rb"[A-Za-z!#$%&'*+.^_`|~0-9-]{1,32}(?: |\Z)")

Network = IPv4Network | IPv6Network

UNKNOWN: Final = "unknown"
"""The address of a peer that has none, behind a UNIX socket (RFC 7239 section 6.2)."""


class TrustedProxies:
    """The networks whose forwarding headers are believed.

    So is whoever may open a UNIX socket that we listen on: the permissions of its file decide.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)
        self.trusts = lru_cache(4096)(self._trusts)

    def _trusts(self, address: str) -> bool:
        if address == UNKNOWN:
            return True
        try:
            parsed = ip_address(plain_address(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client(self, peer: str, forwarded_for: tuple[bytes, ...]) -> str:
        """The address nearest to the client that every hop between vouches for.

        Walks `X-Forwarded-For` from the right, past trusted proxies. An entry that is
        no address ends the walk, and the address before it stands.
        """
        nearest = peer
        for entry in reversed(b",".join(forwarded_for).split(b",")):
            address = _forwarded_address(entry)
            if address is None:
                return nearest
            nearest = address
            if not self.trusts(address):
                return nearest
        return nearest


def _nearest(values: tuple[bytes, ...]) -> bytes:
    """The last entry of a comma separated list: what the nearest hop said."""
    return values[-1].rpartition(b",")[2].strip() if values else b""


def _forwarded_address(entry: bytes) -> str | None:
    """An address out of one `X-Forwarded-For` entry, its port and zone removed."""
    text = entry.strip().decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return plain_address(str(ip_address(text.partition("%")[0])))
    except ValueError:
        return None


@lru_cache(8192)
def plain_address(address: str) -> str:
    """An IPv4 address that came mapped into IPv6 (RFC 4291 section 2.5.5.2) as itself; others as they are."""
    if not address.lower().startswith("::ffff:"):
        return address
    mapped = IPv6Address(address.partition("%")[0]).ipv4_mapped
    return address if mapped is None else str(mapped)


@lru_cache(8192)
def client_subject(client: str) -> str:
    """The name under which a client's address is limited: IPv4 as it is, IPv6 by its /64."""
    try:
        address = ip_address(client)
    except ValueError:
        return "local"  # a UNIX socket has no address
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False).network_address) + "/64"
    return str(address)


def bad_method(received: bytes) -> Refused:
    """The refusal for a request line whose method the parser does not know; `received` may end within it."""
    if _METHOD_TOKEN.match(received):
        return refuse("method-not-implemented", "Use GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS.", close=True)
    return refuse("bad-request", "Send an HTTP/1.1 request; this is none.", reason="no-http", close=True)


def _sound_method(method: bytes) -> str:
    name = method.decode("ascii")
    if name in METHODS:
        return name
    detail = "Use GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS."
    if name in ("CONNECT", "TRACE"):
        raise Refused(Problem(code="method-not-allowed", detail=detail, headers=(ALLOW,), close=True))
    raise refuse("method-not-implemented", detail, close=True)


def body_length(fields: dict[bytes, tuple[bytes, ...]], version: str) -> int | None:
    """The length that the framing fields promise: 0 without a body, `None` for a chunked one."""
    codings = fields.get(b"transfer-encoding")
    lengths = fields.get(b"content-length")
    if codings is not None:
        if lengths is not None or version != "1.1" or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise refuse(
                "bad-request",
                "Send either one Content-Length or, in HTTP/1.1, exactly one `Transfer-Encoding: chunked`.",
                reason="framing",
                close=True,
            )
        return None
    if lengths is None:
        return 0
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > MAX_LENGTH_DIGITS:
        raise refuse("bad-request", "Send Content-Length once, as one decimal number.", reason="framing", close=True)
    return int(lengths[0])


def read_head(
    *,
    method: bytes,
    target: bytes,
    headers: Pairs,
    version: str,
    peer: str,
    tls: bool,
    proxies: TrustedProxies,
) -> RequestHead:
    """The head as one sound value. Raises `Refused`, always with `close`, where it is not.

    Where nothing but Host or target is wrong, the refusal knows the head, so that its
    answer can carry what every answer to such a request does.
    """
    if version not in ("1.0", "1.1"):
        raise refuse("bad-request", "Use HTTP/1.1: no other version is known here.", reason="version", close=True)
    sound_method = _sound_method(method)
    fields: dict[bytes, tuple[bytes, ...]] = {}
    for name, value in headers:
        key = name.lower()
        held = fields.get(key)
        fields[key] = (value,) if held is None else (*held, value)
    length = body_length(fields, version)
    hosts = fields.get(b"host", ())
    fault: Refused | None = None
    path, query = target.partition(b"?")[0], None
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        fault = refuse("bad-request", "Send exactly one valid Host header.", reason="host", close=True)
    elif target != b"*" or sound_method != "OPTIONS":
        try:
            path, query = check_target(target)
        except Refused as refusal:
            fault = _final(refusal)
    trusted = proxies.trusts(peer)
    client, secure = peer, tls
    if trusted:
        client = proxies.client(peer, fields.get(b"x-forwarded-for", ()))
        secure = secure or _nearest(fields.get(b"x-forwarded-proto", ())).lower() == b"https"
    head = RequestHead(
        method=sound_method,
        target=target,
        path=path,
        query=query,
        headers=headers,
        fields=fields,
        length=length,
        peer=peer,
        client=client,
        trusted=trusted,
        secure=secure,
    )
    if fault is not None:
        fault.head = head
        raise fault
    return head


def _final(refusal: Refused) -> Refused:
    """The same refusal, as the last on its connection."""
    problem = refusal.problem
    return refuse(problem.code, problem.detail, reason=problem.reason or "target", close=True)
