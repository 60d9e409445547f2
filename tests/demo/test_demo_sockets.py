"""Training over WebSocket at the demo's own service, with `websockets` as the client."""

import json
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
import pytest_twisted
from demo_calls import NOW
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from bakerygw.demo.services import DemoServices

WAIT_S = 30.0


@pytest_twisted.async_yield_fixture
async def demo() -> AsyncIterator[DemoServices]:
    services = DemoServices(reactor, now=lambda: NOW, random=Random(1))
    await services.start()
    yield services
    await services.stop()


def opened(demo: DemoServices, **headers: str) -> ClientConnection:
    address = demo.urls["training"].replace("http", "ws", 1) + "/api/v1/training/ws"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return connect(address, additional_headers=named, open_timeout=WAIT_S, close_timeout=1)


async def aside(talk: Callable[[], Any]) -> Any:
    return await deferToThread(talk)


def hear(socket: ClientConnection, until: str) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    while not heard or heard[-1]["type"] != until:
        heard.append(json.loads(socket.recv(timeout=WAIT_S)))
    return heard


def end_of(socket: ClientConnection) -> int | None:
    """The code that the other side closes with; `None` where the connection is cut."""
    try:
        while True:
            socket.recv(timeout=WAIT_S)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


@pytest_twisted.ensureDeferred
async def test_a_run_is_seen_by_all_of_its_bakery(demo: DemoServices) -> None:
    def talk() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        with opened(demo, X_Tenant_Id="t-1") as one, opened(demo, X_Tenant_Id="t-1") as two:
            hear(two, "idle")
            one.send(json.dumps({"action": "start", "model": "sales-forecast", "epochs": 3}))
            return hear(one, "finished"), hear(two, "finished")

    one, two = await aside(talk)
    assert [it["type"] for it in one] == ["idle", "started", *["progress"] * 3, "finished"]
    assert one[1:] == two


@pytest_twisted.ensureDeferred
async def test_other_bakeries_and_other_sessions_of_the_demo_see_nothing_of_it(demo: DemoServices) -> None:
    def talk() -> list[str]:
        session = {"X_Tenant_Id": "t-1", "X_Is_Demo": "true", "X_Demo_Session_Id": "s-1"}
        with opened(demo, X_Tenant_Id="t-1") as one:
            one.send(b'{"action":"start"}')
            hear(one, "progress")
            with (
                opened(demo, X_Tenant_Id="t-2") as other,
                opened(demo, **session) as visitor,
                opened(demo, X_Tenant_Id="t-1") as late,
            ):
                return [json.loads(it.recv(timeout=WAIT_S))["type"] for it in (other, visitor, late)]

    assert await aside(talk) == ["idle", "idle", "running"]


@pytest_twisted.ensureDeferred
async def test_a_bad_command_is_answered_and_does_no_harm(demo: DemoServices) -> None:
    def talk() -> list[dict[str, Any]]:
        with opened(demo, X_Tenant_Id="t-1") as socket:
            socket.send("nonsense")
            found = hear(socket, "error")
            socket.send('{"action":"stop"}')
            return found + hear(socket, "error")

    told = await aside(talk)
    assert [it["type"] for it in told] == ["idle", "error", "error"]
    assert told[2]["detail"] == "no run is under way"


@pytest_twisted.ensureDeferred
async def test_whom_the_gateway_has_not_identified_gets_an_http_error(demo: DemoServices) -> None:
    def talk() -> int:
        with pytest.raises(InvalidStatus) as refused:
            opened(demo)
        return refused.value.response.status_code

    assert await aside(talk) == 400


@pytest_twisted.ensureDeferred
async def test_too_long_a_message_closes_with_1009(demo: DemoServices) -> None:
    def talk() -> int | None:
        with opened(demo, X_Tenant_Id="t-1") as socket:
            hear(socket, "idle")
            socket.send("x" * 5000)
            return end_of(socket)

    assert await aside(talk) == 1009


@pytest_twisted.ensureDeferred
async def test_the_demo_ends_with_sockets_open_and_runs_under_way(demo: DemoServices) -> None:
    def talk() -> int | None:
        with opened(demo, X_Tenant_Id="t-1") as socket:
            socket.send('{"action":"start"}')
            hear(socket, "progress")
            blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(demo.stop()))
            return end_of(socket)

    timers = set(reactor.getDelayedCalls())
    assert await aside(talk) is None
    assert set(reactor.getDelayedCalls()) <= timers
