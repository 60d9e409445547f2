"""Writes that go to the kernel at once: in order with those that wait, and never past TLS."""

import pytest
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol

from bakerygw.sockets import write_now, writes_directly


class Wire(Connection):
    """A connection whose kernel takes `room` bytes a call."""

    def __init__(self, room):
        self.room, self.taken, self.waiting = room, b"", []
        self.dataBuffer, self._tempDataBuffer = b"", []
        self.connected, self.disconnecting, self.disconnected = True, False, False

    def writeSomeData(self, data):
        if isinstance(self.room, Exception):
            return self.room
        self.taken += data[: self.room]
        return len(data[: self.room])

    def write(self, data):
        self.waiting.append(data)
        self._tempDataBuffer.append(data)


def test_what_the_kernel_takes_is_sent_at_once():
    wire = Wire(100)
    write_now(wire, b"hello")
    assert (wire.taken, wire.waiting) == (b"hello", [])


def test_what_it_does_not_take_waits_its_turn():
    wire = Wire(3)
    write_now(wire, b"hello")
    assert (wire.taken, wire.waiting) == (b"hel", [b"lo"])


def test_nothing_overtakes_what_waits():
    wire = Wire(3)
    write_now(wire, b"hello")
    write_now(wire, b"!")
    assert (wire.taken, wire.waiting) == (b"hel", [b"lo", b"!"])


def test_a_full_kernel_and_a_dead_connection_are_left_to_the_transport():
    for room in (0, OSError("gone")):
        wire = Wire(room)
        write_now(wire, b"hello")
        assert (wire.taken, wire.waiting) == (b"", [b"hello"])


@pytest.mark.parametrize("state", ["disconnecting", "disconnected"])
def test_nothing_is_sent_on_a_connection_that_ends(state):
    wire = Wire(100)
    setattr(wire, state, True)
    write_now(wire, b"hello")
    assert wire.taken == b""


def test_only_a_bare_socket_is_written_to_directly():
    wire = Wire(100)
    assert writes_directly(wire)
    assert not writes_directly(StringTransport())


@pytest.mark.parametrize("wrapper", [ProtocolWrapper, TLSMemoryBIOProtocol])
def test_a_wrapper_that_passes_on_the_sockets_attributes_is_not_taken_for_it(wrapper):
    wrapped = wrapper.__new__(wrapper)
    wrapped.factory, wrapped.transport = WrappingFactory(None), Wire(100)
    assert hasattr(wrapped, "writeSomeData")
    assert not writes_directly(wrapped)


def test_a_socket_that_has_become_tls_is_left_alone():
    wire = Wire(100)
    wire.TLS = True
    assert not writes_directly(wire)
