import pytest
from deferreds import failure_of, success_of
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from upstream_fakes import Net

from bakerygw.ports import ServiceHealth
from bakerygw.upstream.health import HealthChecks, HttpProbe, ProbeFailed

URL = "http://127.0.0.1:8000"


class ScriptedProbe:
    """Answers as the test says, by URL: nothing for healthy, an exception, or a Deferred to wait for."""

    def __init__(self) -> None:
        self.script: dict[str, Exception | Deferred[None]] = {}
        self.asked: list[str] = []

    async def __call__(self, url: str) -> None:
        self.asked.append(url)
        said = self.script.get(url)
        if isinstance(said, Deferred):
            await said
        elif said is not None:
            raise said


class Ward:
    """Health checks with everything around them."""

    def __init__(self, **services: tuple[str, ...]) -> None:
        self.clock, self.probe = Clock(), ScriptedProbe()
        self.looks: list[tuple[str, str, bool]] = []
        self.checks = HealthChecks(
            self.probe,
            services or {"sales": ("a",)},
            self.clock,
            lambda: 1000 + self.clock.seconds(),
            every_s=10,
            ttl_s=30,
            on_look=lambda service, url, ill: self.looks.append((service, url, ill)),
        )

    def sales(self) -> ServiceHealth:
        return self.checks.services()["sales"]


def test_nothing_is_known_before_the_first_look() -> None:
    ward = Ward()
    assert (ward.sales().status, ward.sales().since, ward.sales().checked_at) == ("unknown", None, None)


def test_services_without_a_url_are_left_out() -> None:
    assert list(Ward(sales=("a",), stock=()).checks.services()) == ["sales"]


def test_the_answer_is_what_the_last_look_saw_and_since_when() -> None:
    ward = Ward()
    ward.checks.start()
    assert (ward.sales().status, ward.sales().detail, ward.sales().since) == ("healthy", "", 1000)
    ward.clock.advance(10)
    assert (ward.sales().since, ward.sales().checked_at) == (1000, 1010)
    ward.probe.script["a"] = ProbeFailed("answered 500")
    ward.clock.advance(10)
    seen = ward.sales()
    assert (seen.status, seen.detail, seen.since, seen.latency_ms) == ("unhealthy", "answered 500", 1020, None)


def test_every_look_is_told_by_url_with_whether_it_found_illness() -> None:
    ward = Ward(sales=("a", "b", "c"))
    ward.probe.script["b"] = ProbeFailed("connection refused")
    ward.probe.script["c"] = ProbeFailed("answered 404", ill=False)
    ward.checks.start()
    assert ward.looks == [("sales", "a", False), ("sales", "b", True), ("sales", "c", False)]


def test_a_look_that_was_cancelled_tells_nothing() -> None:
    ward = Ward()
    ward.probe.script["a"] = Deferred()
    ward.checks.start()
    ward.checks.stop()
    assert ward.looks == []


def test_latency_is_measured() -> None:
    ward = Ward()
    ward.probe.script["a"] = pending = Deferred[None]()
    ward.checks.start()
    ward.clock.advance(0.25)
    pending.callback(None)
    assert ward.sales().latency_ms == pytest.approx(250)


def test_the_fastest_url_speaks_for_the_service() -> None:
    ward = Ward(sales=("a", "b"))
    ward.probe.script["a"] = slow = Deferred[None]()
    ward.checks.start()
    ward.clock.advance(0.25)
    slow.callback(None)
    assert ward.sales().latency_ms == 0


def test_one_healthy_url_is_enough() -> None:
    ward = Ward(sales=("a", "b"))
    ward.probe.script["a"] = ProbeFailed("answered 500")
    ward.checks.start()
    assert ward.sales().status == "healthy"
    ward.probe.script["b"] = ProbeFailed("no answer in time")
    ward.clock.advance(10)
    assert (ward.sales().status, ward.sales().detail) == ("unhealthy", "answered 500")


