"""An admin application over fakes at its ports, for the tests beside this file."""

import json
from dataclasses import dataclass, field, replace

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.admin.alerts import AlertCalls
from bakerygw.admin.keys import KeyCalls
from bakerygw.admin.limits import Standing, TenantLimitCalls
from bakerygw.admin.site import AdminApp
from bakerygw.admin.tenants import TenantCalls
from bakerygw.core.limits import TenantLimit
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.routing import Route, Router
from bakerygw.core.stacks import LimitPolicy
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.edge.limits.crowd import Crowd
from bakerygw.edge.pages.health import HealthPages
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.api_keys import StoredKeys
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.memory_events import MemoryEventLog
from bakerygw.stores.records import MemoryRecords
from tests.deferreds import success_of
from tests.heads import make_head

PEPPER = b"pepper"
NOW = 1_700_000_000.5
NOW_TEXT = "2023-11-14T22:13:20.500Z"
TOKEN = "s3cret-admin-token"
PUBLISH_TOKEN = "s3cret-publish-token"
JSON_TYPE = (b"Content-Type", b"application/json")


@dataclass
class FakeTenants:
    held: dict[str, TenantFlags] = field(default_factory=dict)
    fail_reads: bool = False
    fail_writes: bool = False

    async def flags(self, tenant_id: str) -> TenantFlags:
        if self.fail_reads:
            raise StoreUnavailable("flags")
        return self.held.get(tenant_id, TenantFlags())

    async def set_read_only(self, tenant_id: str, read_only: ReadOnly) -> None:
        await self._put(tenant_id, read_only=read_only)

    async def clear_read_only(self, tenant_id: str) -> None:
        await self._put(tenant_id, read_only=None)

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        await self._put(tenant_id, changed_at=at)

    async def limit(self, tenant_id: str) -> TenantLimit | None:
        return (await self.flags(tenant_id)).limit

    async def set_limit(self, tenant_id: str, limit: TenantLimit) -> None:
        await self._put(tenant_id, limit=limit)

    async def clear_limit(self, tenant_id: str) -> None:
        await self._put(tenant_id, limit=None)

    async def _put(self, tenant_id: str, **changes: object) -> None:
        if self.fail_writes:
            raise StoreUnavailable("write")
        self.held[tenant_id] = replace(self.held.get(tenant_id, TenantFlags()), **changes)


class FrailRecords(MemoryRecords):
    """`MemoryRecords` that fail when told so: before they do what is asked, or behind it."""

    def __init__(self):
        super().__init__(lambda: NOW)
        self.failing = ""
        """What fails: the name of a method, or several."""

    async def get(self, key):
        self._fail("get")
        return await super().get(key)

    async def claim(self, key, value, *, ttl_s):
        self._fail("claim")
        return await super().claim(key, value, ttl_s=ttl_s)

    async def replace(self, key, expected, value, *, ttl_s):
        self._fail("replace")
        return await super().replace(key, expected, value, ttl_s=ttl_s)

    async def add(self, key, member):
        self._fail("add")
        await super().add(key, member)

    async def members(self, key):
        self._fail("members")
        return await super().members(key)

    def _fail(self, name):
        if name in self.failing.split():
            raise StoreUnavailable(name)


@dataclass
class FakeRevocations:
    revoked: dict[str, float] = field(default_factory=dict)
    fail: bool = False

    async def revoke(self, digest: str, until_unix_s: float) -> None:
        if self.fail:
            raise StoreUnavailable("revoke")
        self.revoked[digest] = until_unix_s


ROUTER = Router(
    [
        Route(prefix="/api/v1/pos", template="/api/v1/pos/**", kind="proxy", service="pos"),
        Route(prefix="/api/v1/tenants", template="/api/v1/tenants/**", kind="proxy", service="tenant"),
        Route(prefix="/docs", template="/docs/**", kind="local", auth=False, tenant=False),
    ]
)


@dataclass
class FakeLifecycle:
    state: str = "running"
    drains: int = 0

    def drain(self) -> None:
        self.drains += 1
        self.state = "draining"


@dataclass
class FakeLevel:
    level: str = "INFO"


