"""One HTTP message as data: the request's head, the reply, and bodies that move at the reader's pace."""

from collections.abc import Mapping
from typing import Final, Protocol

from bakerygw.core.values import value

Pairs = tuple[tuple[bytes, bytes], ...]
"""Header fields in order: (name, value). Names keep the case in which they were sent."""

WRITING_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods that change something at a service."""


class BodySink(Protocol):
    """Where a body goes. Exactly one of `done` and `cut` ends it; nothing follows."""

    def write(self, data: bytes) -> None:
        """Take the next bytes. A sink that has enough calls its source's `pause`."""

    def done(self) -> None:
        """The body is complete."""

    def cut(self, reason: str) -> None:
        """The body ended early and must never look complete; `reason` is a short constant for the log."""


class BodySource(Protocol):
    """Where a body comes from. Nothing is pushed before `start`, and nothing while paused."""

    @property
    def length(self) -> int | None:
        """Bytes in all if promised (`Content-Length`), `None` if only the end will tell."""

    def whole(self) -> bytes | None:
        """The body, if all of it is here and `start` was not called; it is then spent. Else `None`."""

    def start(self, sink: BodySink) -> None:
        """Begin to push into `sink`; may push, and end, before it returns."""

    def pause(self) -> None:
        """Push nothing more until `resume`; bounded buffering is the source's own affair."""

    def resume(self) -> None:
        """Go on after `pause`."""

    def stop(self) -> None:
        """The reader has gone: release everything. The sink is not called again."""


class RequestSource(BodySource, Protocol):
    """Where a request's body comes from."""

    @property
    def complete(self) -> bool:
        """All of it has come from the client, who can hold nothing up any more."""


@value
class RequestHead:
    """A request whose framing, target and host are known to be sound (RFC 9112)."""

    method: str
    """One of GET HEAD POST PUT PATCH DELETE OPTIONS."""
    target: bytes
    """The request target exactly as sent, in origin form."""
    path: bytes
    """The target up to the first `?`."""
    query: bytes | None
    """What follows the first `?`; `None` without one."""
    headers: Pairs
    """As sent, in order."""
    fields: Mapping[bytes, tuple[bytes, ...]]
    """Lower-case name -> values in order."""
    length: int | None
    """Bytes of the body: 0 without one, `None` for a chunked one."""
    peer: str
    """Address of the TCP peer."""
    client: str
    """Address of the client: the peer, or what a trusted proxy says about it."""
    trusted: bool
    """The peer is a trusted proxy, so its forwarding headers are believed."""
    secure: bool
    """The client spoke TLS, to us or to a trusted proxy."""

    def first(self, name: bytes) -> bytes | None:
        """The first value of the field with this lower-case name."""
        values = self.fields.get(name)
        return values[0] if values else None


@value
class Reply:
    """What the client is to get. Framing headers are added on delivery, never here."""

    status: int
    headers: Pairs = ()
    body: bytes | BodySource = b""
    length: int | None = None
    """`Content-Length` to announce where no body is sent that could be measured: HEAD and 304."""
    close: bool = False
    """End the connection after this reply."""

    def with_headers(self, more: Pairs) -> "Reply":
        """The same reply with further header fields behind its own."""
        if not more:
            return self
        return Reply(  # written out, for dataclasses.replace takes four times as long
            status=self.status, headers=self.headers + more, body=self.body, length=self.length, close=self.close
        )

    def with_body(self, body: bytes) -> "Reply":
        """The same reply with its body in memory."""
        return Reply(status=self.status, headers=self.headers, body=body, length=self.length, close=self.close)
