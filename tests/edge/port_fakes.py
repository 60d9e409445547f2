"""The gateway with fakes at its ports: what each was asked, and answers as the test sets them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.claims import Claims, Subscription, TenantAccess
from bakerygw.core.cors import CorsPolicy
from bakerygw.core.http import Pairs, Reply
from bakerygw.core.limits import LimitRule, level_of
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.core.routing import Route, Router
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.edge.admission import Admission
from bakerygw.edge.credentials.keys import KeyDesk
from bakerygw.edge.credentials.tickets import Tickets
from bakerygw.edge.gateway import Gateway
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.tenants.inheritance import Inheritance
from bakerygw.edge.tenants.lookups import Lookups
from bakerygw.ports import (
    AdmissionAsk,
    AdmissionState,
    LookupFailed,
    StoreUnavailable,
    TokenRefused,
    UpstreamFailed,
    UpstreamRequest,
    UpstreamResponse,
)
from bakerygw.tokens.session_seal import SessionSeal
from tests.edge.edge_fakes import App, Client, Source, request
from tests.edge.record_fakes import Shared

NOW = 1_700_000_000.0
DAY_S = 86_400.0
GENERAL = LimitRule(name="default", requests=300, window_s=60)
STRICT = LimitRule(name="auth", requests=20, window_s=60)
SALES_LIMIT = LimitRule(name="reports", requests=5, window_s=60)
PRO = Subscription(tier="professional", status="active", valid_until=NOW + DAY_S)
USER = Claims(
    user_id="user-1",
    email="user@example.com",
    tenant_id="t-own",
    role="owner",
    subscription=PRO,
    tenant_access=(
        TenantAccess(
            tenant_id="t-other",
            role="admin",
            tier="starter",
            status="active",
            valid_until=NOW + DAY_S,
            include_children=False,
        ),
    ),
    exp=NOW + 900,
    iat=NOW - 100,
    nbf=None,
    is_demo=False,
    demo_session_id=None,
    jti=None,
    digest="digest-good",
)
DEMO = replace(
    USER,
    user_id="demo-1",
    digest="digest-demo",
    tenant_id="t-demo",
    is_demo=True,
    demo_session_id="s-1",
    tenant_access=(),
)

READ_WRITE = frozenset({"GET", "POST", "DELETE"})
ROUTES = (
    Route(prefix="/health", template="/health", kind="local", exact=True, auth=False, tenant=False, unlimited=True),
    Route(prefix="/docs", template="/docs", kind="local", auth=False, tenant=False),
    *(
        Route(
            prefix=f"/api/v1/auth/{name}",
            template=f"/api/v1/auth/{name}",
            kind="proxy",
            exact=True,
            service="auth",
            auth=False,
            tenant=False,
            auth_limit=True,
        )
        for name in ("login", "refresh")
    ),
    Route(prefix="/api/v1/auth", template="/api/v1/auth/**", kind="proxy", service="auth", tenant=False),
    Route(prefix="/api/v1/sales", template="/api/v1/sales/**", kind="proxy", service="sales"),
    Route(prefix="/api/v1/orders", template="/api/v1/orders/**", kind="proxy", service="orders", methods=READ_WRITE),
    Route(prefix="/api/v1/gold", template="/api/v1/gold/**", kind="proxy", service="sales", min_tier="enterprise"),
    Route(prefix="/api/v1/reports", template="/api/v1/reports/**", kind="proxy", service="sales", limit=SALES_LIMIT),
    Route(prefix="/api/v1/small", template="/api/v1/small/**", kind="proxy", service="sales", max_body=10),
    Route(prefix="/api/v1/geocode", template="/api/v1/geocode", kind="local", exact=True, read_only_exempt=True),
    Route(
        prefix="/api/v1/tenants/{id}/subscription",
        template="/api/v1/tenants/{id}/subscription/**",
        kind="proxy",
        service="tenant",
        subscription_exempt=True,
        read_only_exempt=True,
        critical=frozenset({"POST", "DELETE"}),
    ),
    Route(
        prefix="/api/v1/tenants",
        template="/api/v1/tenants/**",
        kind="proxy",
        service="tenant",
        critical=frozenset({"DELETE"}),
    ),
)


class Store:
    """An `AdmissionStore`: full buckets and no flags unless the test says otherwise."""

    def __init__(self) -> None:
        self.asked: list[AdmissionAsk] = []
        self.empty: set[str] = set()
        """Names of rules whose buckets are empty."""
        self.flags: dict[str, TenantFlags | None] = {}
        self.revoked: dict[str, bool | None] = {}
        self.down = False

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        self.asked.append(ask)
        if self.down:
            raise StoreUnavailable
        levels = tuple(
            level_of(bucket.rule, 60_000_000, 1_500_000)
            if bucket.rule.name in self.empty
            else level_of(bucket.rule, bucket.rule.cost_us, 0)
            for bucket in ask.buckets
        )
        return AdmissionState(
            levels=levels,
            flags={tenant: self.flags.get(tenant, TenantFlags()) for tenant in ask.tenants},
            revoked={digest: self.revoked.get(digest, False) for digest in ask.digests},
        )

    @property
    def spent(self) -> list[str]:
        """The keys of all buckets that were asked for a token."""
        return [bucket.key for ask in self.asked for bucket in ask.buckets]


class Tree:
    """A `Hierarchy` by table; raises for what is not in it while it is `down`."""

    def __init__(self) -> None:
        self.chains: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []
        self.down = False

    async def ancestors(self, tenant_id: str) -> tuple[str, ...]:
        self.asked.append(tenant_id)
        if self.down:
            raise StoreUnavailable
        return self.chains.get(tenant_id, ())


class TokenTable:
    """`Credentials` by table: `good` verifies, `expired` and any other do not."""

    def __init__(self) -> None:
        self.claims = {b"good": USER, b"demo": DEMO}
        self.verified: set[bytes] = set()

    def known(self, token: bytes) -> Claims | None:
        return self.claims.get(token) if token in self.verified else None

    def peek(self, token: bytes) -> Claims | None:
        return self.claims.get(token)

    async def verify(self, token: bytes) -> Claims:
        if token == b"expired":
            raise TokenRefused("token-expired", "expired")
        if token not in self.claims:
            raise TokenRefused("token-invalid", "signature")
        self.verified.add(token)
        return self.claims[token]


class Services:
    """`Upstreams` that keep what they are asked and answer `response`, raise `failure`, or wait for the test."""

    def __init__(self) -> None:
        self.names = {"auth", "sales", "orders", "tenant"}
        self.requests: list[tuple[str, UpstreamRequest]] = []
        self.response: UpstreamResponse | None = response()
        self.failure: UpstreamFailed | None = None
        self.waiting: list[Deferred[UpstreamResponse]] = []
        self.cancelled = 0
        self.sink: Any = None
        """Where to send a request's body."""

    def has(self, service: str) -> bool:
        return service in self.names

    def all_authorities(self) -> frozenset[str]:
        return frozenset({"10.0.0.9:8000", *(f"{service}.internal:8000" for service in self.names)})

    async def request(self, service: str, request: UpstreamRequest) -> UpstreamResponse:
        self.requests.append((service, request))
        if self.failure is not None:
            raise self.failure
        if request.body is not None and self.sink is not None:
            request.body.start(self.sink)
        if self.response is not None:
            return self.response
        waiting: Deferred[UpstreamResponse] = Deferred(lambda _: self._cancelled())
        self.waiting.append(waiting)
        return await waiting

    def _cancelled(self) -> None:
        self.cancelled += 1


