"""The other end of connections to Redis, without sockets: endpoints, transports, and a Redis that tells of changes."""

from collections.abc import Callable

import hiredis
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionRefusedError
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure


class Transport(StringTransport):
    """A transport that ends its protocol when aborted, once."""

    aborted = False

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionAborted()))


class Endpoint:
    """Gives out one protocol after the other, or refuses, or never answers."""

    def __init__(self) -> None:
        self.mode = "accept"
        self.protocols = []

    def connect(self, factory):
        if self.mode == "refuse":
            return fail(ConnectionRefusedError())
        if self.mode == "silent":
            return Deferred()
        protocol, transport = factory.buildProtocol(None), Transport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.protocols.append(protocol)
        return succeed(protocol)


class TellingRedis:
    """A Redis that can tell of changes, asked over `data` and `subscriber`; every `pump` answers all that was sent."""

    def __init__(self) -> None:
        self.data, self.subscriber = Endpoint(), Endpoint()
        self.commands: list[tuple[str, bytes]] = []
        """All that were answered, in order, as ("data" or "subscriber", words joined by spaces)."""
        self.silent: set[str] = set()
        """Sides that get no answer."""
        self.refuse: dict[bytes, bytes | None] = {}
        """Errors to answer, by the beginning of a command; `None`: no answer at all."""
        self.mute = False
        """Changes are not told."""
        self._tracked_by: object = None
        self._readers: dict[object, hiredis.Reader] = {}

    def pump(self) -> None:
        """Answer until nobody asks any more."""
        while any([self._answered("data", self.data), self._answered("subscriber", self.subscriber)]):
            pass

    def change(self, *keys: bytes) -> None:
        """Some other program changes these keys; none: it flushes all."""
        protocol = self.data.protocols[-1]
        if self._tracked_by is protocol and protocol.connected and not self.mute:
            payload = b"*%d\r\n" % len(keys) + b"".join(b"$%d\r\n%s\r\n" % (len(key), key) for key in keys)
            self.publish(payload if keys else b"*-1\r\n")

    def publish(self, payload: bytes, channel: bytes = b"__redis__:invalidate") -> None:
        """A message with this payload, in the protocol's own form."""
        receiver = self.subscriber.protocols[-1]
        receiver.dataReceived(b"*3\r\n$7\r\nmessage\r\n$%d\r\n%s\r\n" % (len(channel), channel) + payload)

    def take(self, side: str) -> list[bytes]:
        """The commands of one side since the last call."""
        taken = [command for its_side, command in self.commands if its_side == side]
        self.commands = [told for told in self.commands if told[0] != side]
        return taken

    def _answered(self, side: str, endpoint: Endpoint) -> bool:
        if side in self.silent or not endpoint.protocols or not endpoint.protocols[-1].connected:
            return False
        protocol = endpoint.protocols[-1]
        sent = protocol.transport.value()
        protocol.transport.clear()
        reader = self._readers.setdefault(protocol, hiredis.Reader())
        reader.feed(sent)
        while (words := reader.gets()) is not False:
            command = b" ".join(words)
            self.commands.append((side, command))
            self._answer(protocol, command)
        return bool(sent)

    def _answer(self, protocol: object, command: bytes) -> None:
        say: Callable[[bytes], None] = protocol.dataReceived  # type: ignore[attr-defined]
        refusals = [error for begin, error in self.refuse.items() if command.startswith(begin)]
        if refusals:
            if refusals[0] is not None:
                say(b"-" + refusals[0] + b"\r\n")
        elif command == b"CLIENT ID":
            say(b":42\r\n")
        elif command.startswith(b"SUBSCRIBE "):
            say(b"*3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n")
        elif command == b"PING":
            say(b"+PONG\r\n" if protocol is self.data.protocols[-1] else b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
        else:
            if command.startswith(b"CLIENT TRACKING "):
                self._tracked_by = protocol if command.startswith(b"CLIENT TRACKING ON") else None
            if command.startswith(b"SET "):
                self.change(command.split(b" ")[1])
            say(b"+OK\r\n")
