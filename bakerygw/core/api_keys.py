"""API keys: how one is spelt, what the shared state keeps of it, and what it says of whoever presents it.

A key is `bkry_<id>_<secret>_<check>`: a prefix that secret scanners can look for, sixteen characters to look the record
up by, 256 random bits, and a CRC-32 that tells a mistyped key without asking anybody. The record holds no more than the
SHA-256 of the key. A slow hash would protect what people think up; nobody guesses 256 random bits, and each slow check
would hold up everybody else.

The record's facts are sealed with the key itself (HMAC-SHA-256, RFC 2104): whoever may write to the shared state can
delete keys, but cannot turn one into another tenant's. With a `pepper`, which only the gateways know, they cannot write
the record of a key of their own making either.
"""

import hmac
import json
import re
from base64 import b32encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_network
from math import inf
from typing import Final
from zlib import crc32

from bakerygw.core.claims import MAX_UNIX_S, Claims, ClaimsError, is_id, strict_object
from bakerygw.core.key_terms import LIMIT_NAME, KeyTerms
from bakerygw.core.limits import LimitRule

ID_BYTES: Final = 10
SECRET_BYTES: Final = 32
MAX_RECORD_BYTES: Final = 32_768
"""More than the admin port can make of any key; larger ones are not read."""
USER_PREFIX: Final = "key-"
"""What services see as the user: this and the key's id."""

