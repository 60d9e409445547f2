"""Alerts for the notification service: what its answers mean, and when to ask again."""

import hashlib
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Final, Literal

from bakerygw.core.http import Pairs

SERVICE: Final = "notification"
TARGET: Final = b"/api/v1/notifications/alerts"
FIRST_WAIT_S: Final = 1.0
MAX_WAIT_S: Final = 300.0
"""Nobody has to wait longer for a service that is back, and no `Retry-After` is believed beyond it."""

_FOR_GOOD: Final = frozenset({400, 410, 413, 414, 415, 422, 431, 451})
"""Refusals of the alert itself. Any other is of a moment, of a key that is still at work there
(draft-ietf-httpapi-idempotency-key-header: 409), or of who asks and where, which operators mend: 401, 403, 404, 405."""

Verdict = Literal["accepted", "refused", "later"]
"""What became of an attempt; `refused`: for good."""


def verdict_on(status: int) -> Verdict:
    """What a final status says about the alert. A redirect is not followed, and may be gone tomorrow."""
    if 200 <= status < 300:
        return "accepted"
    return "refused" if status in _FOR_GOOD else "later"


def wait_s(failed: int, chance: float, *, most_s: float = MAX_WAIT_S, asked_s: float | None = None) -> float:
    """Seconds until the next attempt after `failed` in a row, `chance` (0 to 1) spreading them over the upper half.

    Not sooner than `asked_s`, which the service has asked for, as far as `MAX_WAIT_S` goes.
    """
    longest = min(most_s, FIRST_WAIT_S * 2.0 ** min(failed - 1, 30))
    spread = longest * (0.5 + chance / 2)
    return spread if asked_s is None else max(spread, min(asked_s, MAX_WAIT_S))


def idempotency_key(name: str, payload: bytes) -> bytes:
    """The same for each attempt to send this alert, by any instance, and for no other alert.

    `name` is tenant and position. The payload is part of it, since positions begin anew where Redis lost its data.
    """
    return b"alert-" + hashlib.sha256(name.encode() + b"\n" + payload).hexdigest()[:40].encode()


def retry_after_s(headers: Pairs, now: float) -> float | None:
    """Seconds that a response asks to wait (RFC 9110 10.2.3), `None` if it does not; `now` is Unix seconds."""
    text = next((value for name, value in headers if name.lower() == b"retry-after"), b"").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, ceil(parsedate_to_datetime(text).timestamp() - now))
    except (ValueError, OverflowError, TypeError):
        return None
