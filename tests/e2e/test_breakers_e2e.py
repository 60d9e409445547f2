"""Services that die: what their callers pay, that others do not, and how they come back."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median

import httpx
import pytest

from tests.e2e.calling import Load, at_once, code_of, until
from tests.e2e.harness import Answer, Recorded, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS, Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

FIRST_BYTE_S, OPEN_S = 1.0, 5.0
QUICK = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_S),
    "UPSTREAM_CONNECT_TIMEOUT": str(FIRST_BYTE_S),
    "HEALTH_CHECK_INTERVAL": "0.3",
}
SHORT_S = FIRST_BYTE_S / 4
"""Some milliseconds, on a machine that is busy with other things; who waits for the service takes longer."""


def hang(service: RecordingUpstream) -> None:
    service.health = Answer(never=True)
    service.always(Answer(never=True))


def garble(service: RecordingUpstream) -> None:
    service.health = Answer(pieces=(b"hello there\r\n\r\n",), close=True)
    service.always(Answer(pieces=(b"hello there\r\n\r\n",), close=True))


def hang_but_for_health(service: RecordingUpstream) -> None:
    service.always(Answer(never=True))


def revive(service: RecordingUpstream) -> None:
    service.health = answer(200)
    service.reset()


DEATHS: dict[str, tuple[Callable[[RecordingUpstream], None], int]] = {
    "refuses": (RecordingUpstream.stop, 502),
    "hangs": (hang, 504),
    "garbles": (garble, 502),
    "hangs but for its health page": (hang_but_for_health, 504),
}


def timed(client: httpx.Client, path: str) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    response = client.get(path)
    return response, time.monotonic() - began


def breaker(stage: Stage, name: str = "sales") -> str:
    """As the health page tells it."""
    with stage.gateway.client() as client:
        told: str = client.get("/api/v1/health").json()["services"][name]["breaker"]
    return told


def open_it(stage: Stage, path: str = "/api/v1/sales/x") -> None:
    with stage.gateway.client(stage.token) as client:
        for _ in range(5):
            assert code_of(client.get(path))[1] == "upstream-invalid"


def leave(stage: Stage, asked: int) -> None:
    """Ask, and leave as soon as the service has been asked so often."""
    with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
        client.sendall(stage.head())
        stage.upstream.wait_for(asked)


class TestADyingService:
    @pytest.mark.parametrize("how", DEATHS)
    def test_it_costs_its_callers_milliseconds_and_others_nothing_and_is_found_again(
        self, issuer: Issuer, how: str
    ) -> None:
        die, status = DEATHS[how]
        with (
            staged(issuer, QUICK, services=("sales", "orders")) as stage,
            stage.gateway.client(stage.token) as client,
            stage.gateway.client(stage.token) as other,
        ):
            assert client.get("/api/v1/sales/x").status_code == 200
            die(stage.upstream)
            with Load(client=other, path="/api/v1/orders/x") as others:
                assert [client.get("/api/v1/sales/x").status_code for _ in range(5)] == [status] * 5
                reached = len(stage.upstream.requests)
                spared = [timed(client, "/api/v1/sales/x") for _ in range(50)]

            assert {code_of(response) for response, _ in spared} == {(503, "service-unavailable")}
            assert median(seconds for _, seconds in spared) < SHORT_S
            assert len(stage.upstream.requests) == reached
            last = spared[-1][0]
            assert 1 <= int(last.headers["retry-after"]) <= OPEN_S
            assert last.headers["proxy-status"] == "bakerygw; error=destination_unavailable"
            assert b"127.0.0.1" not in last.content
            assert (set(others.statuses), others.errors) == ({200}, [])
            assert median(others.seconds) < SHORT_S

            if how == "refuses":
                stage.upstream.start()
            revive(stage.upstream)
            until(lambda: client.get("/api/v1/sales/x").status_code == 200)
            assert {client.get("/api/v1/sales/x").status_code for _ in range(20)} == {200}

    def test_errors_of_its_own_are_answers(self, issuer: Issuer) -> None:
        with staged(issuer, QUICK) as stage, stage.gateway.client(stage.token) as client:
            stage.upstream.always(answer(500, b'{"own": true}'))

            told = [client.get("/api/v1/sales/x") for _ in range(20)]

            assert {(it.status_code, it.content) for it in told} == {(500, b'{"own": true}')}

    def test_clients_that_leave_do_not_take_it_from_others(self, issuer: Issuer) -> None:
        with staged(issuer, {**QUICK, "UPSTREAM_FIRST_BYTE_TIMEOUT": "10"}) as stage:
            stage.upstream.next(*[Answer(never=True)] * 10)
            for number in range(10):
                leave(stage, number + 1)

            assert stage.get().status == 200
            assert breaker(stage) == "closed"


class TestTheProbe:
    def test_of_fifty_requests_at_once_exactly_one_is_the_probe(self, issuer: Issuer) -> None:
        with staged(issuer, {**QUICK, "UPSTREAM_FIRST_BYTE_TIMEOUT": str(PATIENCE_S)}) as stage:
            stage.upstream.always(Answer(pieces=(b"garbage\r\n\r\n",), close=True))
            open_it(stage)
            stage.upstream.reset()
            others_answered, statuses = threading.Event(), list[int]()

            def back(_: Recorded) -> Answer:
                others_answered.wait(PATIENCE_S)
                return answer(200, b"back")

            def ask() -> None:
                statuses.append(stage.get().status)
                if len(statuses) >= 49:
                    others_answered.set()

            stage.upstream.always(back)
            time.sleep(OPEN_S + 0.1)

            at_once([ask] * 50)

            assert sorted(statuses) == [200] + [503] * 49
            assert len(stage.upstream.requests) == 1
            stage.upstream.reset()
            assert [stage.get().status for _ in range(5)] == [200] * 5

    def test_a_client_that_leaves_as_the_probe_leaves_its_place_to_the_next(self, issuer: Issuer) -> None:
        with staged(issuer, {**QUICK, "UPSTREAM_FIRST_BYTE_TIMEOUT": str(2 * PATIENCE_S)}) as stage:
            stage.upstream.always(Answer(pieces=(b"garbage\r\n\r\n",), close=True))
            open_it(stage)
            stage.upstream.reset()
            stage.upstream.next(Answer(never=True))
            time.sleep(OPEN_S + 0.1)
            leave(stage, 1)

            until(lambda: stage.get().status == 200)

    def test_uploads_that_never_send_their_body_keep_no_service_out(self, issuer: Issuer) -> None:
        with staged(issuer, QUICK) as stage:
            stage.upstream.always(Answer(pieces=(b"garbage\r\n\r\n",), close=True))
            open_it(stage)
            revive(stage.upstream)
            time.sleep(OPEN_S + 0.1)
            hanging = stage.head(b"", (b"Content-Length", b"10"), method=b"POST")

            refused = [stage.ask(hanging) for _ in range(3)]

            assert {json.loads(it.body)["code"] for it in refused} == {"service-unavailable"}
            assert stage.upstream.requests == []
            assert stage.ask(hanging + b"0123456789").status == 200, "one that is all here is the probe"
            assert breaker(stage) == "closed"


class TestSeveralUrls:
    @contextmanager
    def two(self, issuer: Issuer) -> Iterator[tuple[Stage, RecordingUpstream, RecordingUpstream]]:
        with RecordingUpstream() as one, RecordingUpstream() as two:
            env = {**QUICK, **NO_LIMITS, "SALES_SERVICE_URL": f"{one.url},{two.url}"}
            with staged(issuer, env, services=("orders",)) as stage:
                yield stage, one, two

    @pytest.mark.parametrize("how", ["refuses", "hangs", "garbles"])
    def test_once_the_breaker_of_a_dead_one_is_open_no_client_notices(self, issuer: Issuer, how: str) -> None:
        with self.two(issuer) as (stage, one, two), stage.gateway.client(stage.token) as client:
            DEATHS[how][0](one)

            def opened() -> bool:
                at_once([stage.get] * 20)  # so that its failures come before its health page is missed
                return any(event["state"] == "open" for event in stage.gateway.events("upstream.breaker"))

            until(opened, every_s=0)
            with Load(client=client) as load:
                time.sleep(OPEN_S + 2)

            assert set(load.statuses) == {200}
            assert (len(load.statuses) > 20, load.errors) == (True, [])

            if how == "refuses":
                one.start()
            revive(one)
            until(lambda: client.get("/api/v1/sales/x").status_code and len(one.requests) > 5)
            two.reset()
            assert {client.get("/api/v1/sales/x").status_code for _ in range(40)} == {200}
            assert two.requests, "both have their share again"

    def test_both_dead_are_502_or_503_and_come_back_by_themselves(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two), stage.gateway.client(stage.token) as client:
            one.stop()
            two.stop()
            told = [timed(client, "/api/v1/sales/x") for _ in range(60)]
            parallel = at_once([stage.get] * 30)

            assert {response.status_code for response, _ in told} <= {502, 503}
            assert {received.status for received in parallel} <= {502, 503}
            assert median(seconds for _, seconds in told) < SHORT_S
            assert breaker(stage) in ("open", "half-open")

            two.start()
            until(lambda: client.get("/api/v1/sales/x").status_code == 200)
            assert {client.get("/api/v1/sales/x").status_code for _ in range(20)} == {200}
            one.start()
            until(lambda: client.get("/api/v1/sales/x").status_code and len(one.requests) > 3)

    def test_both_hanging_hold_a_few_callers_and_refuse_the_rest_at_once(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two):
            hang(one)
            hang(two)
            at_first = [received.status for received in at_once([stage.get] * 30)]

            with ThreadPoolExecutor(30) as pool:
                statuses = [received.status for received in pool.map(lambda _: stage.get(), range(30))]

            assert sorted(set(statuses)) == [503, 504]
            # The service hears of some a little later than who has waited in vain.
            until(lambda: len(one.requests) + len(two.requests) == (at_first + statuses).count(504))
            assert statuses.count(504) <= 6

    def test_a_url_that_is_ill_by_its_health_page_is_left_out_without_a_failure(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two), stage.gateway.client(stage.token) as client:
            one.health = answer(503)
            stage.gateway.wait_for_event("upstream.health", lambda event: event["state"] == "ailing")
            one.reset()
            assert {client.get("/api/v1/sales/x").status_code for _ in range(30)} == {200}
            assert one.requests == []

            two.health = answer(503)
            stage.gateway.wait_for_event("upstream.health", lambda event: event["url"] == two.url)
            assert {client.get("/api/v1/sales/x").status_code for _ in range(30)} == {200}
            assert one.requests, "health leaves at least half of all"

    def test_a_url_is_found_again_though_the_health_pages_of_all_are_ill(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two), stage.gateway.client(stage.token) as client:
            one.health = two.health = answer(503)
            until(lambda: {event["url"] for event in stage.gateway.events("upstream.health")} == {one.url, two.url})
            one.always(Answer(pieces=(b"garbage\r\n\r\n",), close=True))

            def told() -> list[str]:
                client.get("/api/v1/sales/x")
                return [event["state"] for event in stage.gateway.events("upstream.breaker")]

            until(lambda: told() == ["open"], every_s=0)
            one.reset()

            until(lambda: told() == ["open", "half-open", "closed"])
            assert {client.get("/api/v1/sales/x").status_code for _ in range(40)} == {200}
            assert len(one.requests) > 1, "it has its share again"

    def test_urls_without_a_health_page_get_their_requests(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two), stage.gateway.client(stage.token) as client:
            one.health = answer(404)
            probes = len(one.probes)
            until(lambda: len(one.probes) > probes + 3)

            assert {client.get("/api/v1/sales/x").status_code for _ in range(30)} == {200}
            assert one.requests
            assert two.requests


class TestSecondTries:
    def test_a_storm_of_dropped_connections_is_not_doubled(self, issuer: Issuer) -> None:
        with staged(issuer, QUICK) as stage, stage.gateway.client(stage.token) as client:
            seen: set[bytes | None] = set()

            def dies_at_first(request: Recorded) -> Answer:
                known = request.value("X-Request-ID") in seen
                seen.add(request.value("X-Request-ID"))
                return answer(200, b"{}", ("Connection", "close"), close=True) if known else Answer(close=True)

            stage.upstream.always(dies_at_first)
            statuses = [200]
            while statuses[-1] == 200 and len(statuses) <= 300:
                statuses.append(client.get("/api/v1/sales/x").status_code)

            assert len(statuses) > 30
            assert statuses[-1] == 502


class TestWhatOperatorsSee:
    def test_page_metric_admin_and_log_agree_and_a_reload_keeps_the_state(self, issuer: Issuer) -> None:
        with staged(issuer, QUICK) as stage, stage.gateway.admin() as admin:

            def gauge() -> set[str]:
                lines = admin.get("/metrics").text.splitlines()
                return {line for line in lines if line.startswith("gateway_breaker_state{")}

            def expected(state: str) -> set[str]:
                return {
                    f'gateway_breaker_state{{service_name="sales",state="{it}"}} {float(it == state)}'
                    for it in ("closed", "half-open", "open")
                }

            assert (breaker(stage), gauge()) == ("closed", expected("closed"))
            stage.upstream.always(Answer(pieces=(b"garbage\r\n\r\n",), close=True))
            open_it(stage)

            assert (breaker(stage), gauge()) == ("open", expected("open"))
            (url,) = admin.get("/api/services").json()["sales"]["urls"]
            assert (url["url"], url["breaker"], url["ailing"]) == (stage.upstream.url, "open", False)
            assert 0 < url["retry_in_s"] <= OPEN_S
            told = stage.gateway.wait_for_event("upstream.breaker")
            assert {name: told[name] for name in ("level", "service", "url", "state", "cause")} == {
                "level": "warning",
                "service": "sales",
                "url": stage.upstream.url,
                "state": "open",
                "cause": "http_protocol_error",
            }
            stage.get(b"/api/v1/sales/spared")
            done = stage.gateway.wait_for_event("request.done", lambda it: it["path"] == "/api/v1/sales/spared")
            assert done["cause"] == "breaker open: http_protocol_error"
            assert "upstream_ms" not in done, "nothing was sent"

            stage.gateway.signal(signal.SIGHUP)
            stage.gateway.wait_for_event("reload.done")
            spared = stage.get()
            assert (spared.status, json.loads(spared.body)["code"]) == (503, "service-unavailable")
            assert (breaker(stage), gauge()) == ("open", expected("open"))
