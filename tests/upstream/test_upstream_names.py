"""Names into addresses, with a resolver and a clock that the test moves by hand."""

import pytest
from deferreds import failure_of, success_of
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.interfaces import IResolutionReceiver
from upstream_fakes import DEADLINES, Net

from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.client import UpstreamClient
from bakerygw.upstream.health import HttpProbe, ProbeFailed
from bakerygw.upstream.names import FAILED_S, FRESH_S, LATE_S, PATIENCE_S, STALE_S, Address, LookUpLate, Names
from bakerygw.upstream.pool import Pool

ONE, TWO = IPv4Address("TCP", "10.0.0.1", 0), IPv4Address("TCP", "10.0.0.2", 0)
SIX = IPv6Address("TCP", "fd00::1", 0)


class Resolver:
    """Look-ups that hang until the test ends them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once: dict[str, tuple[Address, ...]] = {}
        self._under_way: list[tuple[str, IResolutionReceiver]] = []

    @property
    def under_way(self) -> list[str]:
        return [name for name, _ in self._under_way]

    def resolveHostName(self, resolutionReceiver: IResolutionReceiver, hostName: str) -> None:
        self.asked.append(hostName)
        self._under_way.append((hostName, resolutionReceiver))
        if hostName in self.at_once:
            self.end(hostName, *self.at_once[hostName])

    def end(self, name: str, *addresses: Address) -> None:
        """Let the look-up of this name find these addresses; none: let it fail."""
        found = next(entry for entry in self._under_way if entry[0] == name)
        self._under_way.remove(found)
        for address in addresses:
            found[1].addressResolved(address)
        found[1].resolutionComplete()


class House:
    """Names over a resolver and a network in memory."""

    def __init__(self, **options: int) -> None:
        self.net, self.resolver = Net(), Resolver()
        self.net.reactor.nameResolver = self.resolver  # type: ignore[attr-defined]
        self.names = Names(self.net.reactor, **options)

    def look_up(self, name: str = "sales") -> Deferred[tuple[Address, ...]]:
        return Deferred.fromCoroutine(self.names.look_up(name))

    def knows(self, *addresses: Address) -> None:
        """Let a look-up of `sales` succeed."""
        asking = self.look_up()
        self.resolver.end("sales", *addresses)
        assert success_of(asking) == addresses

    def pool(self, url: str = "http://sales:8000") -> Pool:
        return Pool(self.net.reactor, url, deadlines=DEADLINES, keepalive_s=4, names=self.names)

    def request(self, pool: Pool) -> Deferred[UpstreamResponse]:
        request = UpstreamRequest(method="GET", target=b"/", headers=(), body=None)
        return Deferred.fromCoroutine(pool.request(request))

    def pass_time(self, seconds: float) -> None:
        self.net.reactor.advance(seconds)

    @property
    def timers(self) -> int:
        return len(self.net.reactor.getDelayedCalls())


# One look-up for all.


def test_all_who_ask_for_a_name_wait_for_the_same_look_up() -> None:
    house = House()
    asking = [house.look_up() for _ in range(100)]
    assert house.resolver.asked == ["sales"]

    house.resolver.end("sales", ONE, SIX)

    assert [success_of(one) for one in asking] == [(ONE, SIX)] * 100
    assert house.timers == 0


def test_who_leaves_ends_neither_the_look_up_nor_the_wait_of_others() -> None:
    house = House()
    leaving, staying = house.look_up(), house.look_up()

    leaving.cancel()

    failure_of(leaving, CancelledError)
    assert house.resolver.under_way == ["sales"]
    house.resolver.end("sales", ONE)
    assert success_of(staying) == (ONE,)
    assert house.timers == 0


def test_a_name_is_not_asked_for_again_while_its_look_up_hangs() -> None:
    house = House()
    for _ in range(50):
        asking = house.look_up()
        house.pass_time(1)
        asking.cancel()
        asking.addErrback(lambda _: None)

    assert house.resolver.asked == ["sales"]


def test_an_answer_after_all_have_left_is_kept() -> None:
    house = House()
    failure_after(house, house.look_up(), LATE_S)
    house.pass_time(20)

    house.resolver.end("sales", ONE)

    assert success_of(house.look_up()) == (ONE,)
    assert house.resolver.asked == ["sales"]


def failure_after(house: House, asking: Deferred[tuple[Address, ...]], seconds: float) -> BaseException:
    house.pass_time(seconds - 0.01)
    assert not asking.called
    house.pass_time(0.02)
    return failure_of(asking, DNSLookupError)


# Look-ups at a time.


def test_names_beyond_the_bound_wait_for_their_turn_in_order() -> None:
    house = House(max_look_ups=2)
    asking = {name: house.look_up(name) for name in ("a", "b", "c", "d")}
    assert house.resolver.under_way == ["a", "b"]

    house.resolver.end("b", TWO)
    assert house.resolver.under_way == ["a", "c"]
    assert success_of(asking["b"]) == (TWO,)

    house.resolver.end("a")
    failure_of(asking["a"], DNSLookupError)
    assert house.resolver.under_way == ["c", "d"]


def test_a_hanging_name_leaves_the_others_their_places() -> None:
    house = House(max_look_ups=2)
    for _ in range(100):
        house.look_up("hanging").addErrback(lambda _: None)
    other = house.look_up("other")

    house.resolver.end("other", ONE)

    assert success_of(other) == (ONE,)


def test_a_name_in_the_queue_is_asked_for_once() -> None:
    house = House(max_look_ups=1)
    house.look_up("a")
    queued = [house.look_up("b"), house.look_up("b")]
    house.resolver.end("a", ONE)
    house.resolver.end("b", TWO)
    assert [success_of(one) for one in queued] == [(TWO,), (TWO,)]
    assert house.resolver.asked == ["a", "b"]


def test_a_resolver_that_answers_at_once_works_off_the_queue() -> None:
    house = House(max_look_ups=1)
    house.resolver.at_once = {"b": (ONE,), "c": (TWO,)}
    house.look_up("a")
    queued = [house.look_up("b"), house.look_up("c")]
    house.resolver.end("a", ONE)
    assert [success_of(one) for one in queued] == [(ONE,), (TWO,)]


# What is kept, and for how long.


def test_a_fresh_answer_is_used_without_asking() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(FRESH_S - 0.01)
    assert success_of(house.look_up()) == (ONE,)
    assert house.resolver.asked == ["sales"]


def test_an_older_answer_gives_way_to_one_that_comes_soon() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(FRESH_S)
    asking = house.look_up()
    house.pass_time(PATIENCE_S / 2)
    assert not asking.called

    house.resolver.end("sales", TWO)

    assert success_of(asking) == (TWO,)


def test_an_older_answer_is_used_while_the_look_up_hangs() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(FRESH_S)
    first = house.look_up()
    house.pass_time(PATIENCE_S)
    assert success_of(first) == (ONE,)

    assert success_of(house.look_up()) == (ONE,), "the others don't wait"
    house.resolver.end("sales", TWO)
    assert success_of(house.look_up()) == (TWO,)


def test_an_older_answer_is_used_when_the_look_up_fails() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(FRESH_S)
    asking = house.look_up()

    house.resolver.end("sales")

    assert success_of(asking) == (ONE,)
    assert success_of(house.look_up()) == (ONE,)
    assert house.resolver.asked == ["sales"] * 2


def test_an_answer_is_too_old_at_last_however_often_look_ups_failed_since() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(FRESH_S)
    for _ in range(round((STALE_S - FRESH_S) / 5)):
        asking = house.look_up()
        house.resolver.end("sales")
        assert success_of(asking) == (ONE,)
        house.pass_time(5)
    house.pass_time(0.01)

    asking = house.look_up()
    house.resolver.end("sales")

    failure_of(asking, DNSLookupError)


def test_an_answer_is_too_old_at_last_while_one_look_up_hangs() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(FRESH_S)
    house.look_up()
    house.pass_time(STALE_S - FRESH_S)
    assert success_of(house.look_up()) == (ONE,)
    house.pass_time(0.01)
    failure_of(house.look_up(), LookUpLate)


def test_a_failure_is_remembered_for_a_moment() -> None:
    house = House()
    asking = house.look_up()
    house.resolver.end("sales")
    failure_of(asking, DNSLookupError)
    house.pass_time(FAILED_S - 0.01)
    failure_of(house.look_up(), DNSLookupError)
    assert house.resolver.asked == ["sales"]

    house.pass_time(0.02)
    again = house.look_up()

    house.resolver.end("sales", ONE)
    assert success_of(again) == (ONE,)


def test_a_look_up_that_hangs_for_long_costs_nobody_any_more_time() -> None:
    house = House()
    first = house.look_up()
    house.pass_time(LATE_S - 1)
    assert isinstance(failure_after(house, house.look_up(), 1), LookUpLate)
    failure_of(first, LookUpLate)

    failure_of(house.look_up(), LookUpLate)

    assert house.timers == 0


def test_names_that_nobody_asks_for_are_forgotten() -> None:
    house = House()
    house.knows(ONE)
    house.pass_time(STALE_S + 0.01)
    for name in ("other", "another"):
        house.look_up(name)
    assert set(house.names._names) == {"other", "another"}


# The way through a pool.


def test_a_connection_goes_to_the_address_and_the_urls_port() -> None:
    house = House()
    answer = house.request(house.pool())
    assert house.net.attempts == []

    house.resolver.end("sales", ONE)

    assert house.net.attempts == ["10.0.0.1:8000"]
    peer = house.net.accept()
    assert b"\r\nHost: sales:8000\r\n" in peer.transport.value()
    peer.answer()
    assert success_of(answer).status == 200


def test_a_tls_connection_does_too() -> None:
    house = House()
    house.request(house.pool("https://sales")).addErrback(lambda _: None)
    house.resolver.end("sales", ONE)
    assert house.net.attempts == ["10.0.0.1:443"]


def test_the_only_address_refusing_is_told_at_once() -> None:
    house = House()
    house.knows(SIX)
    answer = house.request(house.pool())
    house.net.fail(ConnectionRefusedError())
    assert house.net.attempts == ["fd00::1:8000"]
    assert failure_of(answer, UpstreamFailed).error == "connection_refused"  # type: ignore[attr-defined]


def test_the_next_address_is_tried_when_the_first_refuses_or_is_slow() -> None:
    house = House()
    answer = house.request(house.pool())
    house.resolver.end("sales", SIX, ONE, TWO)
    assert house.net.attempts == ["fd00::1:8000"]
    house.pass_time(0.3)
    assert house.net.attempts[1:] == ["10.0.0.1:8000"]
    house.net.fail(ConnectionRefusedError())
    house.pass_time(0.3)

    house.net.accept().answer()

    assert house.net.attempts[2:] == ["10.0.0.2:8000"]
    assert success_of(answer).status == 200


def test_a_name_that_hangs_is_left_at_the_connects_deadline() -> None:
    house = House()
    pool = house.pool()
    answers = [house.request(pool) for _ in range(20)]

    house.pass_time(DEADLINES.connect_s + 0.01)

    assert {failure_of(answer, UpstreamFailed).error for answer in answers} == {"connection_timeout"}  # type: ignore[attr-defined]
    assert (pool.outstanding, house.timers) == (0, 0)
    assert house.resolver.asked == ["sales"]


@pytest.mark.parametrize(("hangs_s", "kind"), [(0, "dns_error"), (LATE_S, "dns_timeout")])
def test_the_failure_says_whether_there_was_an_answer(hangs_s: float, kind: str) -> None:
    house = House()
    house.look_up().addErrback(lambda _: None)
    if not hangs_s:
        house.resolver.end("sales")
    house.pass_time(hangs_s)
    failure = failure_of(house.request(house.pool()), UpstreamFailed)
    assert (failure.code, failure.error) == ("upstream-unreachable", kind)  # type: ignore[attr-defined]


def test_a_request_that_leaves_during_the_look_up_is_no_failure() -> None:
    house = House()
    pool = house.pool()
    answer = house.request(pool)
    answer.cancel()
    failure_of(answer, CancelledError)
    house.resolver.end("sales", ONE)
    assert (house.net.attempts, pool.outstanding) == ([], 0)


def test_a_request_that_leaves_while_connecting_is_no_failure() -> None:
    house = House()
    house.knows(ONE)
    answer = house.request(house.pool())
    answer.cancel()
    failure_of(answer, CancelledError)


def test_addresses_in_urls_need_no_resolver() -> None:
    house = House()
    for url in ("http://10.0.0.9:1", "http://[fd00::9]:1"):
        house.request(house.pool(url)).addErrback(lambda _: None)
    assert house.net.attempts == ["10.0.0.9:1", "fd00::9:1"]
    assert house.resolver.asked == []


@pytest.mark.parametrize("shared", [True, False])
def test_the_services_of_a_client_and_the_probes_share_look_ups(shared: bool) -> None:
    house = House()
    urls = ["http://sales:1", "http://sales:2"]
    names = house.names if shared else None
    client = UpstreamClient(
        house.net.reactor,
        {"sales": urls[:1], "orders": urls[1:]},
        connect_timeout_s=2,
        first_byte_timeout_s=15,
        idle_timeout_s=30,
        keepalive_s=4,
        names=names,
    )
    probe = HttpProbe(house.net.reactor, urls, names=names)
    request = UpstreamRequest(method="GET", target=b"/", headers=(), body=None)
    for service in ("sales", "orders"):
        Deferred.fromCoroutine(client.request(service, request)).addErrback(lambda _: None)
    looks = [Deferred.fromCoroutine(probe(url)) for url in urls]
    assert house.resolver.asked == ["sales"] * (1 if shared else 2)

    for _ in house.resolver.asked:
        house.resolver.end("sales")

    assert {str(failure_of(look, ProbeFailed)) for look in looks} == {"dns error"}
