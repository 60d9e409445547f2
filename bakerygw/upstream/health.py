"""Asking services how they are, in the background, and telling what was seen last."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.ports import ServiceHealth, UpstreamFailed, UpstreamRequest
from bakerygw.upstream.deadline import Deadlines
from bakerygw.upstream.dial import trust_root
from bakerygw.upstream.names import Names
from bakerygw.upstream.pool import Pool

PROBE_TIMEOUT_S: Final = 2.0
"""A service that needs longer to say that it is well is not."""

Status = Literal["healthy", "unhealthy", "unknown"]
UNKNOWN: Final = ServiceHealth(status="unknown", latency_ms=None, since=None, checked_at=None, detail="not checked yet")


class ProbeFailed(Exception):  # named like the other refusals
    """A service is not healthy; `str()` says why in a few words."""

    def __init__(self, why: str, *, ill: bool = True) -> None:
        """`ill`: it has trouble; else it may just have no such page."""
        super().__init__(why)
        self.ill = ill


class Probe(Protocol):
    """One look at one URL."""

    async def __call__(self, url: str) -> None:
        """Return if healthy. Raises `ProbeFailed`."""


class HttpProbe:
    """`GET /health` by the same way that requests take, on connections of its own. 2xx is healthy; no answer, 5xx and
    429 are ill.

    Redirects are not followed, and the body is not read.
    """

    def __init__(
        self,
        reactor: Any,
        urls: Sequence[str],
        *,
        ca_file: str | None = None,
        names: Names | None = None,
        timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        """`urls`: all that will be asked for. `names`: where look-ups are shared with others. `timeout_s` covers
        everything from connecting to the response's head."""
        self._clock: IReactorTime = reactor
        self._timeout_s = timeout_s
        trust = trust_root(ca_file) if any(url.startswith("https:") for url in urls) else None
        deadlines = Deadlines(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s)
        names = names or Names(reactor)
        self._pools = {
            url: Pool(reactor, url, deadlines=deadlines, keepalive_s=0, trust=trust, names=names) for url in urls
        }

    async def __call__(self, url: str) -> None:
        """Ask once. Raises `ProbeFailed`."""
        asking = Deferred.fromCoroutine(self._status(url))
        asking.addTimeout(self._timeout_s, self._clock)
        try:
            status = await asking
        except DeferredTimeoutError:
            raise ProbeFailed("no answer in time") from None
        except UpstreamFailed as failure:
            raise ProbeFailed(failure.error.replace("_", " ")) from failure
        if not 200 <= status < 300:
            raise ProbeFailed(f"answered {status}", ill=status >= 500 or status == 429)

    def close(self) -> None:
        """End every connection."""
        for pool in self._pools.values():
            pool.close()

    async def _status(self, url: str) -> int:
        request = UpstreamRequest(
            method="GET",
            target=b"/health",
            headers=((b"User-Agent", b"bakerygw-health"), (b"Connection", b"close")),
            body=None,
        )
        response = await self._pools[url].request(request, fresh=True)
        response.body.stop()
        return response.status


class HealthChecks:
    """Implements `ports.HealthSource`: probes every URL again and again, answers from what it saw."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        probe: Probe,
        services: Mapping[str, Sequence[str]],
        clock: IReactorTime,
        now: Callable[[], float],
        *,
        every_s: float,
        ttl_s: float,
        on_look: Callable[[str, str, bool], None] | None = None,
    ) -> None:
        """`now` gives Unix seconds. What is older than `ttl_s` is told as unknown. A service with several URLs is
        healthy if one is. `on_look(service, url, ill)` is called after each look at a URL."""
        self._probe, self._clock, self._now = probe, clock, now
        self._services = {name: tuple(urls) for name, urls in services.items() if urls}
        self._every_s, self._ttl_s, self._on_look = every_s, ttl_s, on_look
        self._seen = dict.fromkeys(self._services, UNKNOWN)
        self._loop = LoopingCall(self._round)
        self._loop.clock = clock
        self._probing: Deferred[Any] | None = None

    def start(self) -> None:
        """Probe at once, then every `every_s` seconds."""
        self._loop.start(self._every_s).addErrback(self._failed)

    def stop(self) -> None:
        """Probe no more; what is under way is cancelled. What was seen stays until it is too old."""
        if self._loop.running:
            self._loop.stop()
        if self._probing is not None:
            self._probing.cancel()

    def services(self) -> Mapping[str, ServiceHealth]:
        """What was last seen of each service with a URL, by name."""
        oldest = self._now() - self._ttl_s
        return {
            name: seen if seen.checked_at is None or seen.checked_at >= oldest else _stale(seen, self._ttl_s)
            for name, seen in self._seen.items()
        }

    def _round(self) -> Deferred[Any]:
        """All services at once; the next round waits for this one, and no failure ends the loop."""
        checks = [Deferred.fromCoroutine(self._check(name, urls)) for name, urls in self._services.items()]
        for check in checks:
            check.addErrback(self._failed)
        probing = self._probing = DeferredList(checks)
        return probing

    async def _check(self, name: str, urls: Sequence[str]) -> None:
        asked = [Deferred.fromCoroutine(self._look(name, url)) for url in urls]
        looks: list[tuple[float | None, str]] = []
        try:
            for look in asked:
                looks.append(await look)  # noqa: PERF401  # an await in a comprehension makes an async generator
        except CancelledError:
            for look in asked:
                look.addErrback(lambda _: None)
                look.cancel()
            raise
        latencies = [latency for latency, _ in looks if latency is not None]
        if latencies:
            self._saw(name, "healthy", min(latencies), "")
        else:
            self._saw(name, "unhealthy", None, looks[0][1])

    async def _look(self, name: str, url: str) -> tuple[float | None, str]:
        """Milliseconds that a healthy answer took, or `None` and why there was none."""
        began = self._clock.seconds()
        found: tuple[float | None, str]
        ill = False
        try:
            await self._probe(url)
        except ProbeFailed as failure:
            found, ill = (None, str(failure)), failure.ill
        else:
            found = (self._clock.seconds() - began) * 1000, ""
        if self._on_look is not None:
            self._on_look(name, url, ill)
        return found

    def _saw(self, name: str, status: Status, latency_ms: float | None, detail: str) -> None:
        now = self._now()
        before = self._seen[name]
        changed = before.status != status
        self._seen[name] = ServiceHealth(
            status=status,
            latency_ms=latency_ms,
            since=now if changed else before.since,
            checked_at=now,
            detail=detail,
        )

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("health.probe.failed", failure)


def _stale(seen: ServiceHealth, ttl_s: float) -> ServiceHealth:
    """What is left of a look that is too old."""
    since = None if seen.checked_at is None else seen.checked_at + ttl_s
    return replace(seen, status="unknown", latency_ms=None, since=since, detail="not checked lately")
