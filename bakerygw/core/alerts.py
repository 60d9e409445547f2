"""An alert as services publish it, and its place in its tenant's history."""

import hashlib
import json
import re
from typing import Any, Final

from bakerygw.core.values import value

CHANNEL_PREFIX: Final = "alerts:tenant:"
"""Alerts are published on this with the tenant's id behind it."""
MAX_ALERT_BYTES: Final = 64 * 1024
NOTIFYING: Final = frozenset({"email", "whatsapp"})
"""Channels of an alert that the notification service sends it to."""

_POSITION: Final = re.compile(rb"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_MAX_ALERT_ID: Final = 128


@value
class Position:
    """A place in the order of one tenant's alerts."""

    epoch: int
    """Grows whenever alerts may have been missed by all instances; offsets of two epochs have nothing in common."""
    offset: int
    """Of the first alert of an epoch it is 1, and grows by one with each."""

    @property
    def text(self) -> str:
        """As the `id:` of an event: `{epoch}-{offset}`."""
        return f"{self.epoch}-{self.offset}"


def parse_position(text: bytes) -> Position | None:
    """The place that a `Last-Event-ID` names; `None` for what is none of ours."""
    found = _POSITION.fullmatch(text)
    return None if found is None else Position(epoch=int(found[1]), offset=int(found[2]))


class AlertRefused(Exception):
    """What was published is no alert. `reason`: invalid or too-large."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@value
class Alert:
    """One alert, not yet placed."""

    tenant_id: str
    payload: bytes
    """The JSON as it was published."""
    digest: str
    """SHA-256 of the payload, in hexadecimal: what instances that hear the same message know it by."""
    alert_id: str | None
    notify: bool
    """It is also for the notification service."""


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parse_alert(tenant_id: str, payload: bytes) -> Alert:
    """The alert that was published for this tenant: a JSON object in UTF-8 (RFC 8259). Raises `AlertRefused`."""
    if len(payload) > MAX_ALERT_BYTES:
        raise AlertRefused("too-large")
    try:
        said: Any = json.loads(payload.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError):
        raise AlertRefused("invalid") from None
    if not isinstance(said, dict):
        raise AlertRefused("invalid")
    alert_id, channels = said.get("alert_id"), said.get("channels")
    named = isinstance(alert_id, str) and 0 < len(alert_id) <= _MAX_ALERT_ID
    return Alert(
        tenant_id=tenant_id,
        payload=payload,
        digest=hashlib.sha256(payload).hexdigest(),
        alert_id=alert_id if named else None,
        notify=isinstance(channels, list) and any(it in NOTIFYING for it in channels if isinstance(it, str)),
    )
