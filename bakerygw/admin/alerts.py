"""Publishing an alert so that it is known to be stored: for services, with a token that opens nothing else."""

import json
from collections.abc import Callable
from typing import Final

from bakerygw.admin.calls import Call, Table
from bakerygw.admin.fields import bad_field, state_unavailable
from bakerygw.core.alerts import Alert, AlertRefused, parse_alert
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.problem import Refused, refuse
from bakerygw.edge.pages.common import json_reply
from bakerygw.ports import EventLog, StoreUnavailable

PATH: Final = "/api/tenants/{id}/alerts"
_UNCONFIRMED: Final = (
    "The alert was not confirmed to be stored. Send it again, the same bytes: what was stored is not stored twice."
)


class AlertCalls:
    """The call that publishes an alert.

    `counted` is told how each ended: stored, repeated, refused or unavailable. Raises `Refused`: bad-request, or
    state-unavailable if the store does not answer.
    """

    def __init__(self, events: EventLog, counted: Callable[[str], None]) -> None:
        self._events, self._counted = events, counted

    def table(self) -> Table:
        """This call, for `AdminApp`."""
        says = (
            'Publish an alert: {"message", "alert_id", "severity", "timestamp", "channels", …}; stored when answered.'
        )
        return {PATH: {"POST": Call(says=says, handler=self.publish)}}

    async def publish(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        """Store the alert and tell all instances: 201, or 200 if it had been published before."""
        try:
            placed = await self._events.publish(_alert(tenant_id, body))
        except StoreUnavailable as error:
            self._counted("unavailable")
            raise state_unavailable(_UNCONFIRMED) from error
        except Refused:
            self._counted("refused")
            raise
        self._counted("stored" if placed.fresh else "repeated")
        answer = {"id": placed.position.text, "stored": True, "repeated": not placed.fresh}
        return json_reply(answer, status=201 if placed.fresh else 200)


def _alert(tenant_id: str, body: bytes) -> Alert:
    """The alert in a body of at most 64 KiB. Raises `Refused` bad-request."""
    try:
        alert = parse_alert(tenant_id, body)
    except AlertRefused as error:
        detail = "The body must be one JSON object in UTF-8, of at most 64 KiB, with a message."
        raise refuse("bad-request", detail, reason="admin-json") from error
    members: dict[str, object] = json.loads(body)
    message = members.get("message")
    if not isinstance(message, str) or not message.strip():
        bad_field("message", "is needed: text that says what has happened")
    if alert.alert_id is None and members.get("alert_id") is not None:
        bad_field("alert_id", "must be text of 1 to 128 characters; without one an alert is known by its bytes")
    channels = members.get("channels")
    if channels is not None and not (isinstance(channels, list) and all(isinstance(it, str) for it in channels)):
        bad_field("channels", "must be a list of texts; otherwise nobody but the dashboards would be told")
    return alert
