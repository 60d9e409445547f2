"""Who holds places, and the shared state that decides how long."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from twisted.internet.task import Clock

from bakerygw.core.claims import Claims, Subscription
from bakerygw.core.tenancy import TenantFlags, TenantView
from bakerygw.edge.admission import Grant
from bakerygw.ports import AdmissionAsk, AdmissionState, Changed, StoreUnavailable
from bakerygw.realtime.guard import StreamGuard
from bakerygw.realtime.held import Ending, HeldKind, Place
from bakerygw.realtime.quotas import Quota, Quotas
from bakerygw.stores.hierarchy import MemoryHierarchy
from bakerygw.stores.memory import MemoryStore

BORN = 1_700_000_000.0
USER = Claims(
    user_id="u-1",
    email="u@example.com",
    tenant_id="t-own",
    role="owner",
    subscription=None,
    tenant_access=(),
    exp=BORN + 900,
    iat=BORN - 100,
    nbf=None,
    is_demo=False,
    demo_session_id=None,
    jti=None,
    digest="digest-1",
)


def grant_of(claims: Claims = USER, tenant_id: str | None = None, valid_until: float = BORN + 1e9) -> Grant:
    """As the pipeline gives it."""
    tenant_id = claims.tenant_id if tenant_id is None else tenant_id
    paid = Subscription(tier="starter", status="active", valid_until=valid_until)
    view = TenantView(tenant_id=tenant_id, role="owner", subscription=paid, own=tenant_id == claims.tenant_id)
    return Grant(claims=claims, view=view)


class Reader:
    """A `Held` that notes what it is told, and leaves when it ends."""

    def __init__(self, place: Place, *, lingers: bool = False) -> None:
        self.place, self._lingers = place, lingers
        self.expiries: list[float] = []
        self.states: list[TenantFlags] = []
        self.ended: Ending | None = None

    def expiring(self, in_s: float) -> None:
        assert self.ended is None
        self.expiries.append(in_s)

    def tenant_state(self, flags: TenantFlags) -> None:
        assert self.ended is None
        self.states.append(flags)

    def end(self, why: Ending) -> None:
        assert self.ended is None
        self.ended = why
        if not self._lingers:
            self.place.leave()


class State:
    """An `AdmissionStore` and `Watch` over an embedded store; as Redis, it can be away or change without a word."""

    def __init__(self, clock: Clock, now: Callable[[], float]) -> None:
        self.store = MemoryStore(lambda: int(now() * 1e6))
        self.hierarchy = MemoryHierarchy()
        self.asked: list[AdmissionAsk] = []
        self.away = self.silent = False
        self.told: Callable[[Changed | None], None] = lambda changed: None
        self.store.on_change(self._changed)

    def _changed(self, changed: Changed | None) -> None:
        if not self.silent:
            self.told(changed)

    def on_change(self, told: Callable[[Changed | None], None]) -> None:
        self.told = told

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        self.asked.append(ask)
        if self.away:
            raise StoreUnavailable("away")
        return await self.store.admit(ask)

    async def ancestors(self, tenant_id: str) -> tuple[str, ...]:
        if self.away:
            raise StoreUnavailable("away")
        return await self.hierarchy.ancestors(tenant_id)


class Stage:
    """A guard with time by hand."""

    def __init__(
        self, *, per_user: int = 1000, per_tenant: int = 1000, in_all: int = 10_000, new_per_second: int = 10_000
    ) -> None:
        self.clock = Clock()
        self.skew_s = 0.0
        """How far the wall clock was set forward."""
        self.state = State(self.clock, self.now)
        self.trusted = True
        self.signers: set[bytes] | None = None
        quota = Quota(per_user=per_user, per_tenant=per_tenant, in_all=in_all)
        random = Random(7)
        self.quotas = Quotas(
            {"stream": quota, "socket": quota},
            new_per_second=new_per_second,
            seconds=self.clock.seconds,
            jitter=random.random,
        )
        self.guard = StreamGuard(
            self.quotas,
            store=self.state,
            hierarchy=self.state,
            watch=self.state,
            trusted=lambda: self.trusted,
            signers=lambda: self.signers,
            grace_days=lambda: 7.0,
            clock=self.clock,
            now=self.now,
            random=random,
        )

    def now(self) -> float:
        return BORN + self.clock.seconds() + self.skew_s

    def open(
        self,
        claims: Claims = USER,
        tenant_id: str | None = None,
        *,
        kind: HeldKind = "stream",
        lingers: bool = False,
        valid_until: float = BORN + 1e9,
        returning: bool = False,
    ) -> Reader:
        """Let somebody in who holds the place."""
        place = self.guard.enter(kind, grant_of(claims, tenant_id, valid_until))
        reader = Reader(place, lingers=lingers)
        place.hold(reader, returning=returning)
        self.clock.advance(0)
        return reader

    def advance(self, seconds: float, step_s: float = 0.05) -> None:
        """Let time pass."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)

    def someone(self, number: int, **more: object) -> Claims:
        """Another user of the same tenant."""
        return replace(USER, user_id=f"u-{number}", digest=f"digest-{number}", **more)  # type: ignore[arg-type]