def response(
    status: int = 200, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes | Source = b"answer"
) -> UpstreamResponse:
    source = Source(len(body), body) if isinstance(body, bytes) else body
    return UpstreamResponse(status=status, headers=tuple(headers), body=source, authority="10.0.0.9:8000")


class Answers:
    """`Enquiries` and `LookupTelemetry`: what is answered, by tenant and user, or `None` to wait for the test."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, Subscription | LookupFailed | None] = {"t-own": PRO}
        self.emails: dict[str, str | LookupFailed | None] = {}
        self.asked: list[tuple[str, str, bool]] = []
        self.headers: list[Pairs] = []
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0
        self.counted: list[tuple[str, str]] = []

    async def subscription(self, upstreams: Any, tenant_id: str, *, demo: bool, headers: Pairs) -> Subscription:
        self.asked.append(("subscription", tenant_id, demo))
        self.headers.append(headers)
        found = self.subscriptions.get(tenant_id)
        if found is None:
            waiting: Deferred[Subscription] = Deferred(lambda _: self._gave_up())
            self.waiting.append(waiting)
            return await waiting
        if isinstance(found, LookupFailed):
            raise found
        return found

    async def email(self, upstreams: Any, user_id: str, *, demo: bool, headers: Pairs) -> str | None:
        self.asked.append(("email", user_id, demo))
        self.headers.append(headers)
        found = self.emails.get(user_id)
        if isinstance(found, LookupFailed):
            raise found
        return found

    def _gave_up(self) -> None:
        self.cancelled += 1

    def looked_up(self, what: str, result: str) -> None:
        self.counted.append((what, result))

    def incomplete_token(self, lacks: str) -> None:
        self.counted.append(("token", lacks))

    def subscription_change(self, result: str) -> None:
        self.counted.append(("change", result))


class Tenants:
    """A `TenantStore` with the flags of a `Store`, and a `RevocationStore` with its revocations."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down = False
        self.changed: list[tuple[str, float]] = []

    async def flags(self, tenant_id: str) -> TenantFlags:
        found = self._store.flags.get(tenant_id, TenantFlags())
        if self.down or found is None:
            raise StoreUnavailable
        return found

    async def revoked(self, digest: str) -> bool:
        if self.down:
            raise StoreUnavailable
        return bool(self._store.revoked.get(digest))

    async def revoke(self, digest: str, until_unix_s: float) -> None:
        raise NotImplementedError

    async def set_read_only(self, tenant_id: str, read_only: ReadOnly) -> None:
        raise NotImplementedError

    async def clear_read_only(self, tenant_id: str) -> None:
        raise NotImplementedError

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        if self.down:
            raise StoreUnavailable
        self.changed.append((tenant_id, at))


