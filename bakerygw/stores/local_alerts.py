"""Alerts of an instance that is alone: published and heard in this process."""

from typing import ClassVar

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from bakerygw.ports import AlertTelemetry, EventLog, Listener


class LocalAlertChannel:
    """`ports.AlertSource` and `ports.AlertPublisher` where there is no Redis.

    Whatever was published before this process began is lost, and so is its history, which begins an era with it.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, log: EventLog, telemetry: AlertTelemetry) -> None:
        self._history, self._telemetry = log, telemetry
        self._listener: Listener | None = None

    def start(self, listener: Listener) -> None:
        """From here on all is heard."""
        self._listener = listener
        self._listening(listener, True)

    def stop(self) -> "Deferred[None]":
        """Nothing is heard any more."""
        self._listener = None
        self._telemetry.listening(False)
        return succeed(None)

    def missed(self) -> None:
        """There is nobody else who could have it: begin an era."""
        if self._listener is not None:
            self._listening(self._listener, False)
            begun = Deferred.fromCoroutine(self._begin_era())
            begun.addErrback(lambda failure: self._log.failure("alerts.era_failed", failure))

    async def publish(self, tenant_id: str, payload: bytes) -> None:
        """Tell who listens, at once; nobody else can."""
        self.tell(tenant_id, payload)

    def tell(self, tenant_id: str, payload: bytes) -> None:
        """What was published: stored already, or to be."""
        if self._listener is not None:
            self._listener.heard(tenant_id, payload)

    async def _begin_era(self) -> None:
        era = await self._history.begin_era(await self._history.era())
        self._telemetry.era()
        self._log.warn("alerts.era", era=era, reason="what was published could not be stored")
        if self._listener is not None:
            self._listening(self._listener, True)

    def _listening(self, listener: Listener, yes: bool) -> None:
        self._telemetry.listening(yes)
        (listener.listening if yes else listener.interrupted)()
