"""Alerts in a real browser, from two gateways over one Redis: by the module, and by a native `EventSource`."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Browser, Page
from tests.e2e.calling import until
from tests.e2e.harness import Gateway, RecordingUpstream, answer
from tests.e2e.pages import Pages
from tests.e2e.relay import Relay
from tests.e2e.sockets import TrainingService
from tests.minting import TENANT_ID, Issuer
from tests.redis_server import RedisServer

USERS = itertools.count(1)
BEGIN = """
    const { AlertStream } = await import(BASE + "/bakerygw.js");
    window.told = { alerts: [], ids: [], gaps: [], states: [], shared: null, tenants: [], errors: [] };
    window.stream = new AlertStream({
      baseUrl: BASE,
      getToken: async () => TOKEN,
      onAlert: (alert, { id }) => (told.alerts.push(alert.n), told.ids.push(id)),
      onGap: (info) => told.gaps.push(info),
      onState: (state, details) => (told.states.push(state), (told.shared = details.shared)),
      onTenantState: (info) => told.tenants.push(info),
      onError: (error) => told.errors.push([error.code, error.status, error.problem?.instance]),
    });
    stream.open();
"""


class Stand:
    """Two gateways, the way to one of them, and a tenant for each test."""

    def __init__(
        self, redis: RedisServer, pair: tuple[Gateway, Gateway], relay: Relay, settings: dict[str, str]
    ) -> None:
        self.redis, self.pair, self.relay, self.settings = redis, pair, relay, settings
        self.base = f"http://127.0.0.1:{relay.port}"
        self.tenant = ""

    def publish(self, *numbers: int) -> None:
        """Alerts of this test's tenant, as a service publishes them."""
        for number in numbers:
            self.redis.command("PUBLISH", f"alerts:tenant:{self.tenant}", json.dumps({"n": number, "message": "Bread"}))

    def streams(self) -> int:
        """How many streams both gateways hold."""
        return sum(gauge(gateway, "gateway_sse_connections") for gateway in self.pair)


def gauge(gateway: Gateway, name: str) -> int:
    with gateway.admin() as admin:
        found = re.search(rf"^{name} ([0-9.e+]+)$", admin.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return round(float(found[1]))


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with Pages() as serving:
        yield serving


@pytest.fixture(scope="module")
def whole(issuer: Issuer, pages: Pages) -> Iterator[Stand]:
    """What all tests of this file share."""
    with RedisServer() as redis, TrainingService() as training:
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "REDIS_HOST": redis.host,
            "REDIS_PORT": str(redis.port),
            "CORS_ORIGINS": pages.origin,
            "TRAINING_SERVICE_URL": training.url,
        }
        with Gateway(settings) as one, Gateway(settings) as other, Relay("127.0.0.1", one.port) as relay:
            yield Stand(redis, (one, other), relay, settings)


@pytest.fixture
def stand(whole: Stand) -> Stand:
    whole.tenant = f"tenant-{next(USERS)}"
    whole.relay.lead_to("127.0.0.1", whole.pair[0].port)
    return whole


@pytest.fixture
def begin(browser: Browser, pages: Pages, stand: Stand, issuer: Issuer) -> Iterator[Callable[..., Page]]:
    """Opens tabs of one profile on a page of another origin than the gateway's, where BASE and TOKEN are known."""
    context = browser.context()
    opened: list[Page] = []

    def run(script: str = BEGIN, **claims: Any) -> Page:
        page = browser.page(pages.origin, context=context)
        opened.append(page)
        token = issuer.token(user_id=f"user-{stand.tenant}", tenant_id=stand.tenant, **claims)
        given = f"const BASE = {json.dumps(stand.base)}, TOKEN = {json.dumps(token)};"
        page.evaluate(f"(async () => {{ {given} {script} }})()")
        return page

    yield run
    for page in opened:
        page.close()
    until(lambda: stand.streams() == 0)


def is_open(page: Page) -> None:
    page.wait_for('told.states.at(-1) === "open"')


def has(page: Page, *numbers: int) -> None:
    """These alerts, in this order, once each, and nothing else."""
    page.wait_for(f"told.alerts.length >= {len(numbers)}")
    assert page.evaluate("told.alerts") == list(numbers)
    assert page.evaluate("told.gaps") == []


def test_a_stream_goes_on_at_the_other_gateway_when_its_own_is_killed(
    stand: Stand, begin: Callable[..., Page], issuer: Issuer
) -> None:
    with Gateway(stand.settings, expect_exit=None) as doomed:
        stand.relay.lead_to("127.0.0.1", doomed.port)
        page = begin()
        is_open(page)
        stand.publish(1, 2, 3)
        has(page, 1, 2, 3)
        stand.relay.lead_to("127.0.0.1", stand.pair[1].port)
        doomed.kill()
        stand.publish(4, 5, 6)
        page.wait_for('told.states.includes("waiting")')
        page.evaluate("dispatchEvent(new Event('online'))")
        has(page, 1, 2, 3, 4, 5, 6)
    stand.publish(7)
    has(page, 1, 2, 3, 4, 5, 6, 7)
    assert page.evaluate("told.states") == ["connecting", "open", "waiting", "connecting", "open"]
    offsets = [int(it.partition("-")[2]) for it in page.evaluate("told.ids")]
    assert offsets == sorted(set(offsets))