class Notes:
    """`Telemetry` that keeps what it is told."""

    def __init__(self) -> None:
        self.begun: list[Trace] = []
        self.outcomes: list[Outcome] = []
        self.auth: list[str] = []
        self.cache: list[bool] = []

    def began(self, trace: Trace) -> None:
        self.begun.append(trace)

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def auth_attempt(self, status: str) -> None:
        self.auth.append(status)

    def token_cache(self, hit: bool) -> None:
        self.cache.append(hit)


class Desk:
    """A `KeyDesk`, and what it tells."""

    def __init__(self) -> None:
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.attempts: list[str] = []
        self.uses: list[tuple[str, float]] = []
        self.now = NOW
        self.deaf = False
        """Uses cannot be noted."""

        def audit(event: str, **fields: object) -> None:
            self.audited.append((event, fields))

        async def used(key_id: str, at: float) -> None:
            if self.deaf:
                raise StoreUnavailable("gone")
            self.uses.append((key_id, at))

        self.desk = KeyDesk(audit=audit, attempted=self.attempts.append, used=used, now=lambda: self.now)


class Stage:
    """A gateway and its ports; `ask` sends one request on a connection of its own."""

    def __init__(self, **policies: Any) -> None:
        self.store, self.tokens, self.services, self.notes = Store(), TokenTable(), Services(), Notes()
        self.answers, self.tenants = Answers(), Tenants(self.store)
        self.clock = Clock()
        self.tree, self.audited = Tree(), list[tuple[str, dict[str, object]]]()
        self.seconds = 0.0
        self.desk = Desk()
        self.now = NOW
        self.pages: Mapping[str, Any] = {
            "/health": lambda head: Reply(status=200, body=b"healthy"),
            "/docs": lambda head: Reply(status=200, body=b"docs"),
            "/api/v1/geocode": lambda head: Reply(status=200, body=b"a place"),
        }
        defaults: dict[str, Any] = {
            "router": Router(ROUTES),
            "cors": CorsPolicy(origins=frozenset({b"https://app.example"})),
            "credentials": {"bearer": self.tokens},
            "upstreams": self.services,
            "general_limit": GENERAL,
            "auth_limit": STRICT,
            "grace_days": 7,
            "max_body_bytes": 1000,
        }
        self.policies = Policies(**{**defaults, **policies})
        self.lookups = Lookups(
            self.answers,
            self.tenants,
            revocations=self.tenants,
            shared=None,
            telemetry=self.answers,
            now=lambda: self.now,
        )
        self.records = Shared(lambda: self.now)
        self.tickets = Tickets(self.records, SessionSeal(), lambda: self.now)
        self.gateway = Gateway(
            self.policies,
            admission=Admission(self.store, self.notes, self.desk.desk),
            proxy=Proxy(self.clock),
            pages=self.pages,
            handlers={"ticket": self.tickets.reply_to},
            telemetry=self.notes,
            clock=self.clock,
            inheritance=Inheritance(self.tree, self.store, self._audit, lambda: self.seconds),
            now=lambda: self.now,
            lookups=self.lookups,
            tickets=self.tickets,
        )

    def _audit(self, event: str, **fields: object) -> None:
        self.audited.append((event, fields))

    def client(self, data: bytes, *, trusted: Any = (), peer: str = "192.0.2.1", stalled: bool = False) -> Client:
        """A connection that has sent `data`."""
        app: Any = self.gateway
        assert not isinstance(app, App)
        client = Client(app, trusted=trusted, peer=peer, stalled=stalled)
        self.clock = client.clock  # type: ignore[assignment]
        return client.send(data)

    def ask(self, target: bytes, *lines: bytes, method: bytes = b"GET", body: bytes = b"", token: bytes = b"") -> Any:
        """The one answer to one request."""
        bearer = (b"Authorization: Bearer " + token,) if token else ()
        return self.client(request(method, target, *bearer, *lines, body=body)).only()

    @property
    def outcome(self) -> Outcome:
        (outcome,) = self.notes.outcomes
        return outcome

    @property
    def forwarded(self) -> UpstreamRequest:
        ((_, sent),) = self.services.requests
        return sent
