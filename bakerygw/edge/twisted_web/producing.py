"""What a Twisted producer pushes, or is asked for, at the pace of a reply."""

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

_LOG = Logger()


class Producing:
    """Holds the producer of an `IConsumer`, of either kind, and passes on to it when to pause and to go on.

    A pull producer is asked once in each turn of the reactor.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failed: Callable[[Failure], None] | None = None
        self._producer: Any = None  # IPushProducer or IPullProducer
        self._streaming = False
        self._pulling: IDelayedCall | None = None
        self.paused = False
        """Nothing more is wanted for now."""

    def register(self, producer: Any, streaming: bool, failed: Callable[[Failure], None]) -> None:
        """From now on `producer` is told; `failed` takes what it raises when it is asked.

        Raises `RuntimeError` if there is one already.
        """
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        self._producer, self._streaming, self._failed = producer, streaming, failed
        if not streaming:
            self._pull_soon()
        elif self.paused:
            producer.pauseProducing()

    def unregister(self) -> None:
        """There is none any more."""
        self._producer = self._failed = None
        if self._pulling is not None:
            self._pulling.cancel()
            self._pulling = None

    def pause(self) -> None:
        """Nothing more, please."""
        self.paused = True
        if self._producer is not None and self._streaming:
            self._producer.pauseProducing()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        if self._producer is None:
            return
        if self._streaming:
            self._producer.resumeProducing()
        else:
            self._pull_soon()

    def stop(self) -> None:
        """Nothing is wanted ever again."""
        producer = self._producer
        self.unregister()
        if producer is None:
            return
        try:
            producer.stopProducing()
        except Exception:  # whoever else is to hear of the end must
            _LOG.failure("producer.failed")

    def _pull_soon(self) -> None:
        if self._pulling is None:
            self._pulling = self._clock.callLater(0, self._pull)

    def _pull(self) -> None:
        self._pulling = None
        failed = self._failed
        if self.paused or failed is None:
            return
        try:
            self._producer.resumeProducing()
        except Exception:
            self.unregister()
            failed(Failure())
            return
        if self._producer is not None and not self._streaming:
            self._pull_soon()
