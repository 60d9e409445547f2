"""A client of the stream of alerts that listens in the background, for tests that go on meanwhile."""

import contextlib
import socket
import threading
import time
from typing import Any

from tests.e2e.calling import until
from tests.e2e.harness import Gateway
from tests.patience import PATIENCE_S
from tests.realtime.sse_client import Event, EventClient

STREAM = "/api/v1/alerts/stream"


class Reader:
    """A client with a stream, read by a thread of its own until the end of the `with`. Entered, it has its `hello`."""

    def __init__(
        self, gateway: Gateway, token: str | None = None, last_id: str = "", *, path: str = STREAM, **options: Any
    ) -> None:
        """`options` are further ones of httpx's requests."""
        self._client = gateway.client(token)
        self.events = EventClient(last_id)
        self.chunks: list[float] = []
        """When something came."""
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.ended_at: float | None = None
        headers = {**({"Last-Event-ID": last_id} if last_id else {}), **options.pop("headers", {})}
        request = self._client.build_request("GET", path, headers=headers, **options)
        self.response = self._client.send(request, stream=True)
        assert self.response.status_code == 200, self.response.read()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for piece in self.response.iter_raw():
                self.chunks.append(time.monotonic())
                self.events.feed(piece)
        except Exception as error:
            self.error = error
        self.ended_at = time.monotonic()
        self.ended.set()

    @property
    def alerts(self) -> list[int]:
        """The numbers of the alerts so far."""
        return [event.json["n"] for event in self.events.events if event.kind == "alert"]

    @property
    def kinds(self) -> list[str]:
        """Of all events so far."""
        return [event.kind for event in self.events.events]

    def named(self, kind: str) -> list[Any]:
        """The data of all events of this kind so far."""
        return [event.json for event in self.events.events if event.kind == kind]

    def first(self, kind: str, within_s: float = PATIENCE_S) -> Event:
        """The first event of this kind, once it has come."""
        until(lambda: kind in self.kinds, within_s)
        return next(event for event in self.events.events if event.kind == kind)

    def has(self, *alerts: int, within_s: float = PATIENCE_S) -> None:
        """Wait until these are all the alerts."""
        until(lambda: self.alerts == list(alerts), within_s)

    def bye(self, within_s: float = PATIENCE_S) -> str:
        """Why it was ended, once it has been."""
        until(self.ended.is_set, within_s)
        return str(self.events.events[-1].json["reason"])

    def __enter__(self) -> "Reader":
        self.first("hello")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # which it is if the gateway has closed it
            self.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self.response.close()
        self._client.close()
