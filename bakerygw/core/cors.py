"""Cross-origin resource sharing (Fetch standard): the gateway alone speaks it, for all services."""

from dataclasses import dataclass
from typing import Final

from bakerygw.core.http import Pairs, Reply, RequestHead

MAX_AGE_S: Final = 600
EXPOSED: Final = (
    b"X-Request-ID, RateLimit, RateLimit-Policy, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, "
    b"Retry-After, X-Subscription-Grace, Proxy-Status"
)
ALLOWED_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS: Final = (
    b"Accept, Accept-Language, Authorization, Cache-Control, Content-Language, Content-Type, Idempotency-Key, "
    b"If-Match, If-Modified-Since, If-None-Match, Last-Event-ID, Range, X-CSRF-Token, X-Request-ID, X-Tenant-ID, "
    b"traceparent, tracestate"
)

_VARY: Final = (b"Vary", b"Origin")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsPolicy:
    """Which origins may read answers in a browser. Origins are compared exactly."""

    origins: frozenset[bytes] = frozenset()
    """Such as `https://app.example`; `*` allows any, never with credentials."""
    credentials: bool = True

    def headers(self, head: RequestHead) -> Pairs:
        """What every answer to this request carries."""
        return self.headers_for(head.first(b"origin"))

    def headers_for(self, origin: bytes | None) -> Pairs:
        """The same, by origin; `Vary` always, since an answer without the header is also cached."""
        allowed = self._allowed(origin)
        if allowed is None:
            return (_VARY,)
        granted = ((b"Access-Control-Allow-Origin", allowed), (b"Access-Control-Expose-Headers", EXPOSED), _VARY)
        if self.credentials and allowed != b"*":
            return (*granted, (b"Access-Control-Allow-Credentials", b"true"))
        return granted

    def preflight(self, head: RequestHead) -> Reply | None:
        """The answer to a preflight, or `None` for any other request.

        An origin that is not allowed gets the same 204 without the headers that would
        let its browser go on.
        """
        if head.method != "OPTIONS" or b"origin" not in head.fields:
            return None
        if b"access-control-request-method" not in head.fields:
            return None
        if self._allowed(head.first(b"origin")) is None:
            return Reply(status=204)
        return Reply(
            status=204,
            headers=(
                (b"Access-Control-Allow-Methods", ALLOWED_METHODS),
                (b"Access-Control-Allow-Headers", ALLOWED_HEADERS),
                (b"Access-Control-Max-Age", b"%d" % MAX_AGE_S),
            ),
        )

    def _allowed(self, origin: bytes | None) -> bytes | None:
        if origin is None:
            return None
        if origin in self.origins:
            return origin
        return b"*" if b"*" in self.origins and not self.credentials else None
