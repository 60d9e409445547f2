"""What tokens leave out, asked of the services that know it."""

from typing import Literal, Protocol

from bakerygw.core.claims import Subscription
from bakerygw.core.http import Pairs
from bakerygw.ports.upstream import Upstreams

LookupFailure = Literal["timeout", "unreachable", "unavailable", "invalid", "unauthorized", "forbidden", "unknown"]
"""Why there is no answer. The last three are the service's word: 401, 403, 404; `unavailable` is any other status, a
breaker that is open, or no address; `invalid` is what can't be understood."""


class LookupFailed(Exception):
    """A service did not say what it was asked."""

    def __init__(
        self, kind: LookupFailure, cause: str, *, retry_after_s: int | None = None, told: bool = False
    ) -> None:
        """`cause` is for the log, unless it was `told` there before; `retry_after_s`: when it is worth asking again."""
        super().__init__(cause)
        self.kind, self.cause, self.retry_after_s, self.told = kind, cause, retry_after_s, told


class Enquiries(Protocol):
    """Questions to other services; each call asks, and is over within seconds. Raises `LookupFailed`.

    `headers` say who asks. For `demo` sessions the service's demo instance is asked, where there is one.
    """

    async def subscription(self, upstreams: Upstreams, tenant_id: str, *, demo: bool, headers: Pairs) -> Subscription:
        """The tenant's subscription at this moment."""

    async def email(self, upstreams: Upstreams, user_id: str, *, demo: bool, headers: Pairs) -> str | None:
        """The user's e-mail address; `None` if there is none."""


class SharedFacts(Protocol):
    """Answers that instances share, proof against whoever else can write there. Never raises."""

    async def get(self, key: str) -> bytes | None:
        """What an instance has put there, unaltered; `None` if nothing is, or it can't be asked or believed."""

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Offer it to all instances."""


class LookupTelemetry(Protocol):
    """Where it is counted. Never raises, never waits."""

    def looked_up(self, what: str, result: str) -> None:
        """`what`: subscription, email or critical. `result`: memory, shared, answered, paused, or a `LookupFailure`."""

    def incomplete_token(self, lacks: str) -> None:
        """A token that this instance sees for the first time lacks its subscription, an entry's, or email."""

    def subscription_change(self, result: str) -> None:
        """`result`: written, retried, dropped, or unknown (whether there was one)."""
