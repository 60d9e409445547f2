"""A client's signs of life, on a real socket."""

import socket
from contextlib import closing

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory

from bakerygw.edge.kernel import Stall, unsent_bytes


class Transport:
    def __init__(self, sock):
        self.getHandle = lambda: sock


def pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setblocking(False)
    return near, far


def fill(sock):
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except BlockingIOError:
        return sent


def test_a_client_that_takes_nothing_stalls_and_one_that_takes_little_does_not():
    near, far = pair()
    with closing(near), closing(far):
        sent = fill(near)
        stall = Stall(10)
        stall.begin(0)
        assert not stall.over(Transport(near), 9)
        assert stall.over(Transport(near), 11)
        taken = 0
        while taken < sent // 2:
            taken += len(far.recv(65536))
        assert not stall.over(Transport(near), 12)
        assert not stall.over(Transport(near), 21)
        assert stall.over(Transport(near), 23)


def test_below_tls_it_is_the_same():
    near, far = pair()
    with closing(near), closing(far):
        sent = fill(near)
        below = StringTransport()
        below.getHandle = lambda: near
        tls = TLSMemoryBIOFactory(optionsForClientTLS("a.example"), True, Factory.forProtocol(Protocol)).buildProtocol(
            None
        )
        tls.makeConnection(below)
        assert unsent_bytes(tls) == unsent_bytes(Transport(near)) > 0
        stall = Stall(10)
        stall.begin(0)
        assert not stall.over(tls, 9)
        taken = 0
        while taken < sent // 2:
            taken += len(far.recv(65536))
        assert not stall.over(tls, 12)


def test_without_a_beginning_nothing_stalls():
    stall = Stall(10)
    assert not stall.over(object(), 100)
    stall.begin(100)
    stall.end()
    assert not stall.over(object(), 1000)


def test_what_the_kernel_does_not_tell_is_no_sign_of_life():
    assert unsent_bytes(object()) is None
    stall = Stall(10)
    stall.begin(0)
    stall.over(object(), 5)
    assert stall.over(object(), 11)
