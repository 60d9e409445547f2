"""Metrics of WebSockets: how many are open, what passes through them, and how they end."""

from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from bakerygw.telemetry.series import Counters, Label

DIRECTIONS: Final = ("in", "out")
"""From clients, and to them."""
CLOSE_CODES: Final = (*map(str, (1000, 1001, 1002, 1003, *range(1005, 1015))), "3xxx", "4xxx")


class SocketMetrics:
    """Implements `ports.SocketTelemetry`. Reactor thread only."""

    def __init__(self, registry: CollectorRegistry, connections: Gauge) -> None:
        self._connections = connections
        messages = Counters(
            registry, "gateway_ws_messages", "Messages of WebSockets that have ended, by direction.", ("direction",)
        )
        self._in, self._out = (messages.child(direction) for direction in DIRECTIONS)
        self._closes = Counters(registry, "gateway_ws_closes", "WebSockets that ended, by close code.", ("code",))
        self._codes = Label(CLOSE_CODES)

    def opened(self) -> None:
        """One more is open."""
        self._connections.inc()

    def closed(self, code: int, messages_in: int, messages_out: int) -> None:
        """One less is, after so many messages from the client and to it."""
        self._connections.dec()
        self._in.inc(messages_in)
        self._out.inc(messages_out)
        label = f"{code // 1000}xxx" if code >= 3000 else str(code)
        self._closes.child(self._codes.of(label)).inc()
