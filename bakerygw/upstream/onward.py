"""A connection to a service that has answered 101, and goes on in another protocol (RFC 9110 section 7.8)."""

from collections.abc import Callable
from typing import Any

from twisted.python.failure import Failure

from bakerygw.ports import Heir, UpstreamFailed


class Onward:
    """Implements `ports.Onward`. Little can come before it is taken, since its transport is paused."""

    def __init__(self, transport: Any, behind: bytes) -> None:
        """`behind` came with the 101."""
        self.transport = transport
        self._behind = behind
        self._heir: Heir | None = None
        self._lost: Failure | None = None
        self._judged: Callable[[UpstreamFailed | None], None] | None = None

    def hear(self, judged: Callable[[UpstreamFailed | None], None]) -> None:
        """`judged` is called with the judgement, if there ever is one."""
        self._judged = judged

    def judge(self, failure: UpstreamFailed | None = None) -> None:
        """Say how the service does in the other protocol; the first call is the judgement."""
        judged, self._judged = self._judged, None
        if judged is not None:
            judged(failure)

    def take(self, heir: Heir) -> None:
        """From here on `heir` has what comes, and at once what has come."""
        self._heir = heir
        behind, self._behind = self._behind, b""
        if behind:
            heir.dataReceived(behind)
        if self._lost is not None:
            heir.connectionLost(self._lost)

    # The connection's side.

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the service."""
        if self._heir is None:
            self._behind += data
        else:
            self._heir.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        """The end."""
        if self._heir is None:
            self._lost = reason
        else:
            self._heir.connectionLost(reason)
