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


class Audit(Protocol):
    """Where what must be answerable for is told. Never raises, never waits.

    `event` is a dotted name, e.g. `admin.tenant.read_only.set`. Fields by convention: `who` did it, `client` (address),
    `user_id` and `tenant_id` it is about, `code` of a refusal, `before` and `after` of a change, and its `outcome`.
    """

    def __call__(self, event: str, **fields: object) -> None:
        """Tell of one event."""
