"""What is held of a socket until its service has answered: a question that may be given up, with a refusal."""

from collections.abc import Coroutine
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.tenancy import TenantFlags
from bakerygw.ports import UpstreamResponse
from bakerygw.realtime.held import Ending, Place

RETRY_AFTER_S: Final = 5
"""For whom it is worth coming back, with the same credential."""

_REFUSALS: Final[dict[Ending, tuple[str, str]]] = {
    "token-expired": ("token-expired", "The access token has expired; refresh it or sign in again."),
    "token-revoked": ("token-revoked", "The credential was put out of force meanwhile; sign in again."),
    "token-invalid": ("token-invalid", "The access token is not acceptable any more; refresh it or sign in again."),
    "token-stale": ("token-stale", "The tenant's subscription has changed meanwhile; refresh the token."),
    "forbidden": ("tenant-forbidden", "This tenant is no longer open to you; sign in again."),
    "disconnected": ("service-unavailable", "Operators have disconnected the tenant; connect again later."),
    "draining": ("service-unavailable", "This gateway is about to stop; connect again shortly."),
}
"""Problem code and detail by why it ended."""


class Dialling:
    """A `Held` while a service is asked: an end gives the question up."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._asking: Deferred[UpstreamResponse] | None = None
        self._ended: Ending | None = None

    async def answer(self, asking: Coroutine[Any, Any, UpstreamResponse]) -> UpstreamResponse:
        """What the service says. Raises `Refused` if the place ends before it has."""
        self._asking = Deferred.fromCoroutine(asking)
        self._place.hold(self)
        try:
            return await self._asking
        except (CancelledError, Refused):
            if self._ended is None:  # the client has left, or the service did not answer
                raise
        raise _refusal(self._ended)

    def expiring(self, in_s: float) -> None:
        """There is nobody yet to tell."""

    def tenant_state(self, flags: TenantFlags) -> None:
        """As little of this."""

    def end(self, why: Ending) -> None:
        """Give up the question, and with it the place."""
        self._ended = why
        if self._asking is not None:
            self._asking.cancel()


def _refusal(why: Ending) -> Refused:
    """The refusal of what ended before it had begun."""
    code, detail = _REFUSALS[why]
    if code != "service-unavailable":
        return refuse(code, detail, reason=why)
    return Refused(Problem(code=code, detail=detail, retry_after_s=RETRY_AFTER_S, reason=why))
