"""What is held open for somebody, whatever is spoken on it: how it is let in, told of changes, and ended."""

from collections.abc import Callable
from typing import Literal, Protocol

from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.admission import Grant

HeldKind = Literal["stream", "socket"]
Ending = Literal[
    "token-expired", "token-revoked", "token-invalid", "token-stale", "forbidden", "disconnected", "draining"
]
"""Why the gateway ends what it holds open; `token-invalid`: the key that the token is signed with is no longer one of
the issuer's, or API keys are sealed otherwise; `forbidden`: the tenant is no longer open to this user."""


class Held(Protocol):
    """A stream or socket, as its `Guard` sees it. No method raises; none is called after `end`."""

    def expiring(self, in_s: float) -> None:
        """Its credential ends in so many seconds."""

    def tenant_state(self, flags: TenantFlags) -> None:
        """The flags of its tenant are different from what it was told last, or may be."""

    def end(self, why: Ending) -> None:
        """Say so as its protocol does, and close. It calls `leave` of its place when that is done."""


class Place(Protocol):
    """One place among those held open, taken until `leave`."""

    def hold(self, held: Held, *, returning: bool = False) -> None:
        """From here on `held` is told, in the stead of whoever was.

        At first it is told its tenant's flags if that is on hold; who is `returning` and may know older ones, always.
        """

    def leave(self) -> None:
        """It has ended, however that came about; harmless if it has left."""


class Guard(Protocol):
    """Lets in, watches and ends all that is held open, by its quotas, its credentials and its tenants."""

    def enter(self, kind: HeldKind, grant: Grant) -> Place:
        """Take a place before anything is sent.

        Raises `Refused`: too-many-streams (429 for user and tenant), service-unavailable (503 for the instance, and
        for too many new ones in a second), token-invalid.
        """

    def keys_changed(self) -> None:
        """Tokens are checked with other keys: end what was opened by one that is good by none of them."""

    def cut(self, tenant_id: str) -> int:
        """End all of a tenant's; how many there were."""

    def of(self, tenant_id: str) -> dict[HeldKind, int]:
        """How many of a tenant's are open here."""

    def drain(self, window_s: float, done: Callable[[], None]) -> None:
        """Let nobody in any more, and end all, spread at random over the window; then call `done`."""
