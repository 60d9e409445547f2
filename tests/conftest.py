"""What every test may use, and what none may leave behind."""

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from twisted.logger import globalLogPublisher

from tests.redis_server import RedisServer

# How long it takes to think of an example tells of the machine, which others may be using too.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("bakerygw", PATIENT)
settings.register_profile("ci", PATIENT, derandomize=True, database=None)
settings.register_profile("thorough", PATIENT, max_examples=5_000)
# The same examples each time where a failure must not depend on chance; else others, to find what nobody thought of.
settings.load_profile("ci" if os.environ.get("CI") else "bakerygw")


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[list[Any]]:
    """Failures logged through Twisted during the test, unhandled Deferreds among them; any left over fails it.

    A test that provokes one on purpose takes this fixture, looks, and clears the list.
    """
    failures: list[Any] = []

    def observe(event: dict[str, Any]) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    try:
        yield failures
        gc.collect(1)  # the young generations, where a failed Deferred of this test is; the whole heap takes 50 ms
    finally:
        globalLogPublisher.removeObserver(observe)
    if failures:
        pytest.fail("logged failures:\n" + "\n".join(failure.getTraceback() for failure in failures))


@pytest.fixture
def logged() -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """The log events of a name, since the test began."""
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    yield lambda name: [event for event in events if event.get("log_format") == name]
    globalLogPublisher.removeObserver(events.append)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for the whole run; take `redis_server` instead, which empties it first."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty, healthy Redis. Not to be stopped or suspended."""
    shared_redis.command("FLUSHALL")
    shared_redis.command("SCRIPT", "FLUSH")
    return shared_redis


@pytest.fixture(scope="module")
def module_redis() -> Iterator[RedisServer]:
    """A Redis of the module's tests alone. Whichever maltreats it makes it well again."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test alone, to be maltreated."""
    with RedisServer() as server:
        yield server
