"""Breakers and health over the URLs of a service, on a reactor in memory."""

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest
from deferreds import failure_of, success_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.logger import LogEvent, capturedLogs
from upstream_fakes import FakeSource, Net

from bakerygw.core.http import RequestSource
from bakerygw.ports import Onward, UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.client import UpstreamClient
from bakerygw.upstream.pool import MAX_CONNECTIONS

ONE, TWO, THREE = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
"""An answer that leaves no connection, so that every request dials and the attempts tell who was asked."""
ACCEPTED = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
ERROR_500 = LAST.replace(b"200 OK", b"500 No")


def ask(method: str = "GET", body: RequestSource | None = None, upgrade: bytes | None = None) -> UpstreamRequest:
    return UpstreamRequest(method=method, target=b"/", headers=(), body=body, upgrade=upgrade)


class House:
    """A client of one service, and the network around it."""

    def __init__(self, *urls: str, net: Net | None = None) -> None:
        self.net = net or Net()
        self.client = UpstreamClient(
            self.net.reactor,
            {"sales": urls or (ONE,), "orders": (THREE,)},
            connect_timeout_s=2,
            first_byte_timeout_s=15,
            idle_timeout_s=30,
            keepalive_s=4,
            random=Random(1),
        )

    def send(
        self, method: str = "POST", body: RequestSource | None = None, upgrade: bytes | None = None
    ) -> Deferred[UpstreamResponse]:
        """A request to the service; a POST, unless told otherwise, is not sent twice on its own account."""
        return Deferred.fromCoroutine(self.client.request("sales", ask(method, body, upgrade)))

    def refuse(self) -> UpstreamFailed:
        """What a request fails with whose connections are all refused."""
        answer = self.send()
        refused: set[int] = set()
        while not answer.called:
            refused.add(len(self.net.attempts))
            self.net.fail(ConnectionRefusedError())
            assert len(refused) < 9
        failure = failure_of(answer, UpstreamFailed)
        assert isinstance(failure, UpstreamFailed)
        return failure

    def open(self) -> None:
        """Let the only URL fail until its breaker opens."""
        for _ in range(5):
            assert self.refuse().code == "upstream-unreachable"

    def spared(self, body: RequestSource | None = None) -> UpstreamFailed:
        """What a request fails with for which nothing was tried."""
        before = len(self.net.attempts)
        failure = failure_of(self.send(body=body), UpstreamFailed)
        assert isinstance(failure, UpstreamFailed)
        assert (failure.code, len(self.net.attempts)) == ("service-unavailable", before)
        return failure

    def served(self) -> str:
        """Which URL's turn it is, by a request that is answered."""
        answer = self.send()
        self.net.accept().answer(LAST)
        assert success_of(answer).body.whole() == b"hi"
        return self.net.attempts[-1]

    def states(self) -> list[str]:
        return [url.breaker for url in self.client.stats()["sales"]]


def kill(house: House, port: int) -> None:
    """Let the URL with this port refuse until its breaker is open, and all others answer."""
    number = [url.url.endswith(f":{port}") for url in house.client.stats()["sales"]].index(True)
    for _ in range(200):
        if house.states()[number] == "open":
            return
        answer = house.send()
        while not answer.called:
            if house.net.attempts[-1].endswith(f":{port}"):
                house.net.fail(ConnectionRefusedError())
            else:
                house.net.accept().answer(LAST)
        success_of(answer)
    raise AssertionError("it does not open")


def look(house: House, url: str, *, ill: bool, times: int = 1) -> None:
    for _ in range(times):
        house.client.looked("sales", url, ill=ill)


def asked(house: House) -> set[str]:
    return {house.served()[-1] for _ in range(40)}


@pytest.fixture
def told() -> Iterator[list[LogEvent]]:
    with capturedLogs() as events:
        yield events


# One URL.


def test_after_five_failures_nothing_is_tried_and_nothing_is_left_behind() -> None:
    house = House()
    house.open()
    timers = house.net.reactor.getDelayedCalls()
    failure = house.spared()
    assert (failure.error, failure.retry_after_s) == ("destination_unavailable", 5)
    assert failure.cause == "breaker open: connection_refused"
    assert house.net.reactor.getDelayedCalls() == timers
    assert house.client.breaker("sales") == "open"


