"""Where the gateway tells what it did."""

from typing import Protocol

from bakerygw.core.outcome import Outcome, Trace


class Telemetry(Protocol):
    """Where a request's beginning and end are told. Never raises, never waits."""

    def began(self, trace: Trace) -> None:
        """The line before."""

    def ended(self, outcome: Outcome) -> None:
        """The line after, and the metrics."""

    def auth_attempt(self, status: str) -> None:
        """`status`: ok, or a token problem's code."""

    def token_cache(self, hit: bool) -> None:
        """One look-up in the cache of verified tokens."""


class StoreTelemetry(Protocol):
    """What the store's adapter reports."""

    def round_trip(self, seconds: float) -> None:
        """One call answered."""

    def failure(self, kind: str) -> None:
        """`kind`: timeout, disconnected, error or open (spared by the breaker)."""

    def degraded(self, yes: bool) -> None:
        """Whether admission runs on local state now."""


class AlertTelemetry(Protocol):
    """What the way of alerts into the history reports."""

    def heard(self) -> None:
        """Something was published for a tenant, well or ill formed."""

    def placed(self, fresh: int, known: int) -> None:
        """So many alerts were written into the history, and so many stood there already."""

    def dropped(self, reason: str) -> None:
        """Something that was heard is not kept: invalid, too-large or store."""

    def listening(self, yes: bool) -> None:
        """Whether all that is published is heard now."""

    def era(self) -> None:
        """An era has begun, as alerts may have been missed."""


class SocketTelemetry(Protocol):
    """What bridged WebSockets report."""

    def opened(self) -> None:
        """One more is open."""

    def closed(self, code: int, messages_in: int, messages_out: int) -> None:
        """One less is, after so many messages from the client and to it."""


class TokenTelemetry(Protocol):
    """What the checking of tokens reports."""

    def key_set(self, result: str) -> None:
        """One attempt to fetch the key set: ok, unreachable, timeout, status, too-large or invalid."""

    def shared_token(self, result: str) -> None:
        """One look-up among the seals that instances share: hit, miss, foreign, refused or unavailable."""


class StreamTelemetry(Protocol):
    """What the streams of alerts report."""

    def streams(self, number: int) -> None:
        """So many are open now."""

    def sent(self, events: int) -> None:
        """So many events were written to streams."""

    def replayed(self, events: int) -> None:
        """So many of them came from the history."""

    def gap(self, reason: str) -> None:
        """A stream, or all of a tenant's, was told of a hole: epoch, trimmed, rewound or unknown."""

    def dropped(self, reason: str) -> None:
        """An event was not sent, or a stream ended for it: slow, invalid, too-large, store or closed."""


class Audit(Protocol):
    """Where what must be answerable for is told. Never raises, never waits.

    `event` is a dotted name, e.g. `admin.tenant.read_only.set`. Fields by convention: `who` did it, `client` (address),
    `user_id` and `tenant_id` it is about, `code` of a refusal, `before` and `after` of a change, and its `outcome`.
    """

    def __call__(self, event: str, **fields: object) -> None:
        """Tell of one event."""
