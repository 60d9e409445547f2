"""One place among those held open, and what is known of who has it."""

from typing import Final, Protocol

from bakerygw.core.claims import Claims
from bakerygw.core.tenancy import ReadOnly, TenantFlags, is_stale
from bakerygw.ports import AdmissionState
from bakerygw.realtime.held import Ending, Held, HeldKind

NOTICE_S: Final = 60.0
"""So long before its end it is said of a credential that it ends."""
SOMETHING_ELSE: Final[tuple[ReadOnly | None, float | None]] = (None, -1.0)
"""What no tenant's flags are like."""


class Keeper(Protocol):
    """Who gives places."""

    def held(self, place: "HeldPlace") -> None:
        """Somebody holds the place from here on."""

    def left(self, place: "HeldPlace") -> None:
        """It is free."""


class HeldPlace:
    """A `Place`. Kept small, for there are ten thousand of them."""

    __slots__ = (
        "_keeper", "_told", "claims", "ending", "held", "kind", "left", "noticed", "paid_until", "since", "tenant_id",
        "via",
    )  # fmt: skip

    def __init__(
        self, keeper: Keeper, kind: HeldKind, claims: Claims, tenant_id: str, *, now: float, paid_until: float
    ) -> None:
        """It is entered `now`, for a tenant whose subscription carries it until `paid_until`; both in Unix seconds."""
        self._keeper = keeper
        self.since = claims.iat if claims.key is None else now
        """When that was true by which it was let in: with an API key all of it was looked up."""
        self.paid_until = paid_until
        self.kind, self.claims, self.tenant_id = kind, claims, tenant_id
        self.via = _inherited_by(claims, tenant_id)
        """The tenant that this one was part of when it was entered, where that alone opened it."""
        self.held: Held | None = None
        self.ending: Ending | None = None
        """Why it ends, once that is certain."""
        self.noticed = self.left = False
        self._told: tuple[ReadOnly | None, float | None] | None = None
        """Read-only, and when the subscription changed, as it was known last."""

    def hold(self, held: Held, *, returning: bool = False) -> None:
        """From here on `held` is told, in the stead of whoever was.

        Who is `returning` is told first how it stands, for that may have changed.
        """
        if self.left:
            return
        if returning:
            self._told = SOMETHING_ELSE
        before, self.held = self.held, held
        if before is None or self.ending is not None:
            self._keeper.held(self)

    def leave(self) -> None:
        """It has ended, however that came about; harmless if it has left."""
        if not self.left:
            self.left = True
            self.held = None
            self._keeper.left(self)

    # what the keeper does

    def end(self, why: Ending) -> bool:
        """Have it end, now or as soon as somebody holds it; whether that is new."""
        if self.left or self.ending is not None:
            return False
        self.ending = why
        if self.held is not None:
            self.held.end(why)
        return True

    def next_moment(self) -> float:
        """When something is due of its credential, in Unix seconds."""
        return min(self.paid_until, self.claims.exp if self.noticed else self.claims.exp - NOTICE_S)

    def tick(self, now: float) -> bool:
        """Do what is due; whether something else will be."""
        held = self.held
        if held is None or self.ending is not None:
            return False
        if now >= self.claims.exp:
            self.end("token-expired")
            return False
        if now >= self.paid_until:
            self.end("token-stale")
            return False
        if not self.noticed and now >= self.claims.exp - NOTICE_S:
            self.noticed = True
            held.expiring(self.claims.exp - now)
        return not self._is_over()

    def judge(self, state: AdmissionState, ancestors: tuple[str, ...] | None) -> None:
        """Tell of what has changed for its tenant, and end it if it would not be let in any more.

        What is not known changes nothing. `ancestors` are its tenant's, where access was inherited.
        """
        if self._is_over():
            return
        claims, flags, own = self.claims, state.flags.get(self.tenant_id), state.flags.get(self.claims.tenant_id)
        if flags is not None:
            self._tell(flags)
        if self._is_over():
            return
        if state.revoked.get(claims.digest):
            self.end("token-revoked")
        elif any(it is not None and is_stale(self.since, it.changed_at) for it in (flags, own)):
            self.end("token-stale")
        elif (flags is not None and flags.demo and not claims.is_demo) or (
            self.via is not None and ancestors is not None and self.via not in ancestors
        ):
            self.end("forbidden")

    def _is_over(self) -> bool:
        return self.held is None or self.ending is not None

    def _tell(self, flags: TenantFlags) -> None:
        """Tell of its tenant's flags if they are others; at first, if the tenant is on hold."""
        known = flags.read_only, flags.changed_at
        before, self._told = self._told, known
        if self.held is not None and (flags.read_only is not None if before is None else before != known):
            self.held.tenant_state(flags)


def _inherited_by(claims: Claims, tenant_id: str) -> str | None:
    """The tenant by whose entry alone the token opens this one, as it is part of that."""
    if tenant_id == claims.tenant_id:
        return None
    return next((entry.via for entry in claims.tenant_access if entry.tenant_id == tenant_id), None)