def test_an_old_look_says_nothing() -> None:
    ward = Ward()
    ward.checks.start()
    ward.checks.stop()
    ward.clock.advance(30)
    assert ward.sales().status == "healthy"
    ward.clock.advance(1)
    assert (ward.sales().status, ward.sales().since, ward.sales().latency_ms) == ("unknown", 1030, None)


def test_a_slow_service_does_not_hold_up_the_others() -> None:
    ward = Ward(slow=("s",), sales=("a",))
    ward.probe.script["s"] = Deferred()
    ward.checks.start()
    assert ward.sales().status == "healthy"
    ward.checks.stop()


def test_an_exception_in_a_probe_neither_ends_the_loop_nor_the_others(logged_failures: list[object]) -> None:
    ward = Ward(broken=("x",), sales=("a",))
    ward.probe.script["x"] = ZeroDivisionError("a bug")
    ward.checks.start()
    ward.clock.advance(10)
    assert ward.probe.asked == ["x", "a", "x", "a"]
    assert ward.checks.services()["broken"].status == "unknown"
    assert len(logged_failures) == 2
    logged_failures.clear()


def test_stopping_ends_what_is_under_way_and_all_that_would_follow() -> None:
    ward = Ward()
    cancelled: list[object] = []
    ward.probe.script["a"] = Deferred(cancelled.append)
    ward.checks.start()
    ward.checks.stop()
    assert len(cancelled) == 1
    assert ward.clock.getDelayedCalls() == []
    ward.checks.stop()


# The probe itself.


@pytest.mark.parametrize(
    ("status", "ill"), [(302, False), (401, False), (404, False), (429, True), (500, True), (503, True)]
)
def test_a_service_without_a_health_page_is_not_ill_and_one_with_trouble_is(status: int, ill: bool) -> None:
    net = Net()
    look = Deferred.fromCoroutine(HttpProbe(net.reactor, [URL])(URL))
    net.accept().answer(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    assert failure_of(look, ProbeFailed).ill is ill  # type: ignore[attr-defined]


@pytest.mark.parametrize(("status", "fault"), [(200, None), (204, None), (301, "answered 301"), (503, "answered 503")])
def test_only_2xx_is_healthy_and_redirects_are_not_followed(status: int, fault: str | None) -> None:
    net = Net()
    look = Deferred.fromCoroutine(HttpProbe(net.reactor, [URL])(URL))
    peer = net.accept()
    assert peer.transport.value().startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")
    peer.answer(b"HTTP/1.1 %d X\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 99999999\r\n\r\nxx" % status)
    if fault is None:
        success_of(look)
    else:
        assert str(failure_of(look, ProbeFailed)) == fault
    assert peer.transport.disconnecting, "neither the body nor another request is wanted"
    assert len(net.attempts) == 1


def test_a_probe_says_why_there_was_no_answer() -> None:
    net = Net()
    look = Deferred.fromCoroutine(HttpProbe(net.reactor, [URL])(URL))
    net.fail(ConnectionRefusedError())
    failure = failure_of(look, ProbeFailed)
    assert (str(failure), failure.ill) == ("connection refused", True)  # type: ignore[attr-defined]


def test_a_probe_takes_two_seconds_at_most_in_all() -> None:
    net = Net()
    look = Deferred.fromCoroutine(HttpProbe(net.reactor, [URL])(URL))
    net.reactor.advance(1.5)
    peer = net.accept()
    net.reactor.advance(0.6)
    assert str(failure_of(look, ProbeFailed)) == "no answer in time"
    assert peer.transport.aborted


def test_closing_a_probe_leaves_no_connection() -> None:
    net = Net()
    probe = HttpProbe(net.reactor, [URL])
    look = Deferred.fromCoroutine(probe(URL))
    peer = net.accept()
    probe.close()
    failure_of(look, ProbeFailed)
    assert peer.transport.aborted
