"""A body as a whole, where it is needed so: bounded, and its source stopped as soon as nobody wants it any more."""

from twisted.internet.defer import Deferred

from bakerygw.core.http import BodySource
from bakerygw.core.values import value


@value
class NotWhole:
    """A body that can't be had whole. No exception: the traceback would keep all that its reader holds."""

    cut: str | None
    """Why its source has ended it early; `None` where it is too long."""

    @property
    def why(self) -> str:
        """The same in words."""
        return "too long" if self.cut is None else f"cut: {self.cut}"


class _Gathering:
    """A sink that keeps at most `cap` bytes."""

    def __init__(self, source: BodySource, cap: int) -> None:
        self._source, self._left = source, cap
        self._parts: list[bytes] = []
        self.finished: Deferred[bytes | NotWhole] = Deferred(lambda _: source.stop())

    def write(self, data: bytes) -> None:
        """Keep the next bytes."""
        if self._left < 0:
            return
        self._left -= len(data)
        self._parts.append(data)
        if self._left < 0:
            self._parts.clear()
            self._source.stop()
            self.finished.callback(NotWhole(cut=None))

    def done(self) -> None:
        """That was all."""
        if self._left >= 0:
            self.finished.callback(b"".join(self._parts))

    def cut(self, reason: str) -> None:
        """It ended early."""
        if self._left >= 0:
            self._left = -1
            self.finished.callback(NotWhole(cut=reason))


async def gather(body: BodySource, cap: int) -> bytes | NotWhole:
    """The whole body, or why it can't be had: it has more than `cap` bytes, or is cut. Cancelling stops the source."""
    whole = body.whole()
    if whole is not None:
        return whole if len(whole) <= cap else NotWhole(cut=None)
    gathering = _Gathering(body, cap)
    body.start(gathering)
    return await gathering.finished
