"""What the store tests share: a telemetry that remembers, and links to a server."""

import time

from redis_server import RedisServer
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater

from bakerygw.core.breaker import Breaker
from bakerygw.stores.redis_link import RedisLink


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


def link_to(
    server: RedisServer,
    telemetry: RecordingTelemetry,
    *,
    username: str | None = None,
    password: str | None = None,
    db: int = 0,
    timeout_s: float = 0.5,
    breaker: Breaker | None = None,
) -> RedisLink:
    """A link on the real reactor, not started."""
    from twisted.internet import reactor  # noqa: PLC0415

    endpoint = TCP4ClientEndpoint(reactor, server.host, server.port)
    return RedisLink(
        reactor,
        endpoint,
        username=username,
        password=password,
        db=db,
        timeout_s=timeout_s,
        telemetry=telemetry,
        breaker=breaker,
    )


def pause(seconds: float) -> "Deferred[None]":
    """Let the reactor run for so long."""
    from twisted.internet import reactor  # noqa: PLC0415

    return deferLater(reactor, seconds, lambda: None)


async def until(link: RedisLink, status: str, within_s: float = 5.0) -> float:
    """Wait for a status; returns the seconds it took. AssertionError if it does not come."""
    begun = time.monotonic()
    while link.status != status:
        assert time.monotonic() - begun < within_s, f"still {link.status} after {within_s} s"
        await pause(0.01)
    return time.monotonic() - begun
