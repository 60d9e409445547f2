"""What a stream says of itself: the gateway's own events."""

from typing import Literal

from bakerygw.core import sse
from bakerygw.core.alerts import Position
from bakerygw.core.tenancy import TenantFlags

GapReason = Literal["epoch", "trimmed", "rewound", "unknown"]


def gap_event(base: Position, reason: GapReason) -> bytes:
    """Alerts may be missing before this; those behind `base` follow."""
    members = {"reason": reason, "epoch": base.epoch, "offset": base.offset}
    return sse.control("gap", members, base.text)


def standing_event(head: Position, offset: int, *, gap: bool, degraded: bool) -> bytes:
    """How it stands with a tenant's alerts, for a stream that has come to this offset, perhaps over a gap."""
    if degraded:
        return sse.control("degraded", {})
    missed = None if gap else head.offset - offset
    members = {"epoch": head.epoch, "offset": head.offset, "recovered": not gap, "missed": missed}
    return sse.control("hello", members, Position(epoch=head.epoch, offset=offset).text)


def state_event(flags: TenantFlags) -> bytes:
    """A tenant's flags, for its dashboards."""
    hold = flags.read_only
    read_only = None if hold is None else {"reason": hold.reason, "since": hold.since, "until": hold.until}
    return sse.control("tenant-state", {"read_only": read_only, "subscription_changed_at": flags.changed_at})
