"""One entry of the audit trail: what anybody may read of it, and what is sealed under its user's key."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from bakerygw.core.claims import is_id
from bakerygw.core.privacy import truncated
from bakerygw.ports import Ledger
from bakerygw.telemetry.redaction import MASK, Redactor, secret_key
from bakerygw.telemetry.subjects import Subject

PERSONAL: Final = ("user_id", "who", "email", "client", "request_id", "path")
"""Fields that tell who somebody was, of entries about a user."""
MAX_TEXT: Final = 256
"""Characters of a personal field."""
MAX_BYTES: Final = 16 * 1024
"""Of one entry; a longer one keeps its plain fields alone."""


def fresh_id() -> str:
    """The id of a new entry."""
    return secrets.token_hex(8)


@dataclass(slots=True, kw_only=True)
class Entry:
    """One event, not yet sealed."""

    ledger: Ledger
    when: str
    event: str
    user_id: str | None
    """Whom it is about; `None` if nobody known, or nobody any more."""
    personal: dict[str, str]
    fields: dict[str, object]
    """All else."""
    id: str = field(default_factory=fresh_id)
    """The same if it has to be written twice."""

    def forget(self) -> None:
        """Let it be about nobody."""
        self.user_id, self.personal = None, {}


def entry_of(event: str, fields: Mapping[str, object], *, when: str, redactor: Redactor) -> Entry:
    """The entry of an event with these fields; secrets masked, every part bounded."""
    user_id = fields.get("user_id")
    whose = user_id if isinstance(user_id, str) and is_id(user_id) else None
    hidden = PERSONAL if whose is not None else ()
    personal = {name: str(fields[name])[:MAX_TEXT] for name in hidden if fields.get(name) is not None}
    kept = {name: value for name, value in fields.items() if name not in (*personal, "user_id") and value is not None}
    shown = redactor.record({name: value for name, value in kept.items() if name != "when"})
    if "client" in shown and not event.startswith("admin."):
        shown["client"] = truncated(str(shown["client"]))
    return Entry(
        ledger="refusals" if "code" in fields or event.endswith((".failed", ".refused", ".reused")) else "events",
        when=redactor.text(str(fields.get("when") or when))[:64],
        event=redactor.text(event)[:64],
        user_id=whose,
        personal=personal,
        fields=shown,
    )


def sealed(entry: Entry, subject: Subject | None) -> bytes:
    """The entry as it is stored: a JSON object. Without the user's key nothing personal is in it."""
    document: dict[str, object] = {"id": entry.id, "when": entry.when, "event": entry.event}
    if subject is not None and entry.personal:
        document["user"] = subject.pseudonym
        document["sealed"] = subject.seal(orjson.dumps(_clean(entry.personal)), entry.id)
    document |= {name: value for name, value in entry.fields.items() if name not in ("id", "event", "user", "sealed")}
    data = orjson.dumps(document)
    if len(data) > MAX_BYTES:
        plain = {name: value for name, value in document.items() if not isinstance(value, dict | list)}
        data = orjson.dumps(dict(list(plain.items())[:16]) | {"truncated": True})
    return data


def opened(data: bytes, subject: Subject) -> dict[str, object] | None:
    """The entry with what was sealed in it, if it is about this user; `None` if not, or if it cannot be read."""
    document = document_of(data)
    if document is None or document.get("user") != subject.pseudonym:
        return None
    its_id, closed = document.get("id"), document.pop("sealed", None)
    try:
        personal = orjson.loads(subject.open(str(closed), str(its_id))) if closed is not None else {}
    except ValueError:
        return {**document, "unreadable": True}
    return {**document, **(personal if isinstance(personal, dict) else {})}


def document_of(data: bytes) -> dict[str, object] | None:
    """A stored entry as it is; `None` for what is none."""
    try:
        document = orjson.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _clean(personal: Mapping[str, str]) -> dict[str, str]:
    return {
        name: MASK if secret_key(name) else value.encode("utf-8", "backslashreplace").decode()
        for name, value in personal.items()
    }
