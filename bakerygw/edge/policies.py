"""The policies in force: one frozen value, swapped whole when the configuration is read again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bakerygw.core.cors import CorsPolicy
from bakerygw.core.http import Pairs, RequestHead
from bakerygw.core.limits import LimitRule
from bakerygw.core.problem import refuse
from bakerygw.core.routing import Router
from bakerygw.core.stacks import Stacks
from bakerygw.edge.credentials.requests import SessionCookies
from bakerygw.ports import Credentials, Scheme, Upstreams

HSTS: Final = ((b"Strict-Transport-Security", b"max-age=31536000; includeSubDomains"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What a request is judged by. A request keeps the value that it began with."""

    router: Router
    cors: CorsPolicy
    credentials: Mapping[Scheme, Credentials]
    """By what callers may identify themselves."""
    upstreams: Upstreams
    general_limit: LimitRule
    auth_limit: LimitRule
    grace_days: int
    max_body_bytes: int
    sessions: SessionCookies | None = None
    """Where the sessions of browsers are found; `None`: cookies are not looked at."""
    https_only: bool = False
    """Refuse what did not come over TLS, and say HSTS (RFC 6797)."""
    stacks: Stacks = field(default_factory=dict)
    """The limits that hold besides the general one or a route's own."""
    max_concurrent: int = 100
    """Requests of one tenant, or without a token of one address, that are proxied at the same time."""

    def standing(self, head: RequestHead) -> Pairs:
        """What every answer owes to this request by its transport and origin."""
        cors = self.cors.headers(head)
        return (*cors, *HSTS) if self.https_only else cors

    def require_secure(self, head: RequestHead) -> None:
        """Refuse plain HTTP from outside, but for `/health`, which load balancers ask plainly."""
        if self.https_only and not head.secure and head.path != b"/health":
            detail = "Use https; where a proxy ends TLS, it must be in TRUSTED_PROXIES and send X-Forwarded-Proto."
            raise refuse("insecure-transport", detail)
