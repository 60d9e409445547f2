"""Health as callers see it, from cached state alone: no page here waits for anything."""

from collections.abc import Callable, Collection
from typing import Final

from bakerygw.core.breaker import BreakerState
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.times import iso_time
from bakerygw.edge.pages.common import json_reply, read_only_method
from bakerygw.ports import HealthSource, ServiceHealth, StoreLink

NOT_PROBED: Final = ServiceHealth(status="unknown", latency_ms=None, since=None, checked_at=None, detail="")
"""What is known of a service before its first probe."""


class HealthPages:
    """`GET /health` and `GET /api/v1/health`: always 200, the `status` member tells.

    `services` are the names of all services with a URL; those that were not probed yet are "unknown". `breaker` tells
    how a service's breaker stands. `now` is Unix seconds.
    """

    def __init__(
        self,
        *,
        health: HealthSource,
        link: StoreLink,
        services: Collection[str],
        breaker: Callable[[str], BreakerState],
        version: str,
        now: Callable[[], float],
    ) -> None:
        self._health, self._link, self._version, self._now = health, link, version, now
        self._breaker = breaker
        self._names = tuple(sorted(services))

    def reply_to(self, head: RequestHead) -> Reply:
        """The page at the head's path; a HEAD request gets the whole reply, whose body is dropped on delivery.

        Raises `Refused` with `method-not-allowed` or `not-found`.
        """
        pages = {b"/health": self.public, b"/api/v1/health": self.detailed}
        page = pages.get(head.path)
        if page is None:
            raise Refused(Problem(code="not-found", detail="There is no such page; see /docs for those that are."))
        read_only_method(head)
        return page()

    def public(self) -> Reply:
        """The overall status, one word for each service, and the state of the way to Redis at this moment."""
        seen = self._seen()
        return json_reply({**self._summary(seen), "services": {_shown(name): it.status for name, it in seen.items()}})

    def detailed(self) -> Reply:
        """For each service also latency, since when and its breaker; never an address or the text of an error."""
        seen = self._seen()
        rows = {_shown(name): {**_row(it), "breaker": self._breaker(name)} for name, it in seen.items()}
        return json_reply({**self._summary(seen), "services": rows})

    def _seen(self) -> dict[str, ServiceHealth]:
        cached = self._health.services()
        return {name: cached.get(name, NOT_PROBED) for name in self._names}

    def _summary(self, seen: dict[str, ServiceHealth]) -> dict[str, object]:
        redis = self._link.status
        return {
            "status": _overall([it.status for it in seen.values()], store_up=redis != "disconnected"),
            "version": self._version,
            "redis": redis,
            "timestamp": iso_time(self._now()),
        }


def _row(it: ServiceHealth) -> dict[str, object]:
    return {
        "status": it.status,
        "latency_ms": None if it.latency_ms is None else round(it.latency_ms, 2),
        "since": iso_time(it.since),
    }


def _overall(statuses: list[str], *, store_up: bool) -> str:
    if statuses and all(status == "unhealthy" for status in statuses):
        return "unhealthy"
    return "healthy" if store_up and all(status == "healthy" for status in statuses) else "degraded"


def _shown(name: str) -> str:
    """A service's name as it stands in its path."""
    return name.replace("_", "-")
