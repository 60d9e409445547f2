"""What happened last to each tenant on this instance, for operators who are asked about it."""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final

from bakerygw.core.outcome import Outcome
from bakerygw.core.recent import Recent
from bakerygw.telemetry.subjects import name_of

MAX_TENANTS: Final = 1000
MAX_NOTES: Final = 20
"""Of each kind and tenant; some 10 MB in all at most."""

LASTING: Final = frozenset({"/api/v1/alerts/stream", "/api/v1/training/ws"})
"""Routes whose replies last until somebody ends them, for one of `ENDINGS`: that is no error."""
ENDINGS: Final = frozenset(
    {
        "client-left",
        "token-expired",
        "token-revoked",
        "token-stale",
        "token-invalid",
        "forbidden",
        "disconnected",
        "draining",
    }
)

Note = dict[str, object]
Shown = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]
"""How users are shown, by their ids; those left out are not. May raise `StoreUnavailable`."""


class _Tenant:
    __slots__ = ("errors", "refusals")

    def __init__(self) -> None:
        self.refusals: deque[Note] = deque(maxlen=MAX_NOTES)
        self.errors: deque[Note] = deque(maxlen=MAX_NOTES)


class TenantNotes:
    """The last refusals and errors by tenant; the tenants that nothing happened to for longest go first."""

    def __init__(self, stamp: Callable[[], str], *, shown: Shown, redact: Callable[[str], str]) -> None:
        """`stamp` tells the time as ISO 8601; `redact` takes out of a text what must not be shown."""
        self._stamp, self._shown, self._redact = stamp, shown, redact
        self._tenants: Recent[str, _Tenant] = Recent(MAX_TENANTS)

    def ended(self, outcome: Outcome) -> None:
        """Note what was refused or went wrong, where the tenant is known."""
        trace = outcome.trace
        failed = outcome.status >= 500 or (outcome.status < 400 and trace.reason is not None)
        if trace.tenant_id is None or not (failed or (400 <= outcome.status < 499 and trace.reason is not None)):
            return
        if trace.route in LASTING and trace.reason in ENDINGS and outcome.status < 400:
            return
        tenant = self._tenants.use(trace.tenant_id)
        if tenant is None:
            tenant = _Tenant()
            self._tenants.put(trace.tenant_id, tenant)
        note: Note = {
            "when": self._stamp(),
            "status": outcome.status,
            "code": trace.reason,
            "method": trace.method,
            "route": trace.route,
            "user": trace.user_id,
            "request_id": trace.request_id,
        }
        if failed:
            note |= {"service": trace.service, "cause": self._redact(trace.cause)[:256] if trace.cause else None}
        (tenant.errors if failed else tenant.refusals).append(note)

    def forget(self, name: str) -> None:
        """Let no note name the user whose key had this name."""
        for tenant in self._tenants.values():
            for note in (*tenant.refusals, *tenant.errors):
                user = note["user"]
                if isinstance(user, str) and name_of(user) == name:
                    note["user"] = None

    async def refusals(self, tenant_id: str) -> object:
        """The tenant's last refusals, newest first."""
        tenant = self._tenants.get(tenant_id)
        return await self._told(tenant.refusals) if tenant is not None else []

    async def errors(self, tenant_id: str) -> object:
        """The tenant's last errors, newest first: of services, of the gateway, and answers that were cut."""
        tenant = self._tenants.get(tenant_id)
        return await self._told(tenant.errors) if tenant is not None else []

    async def _told(self, notes: Iterable[Note]) -> list[Note]:
        told = [dict(note) for note in notes]
        shown = await self._shown({str(note["user"]) for note in told if note["user"] is not None})
        return [{**note, "user": shown.get(str(note["user"]))} for note in reversed(told)]