@dataclass
class FakeSignals:
    sent: list[tuple[str, str]] = field(default_factory=list)
    fail: bool = False

    async def send(self, kind: str, subject: str) -> int:
        if self.fail:
            raise StoreUnavailable("signals")
        self.sent.append((kind, subject))
        return 2


@dataclass
class FakePolicies:
    stacks: dict[str, tuple[LimitPolicy, ...]] = field(default_factory=dict)
    max_concurrent: int = 100


class NoHealth:
    status = "embedded"

    def services(self):
        return {}


class Admin:
    """The application, its fakes, and the audit events it wrote."""

    def __init__(
        self,
        *,
        token=TOKEN,
        publish_token=PUBLISH_TOKEN,
        hosts=("localhost", "127.0.0.1", "[::1]"),
        services=dict,
        tenants=None,
    ):
        self.tenants = FakeTenants() if tenants is None else tenants
        self.lifecycle, self.level = FakeLifecycle(), FakeLevel()
        self.signals, self.cut = FakeSignals(), []
        self.sections = {}
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.records, self.revocations, self.now = FrailRecords(), FakeRevocations(), NOW
        self.clock = Clock()
        self.published, self.counted = [], []
        self.events = MemoryEventLog(
            lambda: self.now, history_events=10, history_s=60, tell=lambda *told: self.published.append(told)
        )
        self.keys = StoredKeys(self.records, lambda: self.now)

        def audit(event, **fields):
            self.audited.append((event, fields))

        self.app = AdminApp(
            token=token,
            publish_token=publish_token,
            hosts=hosts,
            metrics=lambda: (b"up 1\n", "text/plain; version=1.0.0"),
            health=HealthPages(
                health=NoHealth(),
                link=NoHealth(),
                services=(),
                breaker=lambda _: "closed",
                version="1",
                now=lambda: NOW,
            ).public,
            lifecycle=self.lifecycle,
            services=services,
            routes=lambda: [{"prefix": "/api/v1/sales"}],
            config=lambda: {"redis_password": "***"},
            connections=lambda: {"open": 3},
            log_level=self.level,
            tables=(
                TenantCalls(
                    tenants=self.tenants,
                    now=lambda: NOW,
                    audit=audit,
                    signals=self.signals,
                    cut=lambda tenant_id: self.cut.append(tenant_id) or 3,
                    sections=self.sections,
                ).table(),
                self._limit_calls(audit).table(),
                KeyCalls(
                    keys=self.keys,
                    revocations=self.revocations,
                    tenants=self.tenants,
                    router=lambda: ROUTER,
                    pepper=lambda: PEPPER,
                    clock=self.clock,
                    now=lambda: self.now,
                    audit=audit,
                ).table(),
                AlertCalls(self.events, self.counted.append).table(),
            ),
            now=lambda: NOW,
            audit=audit,
        )

    def _limit_calls(self, audit):
        embedded = isinstance(self.tenants, MemoryStore)
        self.store = self.tenants if embedded else MemoryStore(lambda: int(NOW * 1e6))
        self.crowd, self.policies = Crowd(), FakePolicies()
        standing = Standing(store=self.store, limits=self.tenants, policies=lambda: self.policies, crowd=self.crowd)
        return TenantLimitCalls(limits=self.tenants, standing=standing, now=lambda: NOW, audit=audit)

    def raw(self, method, target, headers=(), body=b"", **about):
        head = make_head(method, target, headers, body_length=len(body), **about)
        return success_of(Deferred.fromCoroutine(self.app.reply_to(head, body)))

    def call(self, method, target, document=None, *, headers=(), host=b"localhost:9000", token=TOKEN, **about):
        """An operator's call with everything in order, unless said otherwise; a document is sent as JSON."""
        body = b"" if document is None else json.dumps(document).encode()
        own = [(b"Host", host), (b"Authorization", b"Bearer " + token.encode())]
        own += [JSON_TYPE] if body else []
        return self.raw(method, target, [*own, *headers], body, **about)

    def refusal(self, *args, **kwargs) -> Problem:
        with pytest.raises(Refused) as refused:
            self.call(*args, **kwargs)
        return refused.value.problem
