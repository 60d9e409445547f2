"""What other services say about tenants and users: read strictly, and written for other instances to read."""

import json
from datetime import UTC, datetime, timedelta
from typing import Final

from bakerygw.core.claims import ClaimsError, Subscription, email_from, strict_object, subscription_from, unix_s_from

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def read_subscription(body: bytes) -> Subscription:
    """The tenant service's answer: a JSON object as the claim `subscription` of tokens. Raises `ClaimsError`."""
    return subscription_from(strict_object(body))


def read_email(body: bytes, user_id: str) -> str | None:
    """The member `email` of the auth service's answer about this user; `None` if there is none.

    Raises `ClaimsError`, also if the answer says that it is about somebody else.
    """
    said = strict_object(body)
    for name in ("user_id", "sub"):
        if said.get(name, user_id) != user_id:
            raise ClaimsError("another-user")
    return email_from(said.get("email"))


def write_fact(value: Subscription | str | None, asked_at: float) -> bytes:
    """A subscription or an e-mail address, and when it was asked for (Unix seconds), as JSON."""
    return json.dumps({"asked_at": asked_at, "value": _plain(value)}).encode("ascii")


def read_fact(data: bytes) -> tuple[object, float]:
    """What `write_fact` has written: the value, not looked at yet, and when it was asked for. Raises `ClaimsError`."""
    said = strict_object(data)
    return said.get("value"), unix_s_from(said.get("asked_at"))


def _plain(value: Subscription | str | None) -> object:
    if not isinstance(value, Subscription):
        return value
    until = None if value.valid_until is None else (_EPOCH + timedelta(seconds=value.valid_until)).isoformat()
    return {"tier": value.tier, "status": value.status, "valid_until": until}
