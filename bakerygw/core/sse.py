"""Server-sent events as bytes (WHATWG HTML §9.2), and their framing as chunks (RFC 9112 §7.1)."""

import json
from collections.abc import Mapping
from typing import Final

HEARTBEAT: Final = b":\n\n"
"""A comment, which no client shows to its page."""


def event(name: str, data: bytes, event_id: str | None = None) -> bytes:
    """One event. Each line of `data` is a field of its own, whichever of CR LF, LF and CR ends it.

    `name` and `event_id` must hold no line end and no NUL; with `None` the client's last id stays as it is.
    """
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    if event_id is None:
        return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), lines)
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode("ascii"), event_id.encode("ascii"), lines)


def control(name: str, members: Mapping[str, object], event_id: str | None = None) -> bytes:
    """An event of the gateway's own, with a JSON object as its data."""
    return event(name, json.dumps(members, separators=(",", ":")).encode("ascii"), event_id)


def retry(wait_ms: int) -> bytes:
    """How long the client is to wait before it connects again, in milliseconds."""
    return b"retry: %d\n\n" % wait_ms


def chunk(data: bytes) -> bytes:
    """A piece of a body as one chunk; `data` must not be empty, for that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
