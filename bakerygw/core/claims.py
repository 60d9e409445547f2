"""What an access token says, parsed strictly into frozen values."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NoReturn

from bakerygw.core.key_terms import KeyTerms
from bakerygw.core.problem import refuse

MAX_TOKEN_BYTES: Final = 8192
"""Longer tokens are refused unread."""
MAX_TENANT_ACCESS: Final = 200
MAX_DEPTH: Final = 32
"""Levels of nesting in a token's JSON; nothing legitimate comes near it."""
MAX_UNIX_S: Final = 253_402_300_799
"""The last second of the year 9999: a larger time is surely in another unit."""
MAX_EMAIL: Final = 254
"""RFC 5321 4.5.3.1.3 leaves this much for an address."""

TIERS: Final = {"starter": 1, "professional": 2, "enterprise": 3}
"""Subscription tiers by rank."""
ACCESS_TYPES: Final = frozenset({"access", "jwt", "at+jwt", "bearer"})

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STATUS = re.compile(r"[A-Za-z0-9_-]{1,32}")
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)
# Strings and all that is no bracket. The closing quote is optional, so that an unterminated string is one match
# and the work stays linear.
_NOT_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^\[\]{}"]++', re.DOTALL)


class ClaimsError(Exception):
    """A token's content is not acceptable. `reason` is a short constant for log and metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What a tenant has paid for."""

    tier: str
    """starter, professional or enterprise."""
    status: str
    """active, trialing, past_due, or another word (then not active)."""
    valid_until: float | None
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantAccess:
    """One further tenant that the user may enter."""

    tenant_id: str
    role: str | None
    tier: str | None
    status: str | None
    valid_until: float | None
    include_children: bool
    via: str | None = None
    """The tenant of whose entry with `include_children` this is a part; `None` where the token names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of one access token, well-formed; whether they hold now is another question."""

    user_id: str
    email: str | None
    tenant_id: str
    role: str | None
    subscription: Subscription | None
    tenant_access: tuple[TenantAccess, ...]
    exp: float
    iat: float
    nbf: float | None
    is_demo: bool
    demo_session_id: str | None
    jti: str | None
    digest: str = ""
    """By which the token is revoked: SHA-256, in hexadecimal, of its `header.payload` as sent."""
    signer: bytes = b""
    """Names what it was checked with: the key of the issuer, or what API keys are sealed with."""
    forwarded: bytes | None = field(default=None, repr=False)
    """The access token to forward, where the caller has not sent it itself: a secret."""
    key: KeyTerms | None = None
    """The terms of the API key that they are of; `None` for a person's."""


def is_id(text: str) -> bool:
    """Whether this can be the id of a user, tenant, token or demo session: `[A-Za-z0-9._-]{1,64}`."""
    return _ID.fullmatch(text) is not None


def bearer_token(values: tuple[bytes, ...]) -> bytes:
    """The token of the `Authorization` field's values (RFC 6750 2.1): one field, one space, any case of the scheme.

    Says nothing about the token but that it is there and at most `MAX_TOKEN_BYTES` long.
    Raises `Refused`: token-missing without a field, token-invalid for anything else.
    """
    if not values:
        raise refuse("token-missing", "Sign in and send the access token as 'Authorization: Bearer <token>'.")
    if len(values) > 1:
        raise refuse("token-invalid", "Send exactly one Authorization header.", reason="repeated-header")
    scheme, space, token = values[0].partition(b" ")
    if scheme.lower() != b"bearer":
        detail = "Send 'Authorization: Bearer <access token>', or a machine 'Authorization: ApiKey <key>'."
        raise refuse("token-invalid", detail, reason="other-scheme")
    if not space or not token or token[:1] in b" \t":
        detail = "Put exactly one space and then the access token behind 'Bearer'."
        raise refuse("token-invalid", detail, reason="malformed-header")
    if len(token) > MAX_TOKEN_BYTES:
        detail = f"The access token is longer than {MAX_TOKEN_BYTES} bytes; sign in again for another one."
        raise refuse("token-invalid", detail, reason="too-long")
    return token


def strict_object(data: bytes) -> dict[str, object]:
    """A JSON object read without leniency: UTF-8, no duplicate names at any level, no NaN or Infinity, bounded depth.

    Raises `ClaimsError` "not-json", "too-deep", "duplicate-name", "not-finite" or "not-an-object".
    """
    try:
        text = data.decode()
        _check_depth(text)
        value: object = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ClaimsError("not-json") from error
    if type(value) is not dict:
        raise ClaimsError("not-an-object")
    return value


