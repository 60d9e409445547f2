"""What becomes of tabs that share one stream when the one that holds it is frozen by the browser, or crashes."""

import json
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.browser import Browser, Page, PageError
from tests.e2e.calling import until
from tests.e2e.harness import Gateway
from tests.minting import TENANT_ID, Issuer

BEGIN = """
    const every = setInterval; // a tab looks fifty times as often as usual whether the other one lives
    window.setInterval = (act, ms) => every(act, ms / 50);
    const { AlertStream } = await import("/bakerygw.js");
    window.told = { alerts: [], gaps: [], errors: [] };
    window.stream = new AlertStream({
      token: TOKEN,
      heartbeatSeconds: 0.2,
      onAlert: ({ n }) => told.alerts.push(n),
      onGap: (info) => told.gaps.push(info),
      onState: (state, { shared }) => Object.assign(told, { state, shared }),
      onError: (error) => told.errors.push(error.code),
    });
    stream.open();
"""


@pytest.fixture(scope="module")
def gateway(issuer: Issuer) -> Iterator[Gateway]:
    with Gateway({"JWT_PUBLIC_KEY": issuer.public_pem}) as running:
        yield running


@pytest.fixture
def tabs(browser: Browser, gateway: Gateway, issuer: Issuer) -> Iterator[tuple[Page, Page]]:
    """The one that holds the stream, and one that hears of it."""
    context = browser.context()
    script = f"(async () => {{ const TOKEN = {json.dumps(issuer.token())}; {BEGIN} }})()"
    url = f"{gateway.base_url}/health"
    with browser.page(url, context=context) as first, browser.page(url, context=context) as second:
        for page, shared in ((first, "false"), (second, "true")):
            page.evaluate(script)
            page.wait_for(f"told.state === 'open' && told.shared === {shared}")
        yield first, second


@pytest.fixture
def publish(gateway: Gateway) -> Iterator[Callable[..., None]]:
    with gateway.admin() as admin:

        def send(*numbers: int) -> None:
            for number in numbers:
                alert = {"severity": "info", "message": "Bread", "timestamp": "2026-11-24T05:12:00Z", "n": number}
                assert admin.post(f"/api/tenants/{TENANT_ID}/alerts", json=alert).status_code == 201

        yield send


def has(page: Page, *numbers: int) -> None:
    """These alerts, in this order, once each, and nothing else."""
    page.wait_for(f"told.alerts.length >= {len(numbers)}")
    assert page.evaluate("[told.alerts, told.gaps, told.errors]") == [list(numbers), [], []]


def holds_one_stream(gateway: Gateway) -> bool:
    with gateway.admin() as admin:
        return "\ngateway_sse_connections 1.0\n" in admin.get("/metrics").text


def test_a_frozen_tab_loses_its_place_and_has_everything_once_it_is_thawed(
    gateway: Gateway, tabs: tuple[Page, Page], publish: Callable[..., None]
) -> None:
    first, second = tabs
    publish(1)
    has(first, 1)
    has(second, 1)
    first.command("Page.setWebLifecycleState", state="frozen")
    publish(2, 3)
    second.wait_for("told.state === 'open' && told.shared === false")
    has(second, 1, 2, 3)
    publish(4)
    has(second, 1, 2, 3, 4)
    first.command("Page.setWebLifecycleState", state="active")
    first.wait_for("told.shared === true")
    publish(5)
    for page in tabs:
        has(page, 1, 2, 3, 4, 5)
    until(lambda: holds_one_stream(gateway))


def test_a_tab_that_crashes_leaves_its_place_at_once(tabs: tuple[Page, Page], publish: Callable[..., None]) -> None:
    first, second = tabs
    publish(11)
    has(second, 11)
    with pytest.raises((PageError, TimeoutError)):  # nobody is there to answer
        first.command("Page.crash", timeout_s=0.2)
    publish(12)
    second.wait_for("told.state === 'open' && told.shared === false")
    has(second, 11, 12)
