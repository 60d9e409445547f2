"""The sockets of the data path, served together: one dispatch by the reactor and one round of writes in each turn.

Twisted's loop wraps each event of each socket in a log context, and asks epoll before each write whether there is
room. Here all sockets share an epoll instance of their own, which the reactor sees as one descriptor. What they have
to write leaves at the end of the turn in which it arose, and epoll is asked only for what the kernel did not take.
"""

import select
from collections.abc import Callable
from typing import Any, ClassVar, Final

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConnector,
    IHalfCloseableDescriptor,
    IListeningPort,
    IReactorFDSet,
    IReadDescriptor,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from bakerygw.runtime.sockets import PlainConnector, PlainPort, TLSOrNothing

EVENTS: Final = 512
"""Sockets served in one turn; others have theirs in the next."""
ROUNDS: Final = 4
"""How often the end of a turn looks for what its own work has added, before the reactor has its turn."""

_IN: Final = 0x001  # select.EPOLLIN and its like, which only Linux has
_OUT: Final = 0x004
_GONE: Final = 0x008 | 0x010
_LEFT: Final = 0x2000
"""The peer has closed, or will send no more (EPOLLRDHUP)."""

_UNWATCHED: Final = (-1, 0)


@implementer(IReactorFDSet, IReadDescriptor)
class TurnPoller:
    """A reactor for TCP sockets inside of a reactor for everything else.

    `IReactorTCP`, `IReactorSSL.listenSSL`, `IReactorFDSet` and `soon` are its own; whatever else is asked of it is the
    outer reactor's. It opens its descriptor when the first socket needs it.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any) -> None:
        directlyProvides(self, providedBy(reactor))
        self._reactor = reactor
        # Each request asks for the time some ten times.
        self.seconds, self.callLater = reactor.seconds, reactor.callLater
        self._epoll: Any = None
        self._selectables: dict[int, Any] = {}
        self._watched: dict[Any, tuple[int, int]] = {}
        """By selectable: its descriptor, and the events that epoll watches it for."""
        self._writers: set[Any] = set()
        self._fresh: list[Any] = []
        """Those of the writers that have not been asked to write yet."""
        self._calls: list[Callable[[], object]] = []
        self._in_turn = self._scheduled = False

    @staticmethod
    def works() -> bool:
        """Whether this system has epoll."""
        return hasattr(select, "epoll")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def soon(self, call: Callable[[], object]) -> None:
        """Call once when all that has come in this turn was looked at, before the turn's writes."""
        self._calls.append(call)
        if not self._in_turn:
            self._schedule()

    # IReactorTCP, IReactorSSL

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        """As `IReactorTCP.listenTCP`."""
        listening = PlainPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """As `IReactorSSL.listenSSL`."""
        return self.listenTCP(port, TLSOrNothing(contextFactory, False, factory), backlog, interface)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: tuple[str, int] | None = None
    ) -> IConnector:
        """As `IReactorTCP.connectTCP`."""
        connector = PlainConnector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    # IReactorFDSet

    def addReader(self, reader: Any) -> None:
        """Call its `doRead` whenever there is something to read."""
        fd, events = self._watched.get(reader, _UNWATCHED)
        if not events & _IN:
            self._watch(reader, fd, events, events & ~_LEFT | _IN)

    def removeReader(self, reader: Any) -> None:
        """Call its `doRead` no more."""
        fd, events = self._watched.get(reader, _UNWATCHED)
        if events & (_IN | _LEFT):
            self._watch(reader, fd, events, events & ~(_IN | _LEFT))

    def pauseReader(self, reader: Any) -> None:
        """Call its `doRead` no more, but see when its peer leaves; what it has sent unread is lost then."""
        fd, events = self._watched.get(reader, _UNWATCHED)
        if events & _IN:
            self._watch(reader, fd, events, events & ~_IN | _LEFT)

    def addWriter(self, writer: Any) -> None:
        """Call its `doWrite` at the end of this turn, and from then on whenever there is room."""
        if writer not in self._writers:
            self._writers.add(writer)
            self._fresh.append(writer)
            if not self._in_turn:
                self._schedule()

    def removeWriter(self, writer: Any) -> None:
        """Call its `doWrite` no more."""
        self._writers.discard(writer)
        fd, events = self._watched.get(writer, _UNWATCHED)
        if events & _OUT:
            self._watch(writer, fd, events, events & ~_OUT)

    def getReaders(self) -> list[Any]:
        """All whose `doRead` may be called."""
        return [reader for reader, (_, events) in self._watched.items() if events & _IN]

    def getWriters(self) -> list[Any]:
        """All whose `doWrite` may be called."""
        return list(self._writers)

    def removeAll(self) -> list[Any]:
        """Call nobody any more; returns who was."""
        known = list({*self._watched, *self._writers})
        for selectable in known:
            self.removeReader(selectable)
            self.removeWriter(selectable)
        return known

    # IReadDescriptor, for the outer reactor

    def fileno(self) -> int:
        """The epoll instance's descriptor."""
        return -1 if self._epoll is None else int(self._epoll.fileno())

    def logPrefix(self) -> str:
        """A name for Twisted's log."""
        return "TurnPoller"

    def connectionLost(self, reason: Failure) -> None:
        """The outer reactor ends."""
        for selectable in self.removeAll():
            self._guarded(selectable.connectionLost, reason)

    def doRead(self) -> None:
        """A turn: read whatever has come, let it have its effects, and write what they have to say."""
        self._in_turn = True
        selectables = self._selectables
        for fd, event in self._epoll.poll(0, EVENTS):
            selectable = selectables.get(fd)
            if selectable is not None:
                self._serve(selectable, event)
        self._end_turn()

    def _serve(self, selectable: Any, event: int) -> None:
        why: Any
        reading = True
        try:
            if event & _IN:
                why = selectable.doRead()
            elif event & (_GONE | _LEFT):
                reading = bool(self._watched[selectable][1] & _IN)
                why = CONNECTION_DONE if reading else CONNECTION_LOST
            else:
                why = None
            if event & _OUT and not why and selectable in self._writers:
                reading = False
                why = selectable.doWrite()
        except Exception as error:
            self._log.failure("poller.failed")
            why = error
        if why:
            self._guarded(self._disconnect, selectable, why, reading)

    def _end_turn(self) -> None:
        self._in_turn = True
        for _ in range(ROUNDS):
            calls, self._calls = self._calls, []
            for call in calls:
                self._guarded(call)
            fresh, self._fresh = self._fresh, []
            for writer in fresh:
                if writer in self._writers:
                    self._write(writer)
            if not self._fresh and not self._calls:
                break
        else:
            self._schedule()
        self._in_turn = False

    def _write(self, writer: Any) -> None:
        try:
            why = writer.doWrite()
            if not why and writer in self._writers:
                fd, events = self._watched.get(writer, _UNWATCHED)
                if not events & _OUT:
                    self._watch(writer, fd, events, events | _OUT)
        except Exception as error:  # epoll's own too: it costs this socket, not all of them
            self._log.failure("poller.failed")
            why = error
        if why:
            self._guarded(self._disconnect, writer, why, False)

    def _disconnect(self, selectable: Any, why: Any, reading: bool) -> None:
        self.removeReader(selectable)
        if reading and isinstance(why, ConnectionDone) and IHalfCloseableDescriptor.providedBy(selectable):
            selectable.readConnectionLost(Failure(why))
            return
        self.removeWriter(selectable)
        selectable.connectionLost(Failure(why))

    def _guarded(self, call: Callable[..., object], *args: object) -> None:
        """No fault of one socket's may end the turn, and with it all the others."""
        try:
            call(*args)
        except Exception:
            self._log.failure("poller.failed")

    def _watch(self, selectable: Any, fd: int, before: int, events: int) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        if not before:
            fd = selectable.fileno()
            self._epoll.register(fd, events)
            self._selectables[fd] = selectable
        elif events:
            self._epoll.modify(fd, events)
        else:
            del self._watched[selectable]
            # Once closed, a descriptor is forgotten by epoll, and its number may be another's already.
            if fd in self._selectables and self._selectables[fd] is selectable:
                del self._selectables[fd]
                if selectable.fileno() == fd:
                    self._epoll.unregister(fd)
            return
        self._watched[selectable] = fd, events

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._late)

    def _late(self) -> None:
        self._scheduled = False
        self._end_turn()


def soon_of(reactor: Any) -> Callable[[Callable[[], object]], object]:
    """The reactor's way to call something at the end of this turn, or else at the beginning of the next."""
    if isinstance(reactor, TurnPoller):
        return reactor.soon
    return lambda call: reactor.callLater(0, call)