def test_the_wait_is_told_in_whole_seconds_and_at_least_one() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(2.5)
    assert house.spared().retry_after_s == 3
    house.net.reactor.advance(2.499)
    assert house.spared().retry_after_s == 1


def test_another_service_is_asked_as_before() -> None:
    house = House()
    house.open()
    answer = Deferred.fromCoroutine(house.client.request("orders", ask()))
    house.net.accept().answer()
    assert success_of(answer).status == 200
    assert house.client.breaker("orders") == "closed"
    assert house.client.breaker("unheard-of") == "closed"


FAULTS: dict[str, Callable[[House], None]] = {
    "refused": lambda house: house.net.fail(ConnectionRefusedError()),
    "connect timeout": lambda house: house.net.reactor.advance(2.1),
    "malformed": lambda house: house.net.accept().answer(b"garbage\r\n\r\n"),
    "closed before the head": lambda house: house.net.accept().close(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_of_these_is_a_failure_of_the_service(name: str) -> None:
    house = House()
    for _ in range(4):
        answer = house.send()
        FAULTS[name](house)
        failure_of(answer, UpstreamFailed)
    assert house.states() == ["closed"]
    answer = house.send()
    FAULTS[name](house)
    failure_of(answer, UpstreamFailed)
    assert house.states() == ["open"]


@pytest.mark.parametrize("stalled", [False, True])
def test_requests_that_time_out_together_open_it(stalled: bool) -> None:
    house = House()
    bodies = [FakeSource(9) if stalled else None for _ in range(5)]
    answers = [house.send(body=body) for body in bodies]
    for number in range(5):
        peer = house.net.accept(number)
        if stalled:
            peer.transport.producer.pauseProducing()  # type: ignore[union-attr]
    house.net.reactor.advance(30.5)
    assert [failure_of(answer).code for answer in answers] == ["upstream-timeout"] * 5  # type: ignore[attr-defined]
    assert house.states() == ["open"]


def test_a_head_that_breaks_off_is_a_failure_too() -> None:
    house = House()
    for _ in range(5):
        answer = house.send()
        peer = house.net.accept()
        peer.answer(b"HTTP/1.1 200")
        peer.close()
        failure_of(answer, UpstreamFailed)
    assert house.states() == ["open"]


def cancelled(house: House) -> None:
    answer = house.send()
    house.net.accept()
    answer.cancel()
    failure_of(answer, CancelledError)


def cancelled_while_connecting(house: House) -> None:
    answer = house.send()
    answer.cancel()
    failure_of(answer, CancelledError)


def clients_body_cut(house: House) -> None:
    body = FakeSource(9)
    answer = house.send(body=body)
    house.net.accept()
    assert body.sink is not None
    body.sink.cut("client left")
    failure_of(answer, UpstreamFailed)


def clients_body_stalls(house: House) -> None:
    answer = house.send(body=FakeSource(9))
    house.net.accept()
    house.net.reactor.advance(30.5)
    failure_of(answer, UpstreamFailed)
    house.net.reactor.rightNow -= 30.5  # so that all of them would be within ten seconds


def error_of_the_service(house: House) -> None:
    answer = house.send()
    house.net.accept().answer(ERROR_500)
    assert success_of(answer).status == 500


def body_cut_after_its_head(house: House) -> None:
    answer = house.send()
    peer = house.net.accept()
    peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
    success_of(answer)
    peer.close()


NO_FAULTS = [
    cancelled,
    cancelled_while_connecting,
    clients_body_cut,
    clients_body_stalls,
    error_of_the_service,
    body_cut_after_its_head,
]


@pytest.mark.parametrize("happens", NO_FAULTS, ids=lambda it: it.__name__)
def test_none_of_these_is_a_failure_of_the_service(happens: Callable[[House], None]) -> None:
    house = House()
    for _ in range(8):
        happens(house)
    assert house.states() == ["closed"]


def test_a_full_queue_is_no_failure_of_the_service() -> None:
    house = House()
    answers = [house.send() for _ in range(MAX_CONNECTIONS + 256)]
    for _ in range(8):
        assert failure_of(house.send(), UpstreamFailed).error == "connection_limit_reached"  # type: ignore[attr-defined]
    assert house.states() == ["closed"]
    for answer in answers:
        answer.cancel()
        failure_of(answer, CancelledError)


def test_a_request_that_was_repeated_in_vain_counts_once() -> None:
    house = House()
    for tries in range(1, 6):
        assert house.states() == ["closed"]
        answer = house.send("GET")
        house.net.accept().close()
        house.net.accept().close()
        failure_of(answer, UpstreamFailed)
        assert len(house.net.attempts) == 2 * tries
    assert house.states() == ["open"]


def test_an_old_connection_that_dies_does_not_count_where_the_repeat_goes_well() -> None:
    house = House()
    for _ in range(8):
        answer = house.send("GET")
        house.net.accept().close()
        peer = house.net.accept()
        peer.answer()
        assert success_of(answer).status == 200
        peer.close()
    assert house.states() == ["closed"]


def test_a_few_failures_among_many_answers_take_the_service_from_nobody() -> None:
    house = House()
    slow = [house.send() for _ in range(6)]
    for number in range(6):
        house.net.accept(number)
    for _ in range(60):
        house.served()
    house.net.reactor.advance(15.5)
    for answer in slow:
        failure_of(answer, UpstreamFailed)
    assert house.states() == ["closed"]


def test_who_waits_for_a_connection_is_turned_away_when_it_opens() -> None:
    house = House()
    busy = [house.send() for _ in range(MAX_CONNECTIONS)]
    waiting = [house.send("GET") for _ in range(8)]
    for number in range(5):
        house.net.fail(ConnectionRefusedError(), number)
        failure_of(busy[number], UpstreamFailed)
    assert [answer.called for answer in waiting] == [False] * 5 + [True] * 3, "each place that got free went to one"
    assert {failure_of(it, UpstreamFailed).code for it in waiting[5:]} == {"service-unavailable"}  # type: ignore[attr-defined]
    for answer in [*busy[5:], *waiting[:5]]:
        answer.cancel()
        failure_of(answer, CancelledError)


# The probe.


def test_after_five_seconds_exactly_one_request_is_the_probe() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    assert house.client.breaker("sales") == "half-open"
    probe = house.send()
    assert [house.spared().retry_after_s for _ in range(50)] == [5] * 50
    house.net.accept().answer()
    assert success_of(probe).status == 200
    assert house.states() == ["closed"]
    assert house.send().called is False


def test_a_service_that_answers_with_an_error_is_there_again() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    probe = house.send()
    house.net.accept().answer(ERROR_500)
    assert success_of(probe).status == 500
    assert house.states() == ["closed"]


def test_a_probe_that_fails_opens_it_for_another_five_seconds() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    house.refuse()
    house.net.reactor.advance(4.9)
    house.spared()
    house.net.reactor.advance(0.2)
    assert house.refuse().code == "upstream-unreachable"


def test_a_probe_that_is_not_answered_is_not_repeated() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    probe = house.send("GET")
    before = len(house.net.attempts)
    house.net.accept().close()
    failure_of(probe, UpstreamFailed)
    assert (len(house.net.attempts), house.states()) == (before, ["open"])


@pytest.mark.parametrize(
    ("happens", "open_s"),
    [(cancelled, 5), (cancelled_while_connecting, 5), (clients_body_cut, 30)],
    ids=["cancelled", "cancelled while connecting", "body cut"],
)
def test_a_probe_that_says_nothing_of_the_service_leaves_its_place_to_the_next(
    happens: Callable[[House], None], open_s: float
) -> None:
    house = House()
    house.open()
    house.net.reactor.advance(open_s)
    happens(house)
    assert house.client.breaker("sales") == "half-open"
    house.served()
    assert house.states() == ["closed"]


def test_a_probe_that_takes_long_does_not_keep_the_next_from_trying() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    stuck = house.send()
    house.net.accept()
    house.net.reactor.advance(5)
    house.served()
    assert house.states() == ["closed"]
    house.net.reactor.advance(11)
    failure_of(stuck, UpstreamFailed)
    assert house.states() == ["closed"]


def test_answers_that_all_take_longer_than_the_pause_close_it() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    slow = house.send()
    peer = house.net.accept()
    house.net.reactor.advance(5)
    later = house.send()
    house.net.accept()
    peer.answer()
    assert success_of(slow).status == 200
    assert house.states() == ["closed"]
    house.net.reactor.advance(16)
    failure_of(later, UpstreamFailed)
    assert house.states() == ["closed"]


@pytest.mark.parametrize("length", [9, None])
def test_a_request_whose_body_is_still_to_come_is_not_the_probe(length: int | None) -> None:
    house = House()
    house.open()
    house.net.reactor.advance(5)
    for _ in range(3):
        assert house.spared(FakeSource(length)).retry_after_s == 1
    probe = house.send(body=FakeSource(length, b"all of it"))
    house.net.accept().answer()
    assert success_of(probe).status == 200
    assert house.states() == ["closed"]


def test_after_half_a_minute_it_may_be_the_probe() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(29.9)
    house.spared(FakeSource(9))
    house.net.reactor.advance(0.2)
    probe = house.send(body=FakeSource(9))
    house.net.accept().answer()
    assert success_of(probe).status == 200
    assert house.states() == ["closed"]


def test_as_the_probe_it_keeps_no_request_waiting_that_is_all_here() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(30)
    upload = house.send(body=FakeSource(9))
    house.net.accept()
    house.spared(FakeSource(9))
    probe = house.send()
    house.spared()
    house.net.accept().answer()
    assert success_of(probe).status == 200
    assert house.states() == ["closed"]
    house.net.reactor.advance(31)
    failure_of(upload, UpstreamFailed)
    assert house.states() == ["closed"]


def test_requests_from_before_it_opened_do_not_open_it_again() -> None:
    house = House()
    stragglers = [house.send() for _ in range(8)]
    for number in range(8):
        house.net.accept(number)
    house.open()
    house.net.reactor.advance(5)
    house.served()
    house.net.reactor.advance(11)
    for answer in stragglers:
        failure_of(answer, UpstreamFailed)
    assert house.states() == ["closed"]


def test_an_answer_from_before_it_opened_does_not_speak_for_the_probe() -> None:
    house = House()
    straggler = house.send()
    early = house.net.accept()
    house.open()
    house.net.reactor.advance(5)
    probe = house.send()
    early.answer(LAST)
    assert success_of(straggler).status == 200
    assert house.states() == ["half-open"]
    house.net.accept().answer(LAST)
    assert success_of(probe).status == 200
    assert house.states() == ["closed"]


# Several URLs.


def test_a_url_with_an_open_breaker_is_passed_over() -> None:
    house = House(ONE, TWO)
    kill(house, 1)
    assert house.states() == ["open", "closed"]
    assert house.client.breaker("sales") == "closed"
    assert {house.served() for _ in range(30)} == {"127.0.0.1:2"}


def test_requests_that_waited_for_a_url_whose_breaker_opens_go_to_another() -> None:
    house = House(ONE, TWO)
    look(house, TWO, ill=True, times=2)
    requests = [house.send() for _ in range(MAX_CONNECTIONS + 8)]
    look(house, TWO, ill=False)
    assert Counter(house.net.attempts) == {"127.0.0.1:1": MAX_CONNECTIONS}
    for number in range(5):
        house.net.fail(ConnectionRefusedError(), number)
    assert Counter(house.net.attempts) == {"127.0.0.1:1": MAX_CONNECTIONS + 5, "127.0.0.1:2": 5 + 3}
    for answer in requests:
        answer.cancel()
        failure_of(answer, CancelledError)


def test_without_a_look_at_health_one_request_is_the_probe() -> None:
    house = House(ONE, TWO)
    kill(house, 1)
    house.net.reactor.advance(5)
    assert house.served() == "127.0.0.1:1"
    assert house.states() == ["closed", "closed"]


def test_where_health_is_looked_at_the_probe_waits_for_an_answer_there() -> None:
    house = House(ONE, TWO)
    house.client.looked("sales", ONE, ill=False)
    kill(house, 1)
    house.net.reactor.advance(29)
    assert {house.served() for _ in range(20)} == {"127.0.0.1:2"}
    house.client.looked("sales", ONE, ill=True)
    assert house.served() == "127.0.0.1:2"
    house.client.looked("sales", ONE, ill=False)
    assert house.states() == ["half-open", "closed"], "health alone closes no breaker"
    assert house.served() == "127.0.0.1:1"
    assert house.states() == ["closed", "closed"]


def test_the_probe_waits_as_long_as_the_url_is_ailing() -> None:
    house = House(ONE, TWO)
    kill(house, 1)
    look(house, ONE, ill=False)
    look(house, ONE, ill=True, times=2)
    house.net.reactor.advance(29)
    assert asked(house) == {"2"}
    look(house, ONE, ill=False)
    assert house.served() == "127.0.0.1:1"


@pytest.mark.parametrize("looks", [1, 2])
def test_the_probe_waits_half_a_minute_for_health_and_no_longer(looks: int) -> None:
    house = House(ONE, TWO)
    look(house, ONE, ill=False)
    kill(house, 1)
    look(house, ONE, ill=True, times=looks)
    for _ in range(2):
        house.net.reactor.advance(29.9)
        assert asked(house) == {"2"}
        house.net.reactor.advance(0.2)
        probe = house.send()
        assert house.net.attempts[-1] == "127.0.0.1:1"
        house.net.accept().answer(b"garbage\r\n\r\n")
        failure_of(probe, UpstreamFailed)
    house.net.reactor.advance(30)
    assert house.served() == "127.0.0.1:1"
    assert house.states() == ["closed", "closed"]


def test_the_probe_does_not_wait_for_health_where_the_others_are_ailing_too() -> None:
    house = House(ONE, TWO)
    look(house, ONE, ill=True, times=2)
    look(house, TWO, ill=True, times=2)
    kill(house, 1)
    house.net.reactor.advance(4.9)
    assert asked(house) == {"2"}
    house.net.reactor.advance(0.2)
    assert house.served() == "127.0.0.1:1"
    assert asked(house) == {"1", "2"}


def test_an_upload_goes_to_another_url_and_leaves_the_probe_to_the_next() -> None:
    house = House(ONE, TWO)
    kill(house, 1)
    house.net.reactor.advance(5)
    upload = house.send(body=FakeSource(9))
    assert house.net.attempts[-1] == "127.0.0.1:2"
    assert house.served() == "127.0.0.1:1"
    upload.cancel()
    failure_of(upload, CancelledError)


def test_a_second_try_is_not_spent_on_a_url_with_an_open_breaker() -> None:
    house = House(ONE, TWO)
    kill(house, 1)
    before = len(house.net.attempts)
    answer = house.send()
    house.net.fail(ConnectionRefusedError())
    failure_of(answer, UpstreamFailed)
    assert house.net.attempts[before:] == ["127.0.0.1:2"]


def test_a_second_try_goes_to_an_ailing_url_where_there_is_no_other() -> None:
    house = House(ONE, TWO)
    look(house, TWO, ill=True, times=2)
    answer = house.send()
    house.net.fail(ConnectionRefusedError())
    house.net.accept().answer(LAST)
    assert success_of(answer).status == 200
    assert house.net.attempts == ["127.0.0.1:1", "127.0.0.1:2"]


def test_a_url_that_answers_at_health_alone_costs_one_request_for_each_look() -> None:
    house = House(ONE, TWO)
    house.client.looked("sales", ONE, ill=False)
    kill(house, 1)
    for _ in range(3):
        house.net.reactor.advance(5)
        house.client.looked("sales", ONE, ill=False)
        probe = house.send()
        assert house.net.attempts[-1] == "127.0.0.1:1"
        house.net.accept().answer(b"garbage\r\n\r\n")
        failure_of(probe, UpstreamFailed)
        house.net.reactor.advance(24)
        assert {house.served() for _ in range(20)} == {"127.0.0.1:2"}


def test_for_the_only_url_the_probe_does_not_wait_for_health() -> None:
    house = House()
    house.client.looked("sales", ONE, ill=True)
    house.client.looked("sales", ONE, ill=True)
    house.open()
    house.net.reactor.advance(5)
    house.served()
    assert house.states() == ["closed"]


def both_dead() -> House:
    house = House(ONE, TWO)
    for _ in range(12):
        house.refuse()
    assert house.states() == ["open", "open"]
    return house


def test_where_all_are_open_each_takes_one_request_at_a_time() -> None:
    house = both_dead()
    assert house.client.breaker("sales") == "open"
    before = len(house.net.attempts)
    held = [house.send(), house.send()]
    assert sorted(house.net.attempts[before:]) == ["127.0.0.1:1", "127.0.0.1:2"]
    assert house.spared().retry_after_s == 5
    peers = [house.net.accept(-2), house.net.accept(-1)]
    peers[0].answer(LAST)
    assert success_of(held[0]).status == 200
    assert sorted(house.states()) == ["closed", "half-open"]
    for _ in range(5):
        house.served()
    held[1].cancel()
    failure_of(held[1], CancelledError)


def test_where_all_are_open_uploads_keep_nobody_waiting() -> None:
    house = both_dead()
    house.spared(FakeSource(9))
    house.net.reactor.advance(30)
    uploads = [house.send(body=FakeSource(9)) for _ in range(2)]
    for number in (-2, -1):
        house.net.accept(number)
    house.spared(FakeSource(9))
    assert Counter(house.net.attempts[-2:]) == {"127.0.0.1:1": 1, "127.0.0.1:2": 1}
    house.served()
    assert sorted(house.states()) == ["closed", "half-open"]
    for upload in uploads:
        upload.cancel()
        failure_of(upload, CancelledError)


def test_where_all_are_open_an_upload_has_no_second_try() -> None:
    house = House(ONE, TWO)
    upload = house.send(body=FakeSource(9))
    for _ in range(12):
        house.refuse()
    assert house.states() == ["open", "open"]
    before = len(house.net.attempts)
    house.net.fail(ConnectionRefusedError(), 0)
    assert len(house.net.attempts) == before
    failure_of(upload, UpstreamFailed)


def test_where_all_are_open_a_failure_makes_room_for_the_next_at_once() -> None:
    house = both_dead()
    for _ in range(5):
        assert house.refuse().code == "upstream-unreachable"
    house.served()
    assert "closed" in house.states()


def test_where_all_are_open_a_second_try_may_close_a_breaker() -> None:
    house = both_dead()
    answer = house.send()
    house.net.fail(ConnectionRefusedError())
    house.net.accept().answer(LAST)
    assert success_of(answer).status == 200
    assert sorted(house.states()) == ["closed", "open"]


def test_where_all_are_open_a_second_try_that_is_cancelled_leaves_its_place() -> None:
    house = both_dead()
    answer = house.send()
    house.net.fail(ConnectionRefusedError())
    answer.cancel()
    failure_of(answer, CancelledError)
    before = len(house.net.attempts)
    held = [house.send(), house.send()]
    assert sorted(house.net.attempts[before:]) == ["127.0.0.1:1", "127.0.0.1:2"]
    for waiting in held:
        waiting.cancel()
        failure_of(waiting, CancelledError)


def test_where_all_are_open_the_log_is_not_flooded(told: list[LogEvent]) -> None:
    house = both_dead()
    before = len(told)
    for _ in range(50):
        house.refuse()
    assert told[before:] == []


# Health.


def test_a_url_that_was_ill_twice_in_a_row_is_avoided_until_it_is_well() -> None:
    house = House(ONE, TWO)
    look(house, ONE, ill=True)
    look(house, ONE, ill=False)
    look(house, ONE, ill=True)
    assert asked(house) == {"1", "2"}
    look(house, ONE, ill=True)
    assert asked(house) == {"2"}
    assert [url.ailing for url in house.client.stats()["sales"]] == [True, False]
    look(house, ONE, ill=False)
    assert asked(house) == {"1", "2"}


def test_health_never_takes_away_the_only_url_nor_all_of_them() -> None:
    house = House(ONE)
    look(house, ONE, ill=True, times=9)
    assert asked(house) == {"1"}
    house = House(ONE, TWO)
    look(house, ONE, ill=True, times=9)
    look(house, TWO, ill=True, times=9)
    assert asked(house) == {"1", "2"}


def test_health_never_takes_away_more_than_half() -> None:
    house = House(ONE, TWO, THREE)
    look(house, ONE, ill=True, times=2)
    assert asked(house) == {"2", "3"}
    look(house, TWO, ill=True, times=2)
    assert asked(house) == {"1", "2", "3"}


def test_an_ailing_url_is_asked_where_the_others_are_open() -> None:
    house = House(ONE, TWO)
    look(house, TWO, ill=True, times=2)
    assert asked(house) == {"1"}
    for _ in range(5):
        answer = house.send("GET")
        house.net.accept().answer(b"garbage\r\n\r\n")
        failure_of(answer, UpstreamFailed)
    assert asked(house) == {"2"}


def test_looks_at_services_and_urls_that_are_not_there_change_nothing() -> None:
    house = House(ONE, TWO)
    house.client.looked("unheard-of", ONE, ill=True)
    look(house, THREE, ill=True, times=3)
    assert asked(house) == {"1", "2"}


# Second tries.


def test_second_tries_have_a_budget() -> None:
    house = House()
    repeated = 0
    while True:
        answer = house.send("GET")
        house.net.accept().close()
        if answer.called:
            break
        repeated += 1
        house.net.accept().answer(LAST)
        success_of(answer)
    failure_of(answer, UpstreamFailed)
    assert repeated == 37, "thirty, and a tenth of the 74 exchanges that there were"


# A new configuration.


def test_what_is_known_of_a_url_outlives_a_reload() -> None:
    old = House(ONE, TWO)
    kill(old, 1)
    look(old, TWO, ill=True, times=2)
    new = House(TWO, ONE, THREE, net=old.net)

    new.client.take_over(old.client)

    assert new.states() == ["closed", "open", "closed"]
    assert [url.ailing for url in new.client.stats()["sales"]] == [True, False, False]
    old.net.reactor.advance(5)
    assert new.served() == "127.0.0.1:1"
    assert (new.states()[1], old.states()[0]) == ("closed", "half-open"), "they share nothing"


# What operators see.


def test_every_change_is_logged_once(told: list[LogEvent]) -> None:
    house = House()
    house.open()
    house.spared()
    house.net.reactor.advance(5)
    house.refuse()
    house.net.reactor.advance(5)
    house.served()
    changes = [event for event in told if event["log_format"] == "upstream.breaker"]
    assert [event["state"] for event in changes] == ["open", "half-open", "open", "half-open", "closed"]
    assert {(event["service"], event["url"], event["cause"]) for event in changes} == {
        ("sales", ONE, "connection_refused")
    }
    assert [event["log_level"].name for event in changes] == ["warn", "info", "debug", "debug", "info"]
    house.open()
    assert [event["log_level"].name for event in told if event["log_format"] == "upstream.breaker"][5:] == ["warn"]


def test_an_outage_that_lasts_is_no_flood_of_lines(told: list[LogEvent]) -> None:
    house = House()
    house.open()
    for _ in range(100):
        house.net.reactor.advance(5)
        house.refuse()
    changes = [event for event in told if event["log_format"] == "upstream.breaker"]
    assert [event["state"] for event in changes if event["log_level"].name != "debug"] == ["open", "half-open"]


def test_a_change_of_health_is_logged_once(told: list[LogEvent]) -> None:
    house = House(ONE, TWO)
    look(house, ONE, ill=True, times=4)
    look(house, ONE, ill=False, times=4)
    changes = [event for event in told if event["log_format"] == "upstream.health"]
    assert [(event["url"], event["state"]) for event in changes] == [(ONE, "ailing"), (ONE, "well")]


def test_the_state_of_each_url_is_told() -> None:
    house = House()
    house.open()
    house.net.reactor.advance(1.5)
    (stats,) = house.client.stats()["sales"]
    assert (stats.breaker, stats.retry_in_s, stats.ailing, stats.failures) == ("open", 3.5, False, 5)


def test_closing_the_client_opens_no_breaker(told: list[LogEvent]) -> None:
    house = House()
    answers = [house.send() for _ in range(8)]
    peers = [house.net.accept(number) for number in range(8)]
    house.client.close()
    for answer in answers:
        failure_of(answer, UpstreamFailed)
    assert all(peer.transport.disconnecting for peer in peers)
    assert house.states() == ["closed"]
    assert told == []


# Connections that go on in another protocol.


def onward(response: UpstreamResponse) -> Onward:
    assert response.onward is not None
    return response.onward


def went_on(house: House) -> Onward:
    answer = house.send("GET", upgrade=b"websocket")
    house.net.accept().answer(ACCEPTED)
    return onward(success_of(answer))


def dead() -> UpstreamFailed:
    return UpstreamFailed("upstream-unreachable", "connection_terminated", "died of it")


def sockets_to(house: House, count: int) -> list[str]:
    """Where so many sockets went; each goes well."""
    asked = []
    for _ in range(count):
        taken = went_on(house)
        asked.append(house.net.attempts[-1][-1])
        taken.judge()
    return asked


def fail_sockets(house: House, url: str, times: int = 3) -> None:
    while times:
        taken = went_on(house)
        if house.net.attempts[-1].endswith(url[-2:]):
            taken.judge(dead())
            taken.judge()
            times -= 1
        else:
            taken.judge()
        house.net.reactor.advance(1)


def test_a_url_whose_sockets_come_to_nothing_is_passed_over_by_sockets_alone(told: list[LogEvent]) -> None:
    house = House(ONE, TWO)
    fail_sockets(house, ONE)
    assert set(sockets_to(house, 20)) == {"2"}
    assert [url.failures for url in house.client.stats()["sales"]] == [3, 0]
    assert house.states() == ["closed", "closed"]
    assert asked(house) == {"1", "2"}
    (line,) = [it for it in told if it["log_format"] == "upstream.sockets"]
    assert (line["url"], line["state"], line["cause"]) == (ONE, "failing", "died of it")


def test_after_a_while_one_socket_tries_it_again(told: list[LogEvent]) -> None:
    house = House(ONE, TWO)
    fail_sockets(house, ONE)
    house.net.reactor.advance(10)
    taken = went_on(house)
    assert house.net.attempts[-1].endswith(":1")
    assert set(sockets_to(house, 20)) == {"2"}
    taken.judge(dead())
    assert set(sockets_to(house, 20)) == {"2"}
    house.net.reactor.advance(10)
    assert set(sockets_to(house, 60)) == {"1", "2"}
    assert [it["state"] for it in told if it["log_format"] == "upstream.sockets"] == ["failing", "serving"]


def test_a_few_sockets_among_many_that_go_well_are_no_reason() -> None:
    house = House(ONE, TWO)
    for _ in range(3):
        sockets_to(house, 40)
        fail_sockets(house, ONE, 1)
    assert set(sockets_to(house, 20)) == {"1", "2"}


@pytest.mark.parametrize("urls", [(ONE,), (ONE, TWO)])
def test_where_no_url_serves_sockets_they_are_refused_nowhere_and_one_that_goes_well_will_do(
    urls: tuple[str, ...], told: list[LogEvent]
) -> None:
    house = House(*urls)
    for _ in range(12):
        went_on(house).judge(dead())
    assert len([it for it in told if it["log_format"] == "upstream.sockets"]) == len(urls)
    sockets_to(house, 1)
    assert told[-1]["state"] == "serving"


def test_a_second_try_is_judged_like_a_first() -> None:
    house = House()
    answer = house.send("GET", upgrade=b"websocket")
    house.net.accept().close()
    house.net.accept().answer(ACCEPTED)
    onward(success_of(answer)).judge(dead())
    assert house.client.stats()["sales"][0].failures == 2


def test_which_urls_serve_sockets_outlives_a_reload() -> None:
    house, after = House(ONE, TWO), House(ONE, TWO)
    fail_sockets(house, ONE)
    after.client.take_over(house.client)
    assert set(sockets_to(after, 20)) == {"2"}


def test_open_sockets_are_shared_evenly_and_are_no_load_to_requests() -> None:
    house, peers = House(ONE, TWO), []
    for _ in range(20):
        answer = house.send("GET", upgrade=b"websocket")
        peers.append((house.net.attempts[-1], house.net.accept()))
        peers[-1][1].answer(ACCEPTED)
        onward(success_of(answer)).judge()
    for url, peer in peers:
        if url.endswith(":1"):
            peer.close()

    assert [(url.sockets, url.in_flight) for url in house.client.stats()["sales"]] == [(0, 0), (10, 0)]
    assert all(5 < count < 35 for count in Counter(house.served() for _ in range(40)).values())
    house.send("GET", upgrade=b"websocket")
    assert house.net.attempts[-1].endswith(":1")