def claims_from(said: Mapping[str, object], digest: str = "", signer: bytes = b"") -> Claims:
    """The claims in a strictly parsed payload; an optional claim that is null counts as absent.

    `digest` is the token's and `signer` its key's, which the payload can't tell.
    Issuer and audience are the verifier's to compare. Raises `ClaimsError`.
    """
    _check_type(said)
    return Claims(
        user_id=_user_id(said),
        email=_email(said.get("email")),
        tenant_id=_id(said.get("tenant_id"), "tenant_id"),
        role=_optional_id(said.get("tenant_role"), "tenant_role"),
        subscription=_subscription(said.get("subscription")),
        tenant_access=_tenant_access(said.get("tenant_access")),
        exp=_unix_s(said.get("exp"), "exp"),
        iat=_unix_s(said.get("iat"), "iat"),
        nbf=None if said.get("nbf") is None else _unix_s(said["nbf"], "nbf"),
        is_demo=_flag(said.get("is_demo", False), "is_demo"),
        demo_session_id=_optional_id(said.get("demo_session_id"), "demo_session_id"),
        jti=_optional_id(said.get("jti"), "jti"),
        digest=digest,
        signer=signer,
    )


def subscription_from(said: object) -> Subscription:
    """A subscription as a token states it, from a strictly parsed value. Raises `ClaimsError`."""
    found = _subscription(said)
    if found is None:
        raise ClaimsError("subscription")
    return found


def email_from(said: object) -> str | None:
    """An e-mail address as a token states it, or none. Raises `ClaimsError`."""
    return _email(said)


def unix_s_from(said: object) -> float:
    """Unix seconds, from a strictly parsed value. Raises `ClaimsError`."""
    return _unix_s(said, "time")


def check_time(claims: Claims, now: float, leeway_s: float) -> None:
    """Refuse a token outside its time (RFC 7519 4.1.4-6): it ends *at* `exp`, give or take the leeway.

    `now` in Unix seconds. Raises `ClaimsError` "expired", "not-yet-valid" or "issued-in-future".
    """
    if claims.exp <= now - leeway_s:
        raise ClaimsError("expired")
    if claims.nbf is not None and claims.nbf > now + leeway_s:
        raise ClaimsError("not-yet-valid")
    if claims.iat > now + leeway_s:
        raise ClaimsError("issued-in-future")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ClaimsError("duplicate-name")
    return members


def _not_finite(_: str) -> NoReturn:
    raise ClaimsError("not-finite")


# Made once: json.loads with hooks would build a decoder, and its scanner, for each token.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_finite)


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _NOT_BRACKETS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ClaimsError("too-deep")


def _check_type(said: Mapping[str, object]) -> None:
    for name in ("type", "typ", "token_use"):
        kind = said.get(name)
        if kind is not None and not (isinstance(kind, str) and kind.lower() in ACCESS_TYPES):
            raise ClaimsError("not-an-access-token")


def _user_id(said: Mapping[str, object]) -> str:
    user_id, sub = said.get("user_id"), said.get("sub")
    if None not in (user_id, sub) and sub != user_id:
        raise ClaimsError("user_id")
    return _id(sub if user_id is None else user_id, "user_id")


def _id(value: object, reason: str) -> str:
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise ClaimsError(reason)
    return value


def _optional_id(value: object, reason: str) -> str | None:
    return None if value is None else _id(value, reason)


def _email(value: object) -> str | None:
    """Any printable text: what of it is not visible ASCII is escaped where it goes into a header."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_EMAIL or not value.isprintable():
        raise ClaimsError("email")
    return value


def _unix_s(value: object, reason: str) -> float:
    # Infinities are out of range, and NaN is in none.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_UNIX_S:
        raise ClaimsError(reason)
    return float(value)


def _flag(value: object, reason: str) -> bool:
    if not isinstance(value, bool):
        raise ClaimsError(reason)
    return value


def _instant(value: object, reason: str) -> float | None:
    """Unix seconds of an RFC 3339 date-time, which always says its offset."""
    if value is None:
        return None
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        raise ClaimsError(reason)
    try:
        return _unix_s(datetime.fromisoformat(value).timestamp(), reason)
    except (ValueError, OverflowError) as error:
        raise ClaimsError(reason) from error


def _tier(value: object, reason: str) -> str:
    if not isinstance(value, str) or value not in TIERS:
        raise ClaimsError(reason)
    return value


def _status(value: object, reason: str) -> str:
    if not isinstance(value, str) or _STATUS.fullmatch(value) is None:
        raise ClaimsError(reason)
    return value


def _subscription(value: object) -> Subscription | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ClaimsError("subscription")
    return Subscription(
        tier=_tier(value.get("tier"), "subscription"),
        status=_status(value.get("status"), "subscription"),
        valid_until=_instant(value.get("valid_until"), "subscription"),
    )


def _tenant_access(value: object) -> tuple[TenantAccess, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TENANT_ACCESS:
        raise ClaimsError("tenant_access")
    entries = tuple(_entry(item) for item in value)
    if len({entry.tenant_id for entry in entries}) != len(entries):
        raise ClaimsError("tenant_access")
    return entries


def _entry(value: object) -> TenantAccess:
    reason: Final = "tenant_access"
    if not isinstance(value, dict):
        raise ClaimsError(reason)
    tier, status = value.get("tier"), value.get("status")
    return TenantAccess(
        tenant_id=_id(value.get("id"), reason),
        role=_optional_id(value.get("role"), reason),
        tier=None if tier is None else _tier(tier, reason),
        status=None if status is None else _status(status, reason),
        valid_until=_instant(value.get("valid_until"), reason),
        include_children=_flag(value.get("include_children", False), reason),
    )
