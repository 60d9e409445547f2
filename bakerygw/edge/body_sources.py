"""Bodies that are in memory, and bodies that are watched on their way."""

from collections.abc import Callable

from bakerygw.core.http import BodySink, BodySource


class HeldBody:
    """A `RequestSource` of a body that is all here."""

    complete = True

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length: int | None = len(body)

    def whole(self) -> bytes | None:
        """The body."""
        return self._body

    def start(self, sink: BodySink) -> None:
        """Push all of it."""
        sink.write(self._body)
        sink.done()

    def pause(self) -> None:
        """Nothing is left to wait."""

    def resume(self) -> None:
        """Nothing has waited."""

    def stop(self) -> None:
        """Nothing is held that could be released."""


class WatchedBody:
    """Another body, as it is; `on_cut` is called if its source cuts it, and not if its reader leaves."""

    def __init__(self, source: BodySource, on_cut: Callable[[], None]) -> None:
        self._source, self._on_cut = source, on_cut
        self._sink: BodySink | None = None

    @property
    def length(self) -> int | None:
        """As the source promises it."""
        return self._source.length

    def whole(self) -> bytes | None:
        """The body, if all of it is here."""
        return self._source.whole()

    def start(self, sink: BodySink) -> None:
        """Push into `sink`."""
        self._sink = sink
        self._source.start(self)

    def pause(self) -> None:
        """Push nothing."""
        self._source.pause()

    def resume(self) -> None:
        """Go on."""
        self._source.resume()

    def stop(self) -> None:
        """The reader has gone."""
        self._sink = None
        self._source.stop()

    # as the source's sink

    def write(self, data: bytes) -> None:
        """The next bytes."""
        if self._sink is not None:
            self._sink.write(data)

    def done(self) -> None:
        """The body is complete."""
        if self._sink is not None:
            self._sink.done()

    def cut(self, reason: str) -> None:
        """The body ended early."""
        self._on_cut()
        if self._sink is not None:
            self._sink.cut(reason)
