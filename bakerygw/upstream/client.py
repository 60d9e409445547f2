"""The services by name: which URL gets a request, and whether a failed one is worth a second try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.connection import Unanswered
from bakerygw.upstream.deadline import Deadlines
from bakerygw.upstream.dial import ConnectFailed, trust_root
from bakerygw.upstream.names import Names
from bakerygw.upstream.pool import Pool

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""RFC 9110 section 9.2.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlStats:
    """How one URL of a service stands."""

    url: str
    idle: int
    """Connections ready for use."""
    in_use: int
    """Connections with an exchange under way."""
    in_flight: int
    """Requests without a complete response, those waiting for a connection included."""
    requests: int
    """Exchanges begun since the start."""
    failures: int
    """Requests that got no usable response since the start."""


class _Target:
    """One URL and its count of failures."""

    __slots__ = ("failures", "pool")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.failures = 0

    async def request(self, request: UpstreamRequest, *, fresh: bool = False) -> UpstreamResponse:
        try:
            return await self.pool.request(request, fresh=fresh)
        except UpstreamFailed:
            self.failures += 1
            raise


class UpstreamClient:
    """Implements `ports.Upstreams` over one pool per URL."""

    def __init__(
        self,
        reactor: Any,
        services: Mapping[str, Sequence[str]],
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
        idle_timeout_s: float,
        keepalive_s: float,
        ca_file: str | None = None,
        names: Names | None = None,
        random: Random | None = None,
    ) -> None:
        """`services`: base URLs by service name. Opens nothing. Raises `ValueError` for a URL that is none,
        `OSError` for a CA file that can't be read. `names`: where look-ups are
        shared with others. `random` chooses among a service's URLs."""
        deadlines = Deadlines(connect_s=connect_timeout_s, first_byte_s=first_byte_timeout_s, idle_s=idle_timeout_s)
        secure = any(url.startswith("https:") for urls in services.values() for url in urls)
        trust = trust_root(ca_file) if secure else None
        names = names or Names(reactor)
        self._random = random or Random()  # noqa: S311  # balances load, guards nothing
        self._targets = {
            name: [
                _Target(Pool(reactor, url, deadlines=deadlines, keepalive_s=keepalive_s, trust=trust, names=names))
                for url in urls
            ]
            for name, urls in services.items()
            if urls
        }
        self._authorities = frozenset(target.pool.authority for targets in self._targets.values() for target in targets)

    def has(self, service: str) -> bool:
        """Whether a URL is configured."""
        return service in self._targets

    def all_authorities(self) -> frozenset[str]:
        """The authorities, `host[:port]`, of all URLs of all services."""
        return self._authorities

    async def request(self, service: str, request: UpstreamRequest) -> UpstreamResponse:
        """Send to one of the service's URLs, once more where that can't do harm. Raises `UpstreamFailed`.

        A second try is made if nothing was sent at all and there is another URL, or if the connection ended before any
        byte of a response, the method is idempotent and no body had been taken from the client.
        """
        targets = self._targets.get(service)
        if targets is None:
            raise UpstreamFailed("service-unavailable", "destination_not_found", f"no URL for {service}")
        target = targets[0] if len(targets) == 1 else self._choose(targets)
        try:
            return await target.request(request)
        except ConnectFailed:
            others = [other for other in targets if other is not target]
            if not others:
                raise
            again = self._choose(others)
        except Unanswered:
            body = request.body
            if request.method not in _IDEMPOTENT or (body is not None and body.length != 0):
                raise
            again = self._choose(targets)
        # Idle connections may all have died of the same cause, a restart of the service.
        return await again.request(request, fresh=True)

    def stats(self) -> dict[str, list[UrlStats]]:
        """By service, one entry for each URL."""
        return {
            name: [
                UrlStats(
                    url=target.pool.url,
                    idle=target.pool.idle,
                    in_use=target.pool.in_use,
                    in_flight=target.pool.outstanding,
                    requests=target.pool.requests,
                    failures=target.failures,
                )
                for target in targets
            ]
            for name, targets in self._targets.items()
        }

    def retire(self) -> None:
        """Keep no connection: idle ones end, the others when their exchange is over. Nothing is cut or refused."""
        for targets in self._targets.values():
            for target in targets:
                target.pool.retire()

    def close(self) -> None:
        """End every connection; requests under way fail, later ones are refused."""
        for targets in self._targets.values():
            for target in targets:
                target.pool.close()

    def _choose(self, targets: Sequence[_Target]) -> _Target:
        """The less busy of two taken at random: nearly as even as asking all, without herding to the least busy."""
        if len(targets) == 1:
            return targets[0]
        one, other = self._random.sample(targets, 2)
        return one if one.pool.outstanding <= other.pool.outstanding else other
