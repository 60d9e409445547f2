"""What happens in the demo's bakeries: an alert for each of them every few seconds, published as a service would."""

import json
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, ClassVar, Final
from uuid import UUID

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from bakerygw.demo.accounts import Tenant, iso
from bakerygw.demo.data import INGREDIENTS, PRODUCTS, Record

EVERY_S: Final = 4.0
"""Between two alerts of one bakery, on average."""
SHORTEST_S: Final = 0.2
"""Between two alerts of all, however many bakeries have registered."""
TOLD: Final = ["sse", "email"]
TOLD_ONCE_IN: Final = 3
"""So many critical alerts have one that is also sent by e-mail."""

Publish = Callable[[str, bytes], Awaitable[object]]
"""Publishes an alert, given its tenant and its JSON."""
Kind = Callable[[Random], Record]
"""Severity, message and further fields of an alert of one kind."""


def _stock(chance: Random) -> Record:
    name, unit, _, minimum, supplier = chance.choice(INGREDIENTS)
    left = round(minimum * chance.uniform(0.2, 0.95), 1)
    return {
        "type": "stock-low",
        "severity": "warning" if left > minimum / 2 else "critical",
        "message": f"{name}: {left:g} {unit} left, the minimum is {minimum}",
        "service": "inventory",
        "ingredient": name,
        "quantity": left,
        "unit": unit,
        "minimum_stock": minimum,
        "supplier": supplier,
    }


def _oven(chance: Random) -> Record:
    oven, target, off = chance.randint(1, 3), chance.choice((180, 210, 235, 250)), chance.randint(8, 35)
    return {
        "type": "oven-temperature",
        "severity": "critical" if off > 25 else "warning",
        "message": f"Oven {oven} is at {target + off} °C, {off} °C above its programme",
        "service": "production",
        "oven": oven,
        "celsius": target + off,
        "target_celsius": target,
    }


def _delivery(chance: Random) -> Record:
    supplier, minutes = chance.choice(INGREDIENTS)[4], chance.randrange(15, 120, 5)
    return {
        "type": "delivery-late",
        "severity": "warning" if minutes > 30 else "info",
        "message": f"{supplier} will be {minutes} minutes late",
        "service": "procurement",
        "supplier": supplier,
        "minutes": minutes,
    }


def _forecast(chance: Random) -> Record:
    product, percent = chance.choice(PRODUCTS)[0], chance.choice((-1, 1)) * chance.randint(12, 45)
    return {
        "type": "forecast-deviation",
        "severity": "info" if abs(percent) < 30 else "warning",
        "message": f"{product}: sales are {abs(percent)} % {'above' if percent > 0 else 'below'} the forecast",
        "service": "forecasting",
        "product": product,
        "deviation_percent": percent,
    }


def _batch(chance: Random) -> Record:
    product, _, usual = chance.choice(PRODUCTS)
    pieces = max(6, usual // chance.randint(2, 5))
    return {
        "type": "batch-ready",
        "severity": "info",
        "message": f"{product}: {pieces} pieces are out of the oven",
        "service": "production",
        "product": product,
        "pieces": pieces,
    }


def _fridge(chance: Random) -> Record:
    celsius = round(chance.uniform(7.5, 12), 1)
    return {
        "type": "cold-chain",
        "severity": "critical",
        "message": f"Cold store at {celsius} °C: its door has stood open for {chance.randint(4, 15)} minutes",
        "service": "inventory",
        "celsius": celsius,
    }


KINDS: Final[tuple[Kind, ...]] = (_stock, _stock, _oven, _delivery, _forecast, _batch, _batch, _fridge)


def make_alert(chance: Random, now: float) -> Record:
    """An alert that could have happened at this time (Unix seconds)."""
    alert = chance.choice(KINDS)(chance)
    alert_id = str(UUID(int=chance.getrandbits(128), version=4))
    made = {"alert_id": alert_id, "timestamp": iso(now), **alert}
    if alert["severity"] == "critical" and chance.randrange(TOLD_ONCE_IN) == 0:
        made["channels"] = TOLD
    return made


class Happenings:
    """Publishes alerts for all bakeries in turn, until it is stopped. The same chance makes the same alerts."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, tenants: Callable[[], Mapping[str, Tenant]], *, clock: Any, now: Callable[[], float], random: Random
    ) -> None:
        """`tenants` gives all bakeries by id; `clock` is an `IReactorTime`, `now` gives Unix seconds."""
        self._tenants, self._clock, self._now, self._random = tenants, clock, now, random
        self._turn: list[str] = []
        self._timer: Any = None
        self._publishing: Deferred[None] | None = None
        self._lost = 0

    def start(self, publish: Publish) -> None:
        """Begin; one alert after the other, never two at the same time."""
        self._timer = self._clock.callLater(self._pause_s(), self._next, publish)

    def stop(self) -> None:
        """Publish nothing more."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if self._publishing is not None:
            self._publishing.cancel()

    def _next(self, publish: Publish) -> None:
        self._publishing = Deferred.fromCoroutine(self._publish(publish))
        self._publishing.addErrback(lambda failure: failure.trap(CancelledError))
        self._publishing.addBoth(lambda _: self._go_on(publish))

    def _go_on(self, publish: Publish) -> None:
        self._publishing = None
        if self._timer is not None:
            self._timer = self._clock.callLater(self._pause_s(), self._next, publish)

    async def _publish(self, publish: Publish) -> None:
        if not self._turn:
            self._turn = list(self._tenants())
            self._random.shuffle(self._turn)
        tenant_id = self._turn.pop()
        alert = make_alert(self._random, self._now())
        try:
            await publish(tenant_id, json.dumps(alert, ensure_ascii=False).encode())
        except CancelledError:
            raise
        except Exception as error:  # whatever stands between here and the store: the next one may pass
            if not self._lost:  # an outage is told once, and its end
                self._log.warn("demo.alerts", state="lost", error=str(error))
            self._lost += 1
            return
        if self._lost:
            self._log.info("demo.alerts", state="published", lost=self._lost)
            self._lost = 0

    def _pause_s(self) -> float:
        return max(SHORTEST_S, EVERY_S / len(self._tenants()) * self._random.uniform(0.5, 1.5))