_FORM: Final = re.compile(rb"(bkry_([a-z2-7]{16})_[A-Za-z0-9_-]{43})_([0-9a-f]{8})")
_ID: Final = re.compile(r"[a-z2-7]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SECRET_MEMBERS: Final = {"digest", "seal", "since", "until"}
_SEALED: Final = b"bakerygw api key 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySecret:
    """One secret of a key, as far as the shared state knows it."""

    digest: str
    """SHA-256, in hexadecimal, of the whole key; it is revoked by this."""
    seal: str
    """HMAC of the key's facts under the whole key and the pepper, in hexadecimal."""
    since: float
    until: float | None
    """Unix seconds at which it gives way to a newer one; `None` for the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The record of one key. Times are Unix seconds."""

    key_id: str
    tenant_id: str
    name: str
    role: str
    routes: tuple[str, ...] | None
    methods: tuple[str, ...] | None
    addresses: tuple[str, ...] | None
    """Networks in CIDR notation (RFC 4632, RFC 4291 2.3)."""
    limit: tuple[int, int] | None
    """Requests, and the seconds in which so many come back."""
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None
    secrets: tuple[KeySecret, ...]
    """The newest first."""

    @property
    def facts(self) -> dict[str, object]:
        """What its secrets vouch for, as JSON types."""
        return {
            "id": self.key_id,
            "tenant_id": self.tenant_id,
            "role": self.role,
            "routes": _list(self.routes),
            "methods": _list(self.methods),
            "addresses": _list(self.addresses),
            "limit": _list(self.limit),
            "expires_at": self.expires_at,
        }


def key_id_from(random: bytes) -> str:
    """The id made of `ID_BYTES` random bytes."""
    return b32encode(random).decode("ascii").lower()


def spelt(key_id: str, random: bytes) -> bytes:
    """The key of this id made of `SECRET_BYTES` random bytes."""
    stem = b"bkry_%s_%s" % (key_id.encode("ascii"), urlsafe_b64encode(random).rstrip(b"="))
    return b"%s_%08x" % (stem, crc32(stem))


def id_of(key: bytes) -> str | None:
    """The id in what was presented as a key; `None` if it cannot be one."""
    found = _FORM.fullmatch(key)
    if found is None or int(found[3], 16) != crc32(found[1]):
        return None
    return found[2].decode("ascii")


def is_key_id(text: str) -> bool:
    """Whether this can be the id of a key."""
    return _ID.fullmatch(text) is not None


def digest_of(key: bytes) -> str:
    """By what the shared state knows a key."""
    return sha256(key).hexdigest()


def sealed(record: ApiKey, key: bytes, pepper: bytes, since: float) -> KeySecret:
    """This key as the newest secret of the record."""
    return KeySecret(digest=digest_of(key), seal=_seal(record, key, pepper), since=since, until=None)


def claims_of(record: ApiKey, key: bytes, digest: str, pepper: bytes, now: float) -> Claims:
    """What a key says of whoever presents it; `digest` is the key's own.

    Raises `ClaimsError` "wrong-secret", "seal" (the record is not as it was made), "revoked", "replaced" or "expired".
    """
    # All are compared, so that the time taken does not tell which was nearly right.
    matching = [secret for secret in record.secrets if hmac.compare_digest(secret.digest, digest)]
    if not matching:
        raise ClaimsError("wrong-secret")
    secret = matching[0]
    if not hmac.compare_digest(secret.seal, _seal(record, key, pepper)):
        raise ClaimsError("seal")
    if record.revoked_at is not None:
        raise ClaimsError("revoked")
    until = inf if secret.until is None else secret.until
    if now >= until:
        raise ClaimsError("replaced")
    expires_at = MAX_UNIX_S if record.expires_at is None else record.expires_at
    if now >= expires_at:
        raise ClaimsError("expired")
    return Claims(
        user_id=USER_PREFIX + record.key_id,
        email=None,
        tenant_id=record.tenant_id,
        role=record.role,
        subscription=None,
        tenant_access=(),
        exp=min(expires_at, until),
        iat=MAX_UNIX_S,  # whatever changes, nothing that a key carries is older: its tenant's state is always looked up
        nbf=None,
        is_demo=False,
        demo_session_id=None,
        jti=None,
        digest=digest,
        key=_terms(record),
    )


def record_json(record: ApiKey) -> bytes:
    """The record as the shared state keeps it."""
    document = {
        **record.facts,
        "name": record.name,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "revoked_at": record.revoked_at,
        "secrets": [
            {"digest": its.digest, "seal": its.seal, "since": its.since, "until": its.until} for its in record.secrets
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def record_from(data: bytes, key_id: str) -> ApiKey:
    """The record of the key with this id. Raises `ValueError` for what `record_json` cannot have written."""
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError("too long")
    try:
        said = strict_object(data)
    except ClaimsError as error:
        raise ValueError(error.reason) from error
    record = ApiKey(
        key_id=_id(said.pop("id", None)),
        tenant_id=_id(said.pop("tenant_id", None)),
        name=_text(said.pop("name", None)),
        role=_id(said.pop("role", None)),
        routes=_texts(said.pop("routes", None)),
        methods=_texts(said.pop("methods", None)),
        addresses=_texts(said.pop("addresses", None)),
        limit=_limit(said.pop("limit", None)),
        created_at=_time(said.pop("created_at", None)),
        created_by=_text(said.pop("created_by", None)),
        expires_at=_optional_time(said.pop("expires_at", None)),
        revoked_at=_optional_time(said.pop("revoked_at", None)),
        secrets=_secrets(said.pop("secrets", None)),
    )
    if said or record.key_id != key_id:
        raise ValueError("of something else")
    _terms(record)  # networks that are none
    return record


def _seal(record: ApiKey, key: bytes, pepper: bytes) -> str:
    facts = json.dumps(record.facts, sort_keys=True, separators=(",", ":")).encode()
    both = hmac.digest(pepper, key, "sha256")  # as RFC 5869 2.2 makes one secret of two
    return hmac.digest(both, _SEALED + facts, "sha256").hex()


def _terms(record: ApiKey) -> KeyTerms:
    paths, methods, addresses, limit = record.routes, record.methods, record.addresses, record.limit
    return KeyTerms(
        key_id=record.key_id,
        paths=None if paths is None else tuple(path.encode() for path in paths),
        methods=None if methods is None else frozenset(methods),
        networks=None if addresses is None else tuple(map(_network, addresses)),
        limit=None if limit is None else LimitRule(name=LIMIT_NAME, requests=limit[0], window_s=limit[1]),
    )


def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


def _list(values: tuple[str, ...] | tuple[int, int] | None) -> list[object] | None:
    return None if values is None else list(values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _id(value: object) -> str:
    if not is_id(text := _text(value)):
        raise ValueError("no id")
    return text


def _texts(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise ValueError("no list")
    return tuple(_text(item) for item in value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise ValueError("no number")
    return value


def _limit(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("no limit")
    return _whole(value[0]), _whole(value[1])


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_UNIX_S:
        raise ValueError("no time")
    return float(value)


def _optional_time(value: object) -> float | None:
    return None if value is None else _time(value)


def _secrets(value: object) -> tuple[KeySecret, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("no secrets")
    return tuple(_secret(item) for item in value)


def _secret(value: object) -> KeySecret:
    if not isinstance(value, dict) or value.keys() != _SECRET_MEMBERS:
        raise ValueError("no secret")
    members: Mapping[str, object] = value
    return KeySecret(
        digest=_hex(members["digest"]),
        seal=_hex(members["seal"]),
        since=_time(members["since"]),
        until=_optional_time(members["until"]),
    )


def _hex(value: object) -> str:
    if _DIGEST.fullmatch(text := _text(value)) is None:
        raise ValueError("no digest")
    return text
