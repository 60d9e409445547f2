"""What the store tests share: a telemetry that remembers, and links to a server."""

import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater

from bakerygw.core.breaker import Breaker
from bakerygw.stores.invalidation import Invalidations
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.redis import RedisStore
from bakerygw.stores.redis_line import RedisAccess
from bakerygw.stores.redis_link import RedisLink
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer


class RecordingTelemetry:
    """A `StoreTelemetry` that keeps what it is told."""

    def __init__(self) -> None:
        self.round_trips: list[float] = []
        self.failures: list[str] = []
        self.degradations: list[bool] = []

    def round_trip(self, seconds: float) -> None:
        self.round_trips.append(seconds)

    def failure(self, kind: str) -> None:
        self.failures.append(kind)

    def degraded(self, yes: bool) -> None:
        self.degradations.append(yes)


def access_to(server: RedisServer, **about: Any) -> RedisAccess:
    """The way to the server on the real reactor; `about` are further fields of it."""
    from twisted.internet import reactor  # noqa: PLC0415

    return RedisAccess(reactor=reactor, endpoint=TCP4ClientEndpoint(reactor, server.host, server.port), **about)


def link_to(
    server: RedisServer,
    telemetry: RecordingTelemetry,
    *,
    timeout_s: float = 5.0,
    breaker: Breaker | None = None,
    **about: Any,
) -> RedisLink:
    """A link on the real reactor, not started; `about` are fields of its `RedisAccess`."""
    return RedisLink(access_to(server, **about), timeout_s=timeout_s, telemetry=telemetry, breaker=breaker)


def store_over(link: RedisLink, mirror: Mirror | None = None) -> RedisStore:
    """A store on the real reactor; its mirror is never trusted unless the test sees to that."""
    from twisted.internet import reactor  # noqa: PLC0415

    return RedisStore(link, mirror or Mirror(), reactor, time.time)


def invalidations_of(
    server: RedisServer, link: RedisLink, mirror: Mirror, *, signals: Any = None, **about: Any
) -> Invalidations:
    """What keeps the mirror true, on the real reactor, not started; `about` are fields of its `RedisAccess`."""
    return Invalidations(access_to(server, **about), link, mirror, name="test", signals=signals)


async def trusted(mirror: Mirror, wanted: bool = True, within_s: float = PATIENCE_S) -> float:
    """Wait until the mirror is trusted, or is not; returns the seconds it took."""
    from twisted.internet import reactor  # noqa: PLC0415

    begun = time.monotonic()
    while mirror.trusted(reactor.seconds()) != wanted:
        assert time.monotonic() - begun < within_s, f"trusted is not {wanted} after {within_s} s"
        await pause(0.005)
    return time.monotonic() - begun


def pause(seconds: float) -> "Deferred[None]":
    """Let the reactor run for so long."""
    from twisted.internet import reactor  # noqa: PLC0415

    return deferLater(reactor, seconds, lambda: None)


async def caught_up(link: RedisLink) -> None:
    """Until what Redis tells on other connections of all that was done before has come, too."""
    await link.call("PING")  # its answer is written behind that
    for _ in range(3):
        await pause(0)


async def until(link: RedisLink, status: str, within_s: float = PATIENCE_S) -> float:
    """Wait for a status; returns the seconds it took. AssertionError if it does not come."""
    begun = time.monotonic()
    while link.status != status:
        assert time.monotonic() - begun < within_s, f"still {link.status} after {within_s} s"
        await pause(0.01)
    return time.monotonic() - begun
