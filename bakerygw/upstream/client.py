"""The services by name: which URL gets a request, and whether a failed one is worth a second try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from bakerygw.core.breaker import BreakerState
from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.connection import Unanswered
from bakerygw.upstream.deadline import Deadlines
from bakerygw.upstream.dial import ConnectFailed, trust_root
from bakerygw.upstream.names import Names
from bakerygw.upstream.pool import Pool, TurnedAway
from bakerygw.upstream.targets import Target, Targets

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""RFC 9110 section 9.2.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlStats:
    """How one URL of a service stands."""

    url: str
    breaker: BreakerState
    retry_in_s: float
    """Until the breaker lets a probe pass; 0 while it is closed."""
    ailing: bool
    """The latest looks at its health page found it ill: others are preferred."""
    idle: int
    """Connections ready for use."""
    in_use: int
    """Connections with an exchange under way."""
    in_flight: int
    """Requests without a complete response, those waiting for a connection included."""
    sockets: int
    """Connections that go on in another protocol; they are none of the above."""
    requests: int
    """Exchanges begun since the start."""
    failures: int
    """Tries that got no usable response since the start."""


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
        chance = random or Random()  # noqa: S311  # balances load, guards nothing
        self._clock = reactor
        self._services: dict[str, Targets] = {}
        for name, urls in services.items():
            if urls:
                pools = [
                    Pool(reactor, url, deadlines=deadlines, keepalive_s=keepalive_s, trust=trust, names=names)
                    for url in urls
                ]
                self._services[name] = Targets(name, pools, clock=reactor, random=chance)
        self._authorities = frozenset(
            target.pool.authority for targets in self._services.values() for target in targets.all
        )

    def has(self, service: str) -> bool:
        """Whether a URL is configured."""
        return service in self._services

    def all_authorities(self) -> frozenset[str]:
        """The authorities, `host[:port]`, of all URLs of all services."""
        return self._authorities

    async def request(self, service: str, request: UpstreamRequest) -> UpstreamResponse:
        """Send to one of the service's URLs, once more where that can't do harm. Raises `UpstreamFailed`.

        A second try is made, within the service's budget, if nothing was sent at all and there is another URL, or if
        the connection ended before any byte of a response, the method is idempotent and no body had been taken from
        the client. Nothing is tried while the breakers of all URLs refuse: that is `service-unavailable` at once.
        """
        targets = self._services.get(service)
        if targets is None:
            raise UpstreamFailed("service-unavailable", "destination_not_found", f"no URL for {service}")
        # While all is well the breaker costs this check, the mark's way in and out, and one addition in `answered`.
        target = targets.less_busy(targets.ready, request.upgrade) if targets.calm else targets.choose(request)
        breaker = target.breaker
        mark = breaker.mark
        try:
            response = await target.pool.request(request)
        except UpstreamFailed as failure:
            again = _where_again(targets, target, mark, request, failure)
            if again is None:
                raise
        except BaseException:  # cancelled
            breaker.abandon(mark)
            raise
        else:
            targets.answered(target, mark)
            if response.onward is not None:
                targets.went_on(target, response.onward)
            return response
        return await _repeat(targets, again, request)

    def breaker(self, service: str) -> BreakerState:
        """How the service's breakers stand, of several URLs' the best; closed for a service without a URL."""
        targets = self._services.get(service)
        return "closed" if targets is None else targets.state()

    def looked(self, service: str, url: str, ill: bool) -> None:
        """Take in how a look at its `/health` found one of the service's URLs."""
        if service in self._services:
            self._services[service].looked(url, ill)

    def take_over(self, older: "UpstreamClient") -> None:
        """Begin with what the client of an older configuration knows of the URLs that both have."""
        for name, targets in self._services.items():
            if name in older._services:
                targets.take_over(older._services[name])

    def stats(self) -> dict[str, list[UrlStats]]:
        """By service, one entry for each URL."""
        now = self._clock.seconds()
        return {
            name: [
                UrlStats(
                    url=target.pool.url,
                    breaker=target.breaker.state(now),
                    retry_in_s=round(target.breaker.retry_in_s(now), 3),
                    ailing=target.ailing,
                    idle=target.pool.idle,
                    in_use=target.pool.in_use,
                    in_flight=target.pool.outstanding,
                    sockets=target.pool.sockets,
                    requests=target.pool.requests,
                    failures=target.failures,
                )
                for target in targets.all
            ]
            for name, targets in self._services.items()
        }

    def retire(self) -> None:
        """Keep no connection: idle ones end, the others when their exchange is over. Nothing is cut or refused."""
        for targets in self._services.values():
            for target in targets.all:
                target.pool.retire()

    def close(self) -> None:
        """End every connection; requests under way fail, later ones are refused."""
        for targets in self._services.values():
            for target in targets.all:
                target.pool.close()


def _where_again(
    targets: Targets, failed: Target, mark: int, request: UpstreamRequest, failure: UpstreamFailed
) -> Target | None:
    """Count a failed try, and say where to make the second, if anywhere."""
    failed.failures += 1
    again = None
    if isinstance(failure, Unanswered):
        body = request.body
        if request.method in _IDEMPOTENT and (body is None or body.length == 0):
            again = targets.for_second_try(failed, request, same=True)
    elif isinstance(failure, ConnectFailed | TurnedAway):
        again = targets.for_second_try(failed, request, same=False)
    if again is not failed:  # at the same URL only the second try counts: the connection may just have been too old
        targets.failed(failed, mark, failure)
    return again


async def _repeat(targets: Targets, target: Target, request: UpstreamRequest) -> UpstreamResponse:
    """The second try."""
    mark = target.breaker.mark
    try:
        # Idle connections may all have died of the same cause, a restart of the service.
        response = await target.pool.request(request, fresh=True)
    except UpstreamFailed as failure:
        target.failures += 1
        targets.failed(target, mark, failure)
        raise
    except BaseException:  # cancelled
        target.breaker.abandon(mark)
        raise
    targets.answered(target, mark)
    if response.onward is not None:
        targets.went_on(target, response.onward)
    return response
