"""A way to Redis, or a gateway, that can lead elsewhere, be cut, or swallow what goes over subscribers' connections."""

import contextlib
import socket
import threading
from typing import Self


class Relay:
    """Listens on `port` and passes bytes on and back; a context manager.

    While `swallowing` is set, connections on which a client has asked for its id or subscribed stay open and silent
    both ways; what is lost then is lost.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = [self._listener]
        self._subscribers: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        self.swallowing = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def lead_to(self, host: str, port: int) -> None:
        """New connections go there; those that are open stay where they are."""
        self._target = (host, port)

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        for end in self._ends[1:]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                return
            server.settimeout(None)
            self._ends += [client, server]
            for way in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(client, *way), daemon=True).start()

    def _pass_on(self, client: socket.socket, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source is client and (b"SUBSCRIBE" in data or b"\r\nCLIENT\r\n$2\r\nID\r\n" in data):
                    self._subscribers.add(client)
                if not (self.swallowing.is_set() and client in self._subscribers):
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