def test_tabs_share_one_connection_which_outlives_the_tab_that_holds_it(
    stand: Stand, begin: Callable[..., Page]
) -> None:
    tabs = []
    for _ in range(3):
        tabs.append(begin())
        is_open(tabs[-1])
    assert stand.streams() == 1
    stand.publish(1, 2)
    for tab in tabs:
        has(tab, 1, 2)
    assert [tab.evaluate("told.shared") for tab in tabs] == [False, True, True]

    tabs[0].close()
    stand.publish(3)
    for tab in tabs[1:]:
        has(tab, 1, 2, 3)
    stand.publish(4)
    for tab in tabs[1:]:
        has(tab, 1, 2, 3, 4)
    assert sorted(tab.evaluate("told.shared") for tab in tabs[1:]) == [False, True]
    until(lambda: stand.streams() == 1)
    assert all(tab.errors == [] for tab in tabs)


def test_a_page_that_is_loaded_again_gets_what_came_meanwhile(stand: Stand, begin: Callable[..., Page]) -> None:
    page = begin("sessionStorage.setItem('given', JSON.stringify([BASE, TOKEN]));" + BEGIN)
    is_open(page)
    stand.publish(1)
    has(page, 1)
    page.reload()
    stand.publish(2)
    page.evaluate(f"(async () => {{ const [BASE, TOKEN] = JSON.parse(sessionStorage.getItem('given')); {BEGIN} }})()")
    has(page, 2)


def test_a_page_that_is_left_hands_on_the_connection_and_resumes_when_somebody_comes_back(
    stand: Stand, begin: Callable[..., Page]
) -> None:
    left, other = begin(), begin()
    is_open(left)
    is_open(other)
    left.evaluate("window.kept = true")
    left.open(left.evaluate("location.href") + "?another")
    stand.publish(1)
    has(other, 1)
    stand.publish(2)
    left.evaluate("history.back()")
    left.wait_for("window.kept")
    has(left, 1, 2)
    has(other, 1, 2)
    assert left.evaluate("told.shared") is True
    until(lambda: stand.streams() == 1)  # the one by which it fetched what it had missed has ended


def test_a_page_without_network_waits_and_is_back_with_it(stand: Stand, begin: Callable[..., Page]) -> None:
    page = begin()
    is_open(page)
    page.offline()
    stand.relay.cut()
    page.wait_for('told.states.at(-1) === "waiting"')
    stand.publish(1, 2)
    page.offline(False)
    has(page, 1, 2)


def test_a_refusal_is_known_to_the_page_as_the_problem_that_it_is(stand: Stand, begin: Callable[..., Page]) -> None:
    page = begin(exp=1_700_000_000)
    page.wait_for("told.errors.length")
    assert page.evaluate("told.errors") == [["token-expired", 401, "/api/v1/alerts/ticket"]]
    assert page.evaluate("stream.state") == "closed"


def test_a_hold_on_the_tenant_is_told_before_anything_is_refused(stand: Stand, begin: Callable[..., Page]) -> None:
    page = begin()
    is_open(page)
    with stand.pair[1].admin() as admin:
        hold = {"reason": "Stock-taking"}
        assert admin.put(f"/api/tenants/{stand.tenant}/read-only", json=hold).status_code == 200
    page.wait_for("told.tenants.at(-1)?.read_only?.reason === 'Stock-taking'")


NATIVE = """
    window.told = { alerts: [], ids: [], gaps: [], opened: 0 };
    window.source = new EventSource(`${BASE}/api/v1/alerts/stream?token=${TOKEN}`);
    source.onopen = () => told.opened++;
    source.addEventListener("alert", (it) => (told.alerts.push(JSON.parse(it.data).n), told.ids.push(it.lastEventId)));
    source.addEventListener("gap", (it) => told.gaps.push(it.data));
"""


def test_a_native_event_source_resumes_by_itself(stand: Stand, begin: Callable[..., Page]) -> None:
    page = begin(NATIVE)
    page.wait_for("told.opened === 1")
    stand.publish(1, 2)
    has(page, 1, 2)
    stand.relay.lead_to("127.0.0.1", stand.pair[1].port)
    stand.relay.cut()
    stand.publish(3)
    has(page, 1, 2, 3)
    stand.publish(4)
    has(page, 1, 2, 3, 4)
    log = "".join(Path(f"/proc/{gateway.pid}/cmdline").read_text() + gateway.output for gateway in stand.pair)
    assert page.evaluate("source.url").partition("token=")[2] not in log


