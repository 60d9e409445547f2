"""What an API key may do, beside what holds for everybody: routes, methods, addresses, and a limit of its own."""

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from bakerygw.core.heads import plain_address
from bakerygw.core.http import RequestHead
from bakerygw.core.limits import LimitRule
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.routing import Route
from bakerygw.core.values import value

LIMIT_NAME: Final = "key"
"""The name of a key's own limit, as its caller sees it in the `RateLimit` header fields."""


@value
class KeyTerms:
    """The terms of one key. `None` sets no bound of that kind."""

    key_id: str
    paths: tuple[bytes, ...] | None
    """Prefixes of whole segments, as they are spelt in requests."""
    methods: frozenset[str] | None
    networks: tuple[IPv4Network | IPv6Network, ...] | None
    """From where it may be used."""
    limit: LimitRule | None
    """In place of the general limit."""

    def admits(self, client: str) -> bool:
        """Whether it may be used from this address; one that is none, as behind a UNIX socket, is in no network."""
        if self.networks is None:
            return True
        try:
            address = ip_address(plain_address(client))
        except ValueError:
            return False
        return any(address in network for network in self.networks)


def check_terms(terms: KeyTerms, head: RequestHead, route: Route) -> None:
    """Refuse what this key is not for, and what no key is for: critical operations, and ending a session.

    The address comes first, so that whoever has found a key learns nothing else. Paths are compared as sent, so another
    spelling of an allowed path is refused, never let pass. Raises `Refused` tenant-forbidden.
    """
    if not terms.admits(head.client):
        detail = f"This API key may not be used from the address {head.client}; have an operator create one for it."
        raise refuse("tenant-forbidden", detail, reason="key-address")
    if terms.paths is not None and not any(_is_below(head.path, path) for path in terms.paths):
        paths = [path.decode("latin-1") for path in terms.paths]
        raise _outside(f"This API key is only for {_listed(paths)}; have an operator create one for this.", terms)
    if terms.methods is not None and head.method not in terms.methods:
        detail = f"This API key may only {_listed(sorted(terms.methods))}; have an operator create one for more."
        raise _outside(detail, terms)
    if head.method in route.critical:
        detail = "No API key may do this, for it concerns the account itself; sign in with an account."
        raise refuse("tenant-forbidden", detail, reason="key-critical")
    if route.action == "logout":
        detail = "An API key has no session to sign out of; have an operator revoke the key."
        raise refuse("tenant-forbidden", detail, reason="key-logout")


def _is_below(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")


def _listed(names: list[str]) -> str:
    """The first few of them, in words."""
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")


def _outside(detail: str, terms: KeyTerms) -> Refused:
    members: dict[str, object] = {}
    if terms.paths is not None:
        members["allowed_routes"] = [path.decode("latin-1") for path in terms.paths]
    if terms.methods is not None:
        members["allowed_methods"] = sorted(terms.methods)
    return Refused(Problem(code="tenant-forbidden", detail=detail, reason="key-bounds", members=members))
