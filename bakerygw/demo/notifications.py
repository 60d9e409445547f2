"""What the gateway sends on to the demo's notification service: alerts, each accepted once."""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from bakerygw.demo.accounts import iso
from bakerygw.demo.data import Record
from bakerygw.demo.web import Answer, Call, Service, ServiceError, not_allowed

PATH: Final = ("api", "v1", "notifications", "alerts")
MAX_KEYS: Final = 2_000
"""Idempotency keys remembered; the oldest is forgotten first."""
KEPT: Final = 200
"""Notifications shown, of all bakeries."""


class Notifications:
    """`/api/v1/notifications/alerts`: POST takes an alert, GET shows those of the caller's bakery, newest first.

    A repeated `Idempotency-Key` gets the first answer again, and sends nothing.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` gives Unix seconds."""
        self._now = now
        self._answers: OrderedDict[str, Record] = OrderedDict()
        self._sent: deque[Record] = deque(maxlen=KEPT)

    def answer(self, call: Call) -> Answer:
        """One call."""
        match call.method:
            case "GET":
                return self._list(call.header("X-Tenant-Id"))
            case "POST":
                return Answer(status=201, body=self._accepted(call))
        raise not_allowed("GET", "POST")

    def _list(self, tenant_id: str | None) -> Answer:
        items = [it for it in self._sent if tenant_id is not None and it["tenant_id"] == tenant_id]
        return Answer(body={"items": items, "total": len(items)})

    def _accepted(self, call: Call) -> Record:
        key = call.header("Idempotency-Key")
        if key is not None and key in self._answers:
            return self._answers[key]
        alert = call.json()
        if not isinstance(alert.get("message"), str):
            raise ServiceError(400, "message must be a text")
        sent: Record = {
            "id": str(uuid4()),
            "tenant_id": call.header("X-Tenant-Id"),
            "alert_id": alert.get("alert_id"),
            "severity": alert.get("severity"),
            "message": alert["message"],
            "channels": alert.get("channels"),
            "sent_at": iso(self._now()),
        }
        self._sent.appendleft(sent)
        if key is not None:
            self._answers[key] = sent
            if len(self._answers) > MAX_KEYS:
                self._answers.popitem(last=False)
        return sent


def with_alerts(service: Service, now: Callable[[], float]) -> Service:
    """The notification service, with the alerts that the gateway sends on."""
    notifications = Notifications(now)

    def answer(call: Call) -> Answer:
        return notifications.answer(call) if call.path == PATH else service(call)

    return answer