SIGNED_IN = """
    const told = (window.told = { native: [], shared: [], states: [], errors: [] });
    const { AlertStream } = await import("/bakerygw.js");
    const signIn = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    told.status = (await fetch("/api/v1/auth/login", signIn)).status;
    window.source = new EventSource("/api/v1/alerts/stream");
    source.addEventListener("alert", ({ data }) => told.native.push(JSON.parse(data).n));
    window.stream = new AlertStream({
      useCookies: true,
      onAlert: ({ n }) => told.shared.push(n),
      onState: (state) => told.states.push(state),
      onError: ({ code }) => told.errors.push(code),
    });
    await new Promise((opened) => (source.onopen = opened));
    stream.open();
"""


def test_the_cookie_of_a_session_opens_streams_and_its_end_ends_them(
    browser: Browser, stand: Stand, service: RecordingUpstream, issuer: Issuer
) -> None:
    tokens = {"access_token": issuer.token(), "refresh_token": "r-1", "token_type": "bearer"}
    service.always(lambda _: answer(200, json.dumps(tokens).encode()))
    sessions = {"SESSION_COOKIES": "true", "SESSION_SECRET": "s" * 40, "AUTH_SERVICE_URL": service.url}
    stand.tenant = TENANT_ID
    with (
        Gateway({**stand.settings, **sessions}) as gateway,
        browser.page(f"http://localhost:{gateway.port}/health", context=browser.context()) as page,
    ):
        page.evaluate(f"(async () => {{ {SIGNED_IN} }})()")
        assert page.evaluate("told.status") == 200
        is_open(page)
        stand.publish(1, 2)
        page.wait_for("told.native.length + told.shared.length === 4")
        assert page.evaluate("[told.native, told.shared, document.cookie]") == [[1, 2], [1, 2], ""]
        page.evaluate("""(async () => {
            const { csrf_token } = await (await fetch("/api/v1/auth/session")).json();
            await fetch("/api/v1/auth/logout", { method: "POST", headers: { "X-CSRF-Token": csrf_token } });
        })()""")
        page.wait_for("told.errors.length")
        assert page.evaluate("told.errors")[0] in {"token-missing", "token-invalid", "token-revoked"}
        until(lambda: gauge(gateway, "gateway_sse_connections") == 0)


SOCKET = """
    const { TrainingSocket } = await import(BASE + "/bakerygw.js");
    window.told = { messages: [], opened: 0, closes: [], errors: [] };
    window.socket = new TrainingSocket({
      baseUrl: BASE,
      getToken: async () => TOKEN,
      query: QUERY,
      onOpen: () => told.opened++,
      onMessage: (data) => told.messages.push(typeof data === "string" ? data : data.byteLength),
      onClose: (info) => told.closes.push(info),
      onError: (error) => told.errors.push(error.code),
    });
    socket.open();
"""


def test_a_socket_carries_text_and_bytes_and_comes_back_from_the_other_gateway(
    stand: Stand, begin: Callable[..., Page], issuer: Issuer
) -> None:
    with Gateway(stand.settings, expect_exit=None) as doomed:
        stand.relay.lead_to("127.0.0.1", doomed.port)
        page = begin("const QUERY = {};" + SOCKET + "socket.send('early');")
        page.wait_for("told.messages.length === 1")
        page.evaluate("socket.send(new Uint8Array(70000))")
        page.wait_for("told.messages.length === 2")
        stand.relay.lead_to("127.0.0.1", stand.pair[1].port)
        doomed.kill()
    page.wait_for("told.closes.length === 1")
    page.evaluate("socket.send('meanwhile')")
    page.wait_for("told.messages.length === 3")
    assert page.evaluate("told.messages") == ["early", 70000, "meanwhile"]
    assert page.evaluate("told.closes") == [{"code": 1006, "reason": "", "willRetry": True}]
    page.evaluate("socket.close()")
    page.wait_for("told.closes.length === 2")
    assert page.evaluate("[told.closes[1], told.opened]") == [{"code": 1000, "reason": "", "willRetry": False}, 2]


def test_a_close_code_of_the_service_reaches_the_page_which_stays_away(
    stand: Stand, begin: Callable[..., Page]
) -> None:
    page = begin("const QUERY = { close: 4001, reason: 'no such job' };" + SOCKET)
    page.wait_for("told.closes.length")
    assert page.evaluate("told.closes") == [{"code": 4001, "reason": "no such job", "willRetry": False}]


def test_a_native_socket_is_opened_by_a_token_among_its_subprotocols(stand: Stand, begin: Callable[..., Page]) -> None:
    page = begin("""
        window.told = [];
        const socket = new WebSocket(BASE.replace("http", "ws") + "/api/v1/training/ws", ["bearer", TOKEN]);
        socket.onopen = () => (told.push(socket.protocol), socket.send("hello"));
        socket.onmessage = ({ data }) => told.push(data);
    """)
    page.wait_for("told.length === 2")
    assert page.evaluate("told") == ["bearer", "hello"]
