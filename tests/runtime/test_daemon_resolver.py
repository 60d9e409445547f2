"""Look-ups in threads of their own: what they tell, and that they hold nobody up."""

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver
from zope.interface import implementer
from zope.interface.verify import verifyObject

from bakerygw.runtime.resolver import DaemonResolver

TCP = socket.SOCK_STREAM
FOUND = [
    (socket.AF_INET6, TCP, 6, "", ("2001:db8::1", 443, 0, 0)),
    (socket.AF_INET, TCP, 6, "", ("192.0.2.1", 443)),
    (socket.AF_UNIX, TCP, 0, "", "/odd"),
]


class Reactor:
    """Takes calls from threads, for the test to make."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.called = threading.Event()

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        self.calls.append((call, args))
        self.called.set()

    def make_calls(self) -> None:
        assert self.called.wait(30)
        for call, args in self.calls:
            call(*args)


@implementer(IResolutionReceiver)
class Receiver:
    def __init__(self) -> None:
        self.told: list[object] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        self.told.append(resolutionInProgress.name)

    def addressResolved(self, address: Any) -> None:
        self.told.append(address)

    def resolutionComplete(self) -> None:
        self.told.append("complete")


def look_up(getaddrinfo: Callable[..., Any], types: Sequence[Any] | None = None) -> list[object]:
    reactor, receiver = Reactor(), Receiver()
    DaemonResolver(reactor, getaddrinfo).resolveHostName(receiver, "sales", 443, types)  # type: ignore[arg-type]
    reactor.make_calls()
    return receiver.told


def test_it_is_a_resolver_as_twisted_knows_them() -> None:
    assert verifyObject(IHostnameResolver, DaemonResolver(Reactor()))  # type: ignore[arg-type]


def test_every_address_is_told_in_the_systems_order() -> None:
    asked: list[tuple[Any, ...]] = []
    told = look_up(lambda *args: (asked.append(args), FOUND)[1])
    assert asked == [("sales", 443, 0, TCP)]
    assert told == ["sales", IPv6Address("TCP", "2001:db8::1", 443), IPv4Address("TCP", "192.0.2.1", 443), "complete"]


def test_only_the_kinds_that_are_wanted_are_told() -> None:
    assert look_up(lambda *_: FOUND, [IPv4Address]) == ["sales", IPv4Address("TCP", "192.0.2.1", 443), "complete"]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), OSError("odd"), UnicodeError("label too long")])
def test_a_look_up_that_fails_has_no_address(error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    assert look_up(fail) == ["sales", "complete"]


def test_a_look_up_that_hangs_holds_up_neither_its_caller_nor_the_end_of_the_process() -> None:
    release = threading.Event()
    reactor, receiver = Reactor(), Receiver()
    resolver = DaemonResolver(reactor, lambda *_: release.wait(60) and FOUND)  # type: ignore[arg-type]
    resolver.resolveHostName(receiver, "hangs").cancel()
    assert receiver.told == ["hangs"]
    hanging = [thread for thread in threading.enumerate() if thread.name == "look-up hangs"]
    assert [thread.daemon for thread in hanging] == [True]
    release.set()
    reactor.make_calls()
    assert receiver.told[-1] == "complete"
