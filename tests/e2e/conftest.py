"""What end-to-end tests share: recording services, a token issuer, and gateways that are stopped at the end.

Redis comes from `redis_server` and `own_redis`, as for all tests.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.browser import Browser, chromium
from tests.e2e.harness import Environment, Gateway, RecordingUpstream
from tests.minting import Issuer

StartGateway = Callable[..., Gateway]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a run. Where there is none, such tests are left out, but never in CI."""
    if chromium() is None and not os.environ.get("CI"):
        pytest.skip("needs Chromium; on Debian: apt install chromium")
    with Browser() as running:
        yield running


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """A recording service, empty at the start of the test."""
    with RecordingUpstream() as service:
        yield service


@pytest.fixture(scope="module")
def service() -> Iterator[RecordingUpstream]:
    """A recording service for all tests of a module."""
    with RecordingUpstream() as shared:
        yield shared


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    """Mints the tokens that the gateways of `start_gateway` believe."""
    return Issuer()


@pytest.fixture
def start_gateway(issuer: Issuer, upstream: RecordingUpstream) -> Iterator[StartGateway]:
    """Starts gateways: `start_gateway(env, **options of Gateway)`, stopped and looked over when the test ends.

    They believe `issuer`, and their sales service is `upstream`.
    """
    with ExitStack() as running:

        def start(env: Environment | None = None, **options: Any) -> Gateway:
            settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "SALES_SERVICE_URL": upstream.url, **(env or {})}
            return running.enter_context(Gateway(settings, **options))

        yield start
