"""An admin application over fakes at its ports, for the tests beside this file."""

import json
from dataclasses import dataclass, field, replace

import pytest
from twisted.internet.defer import Deferred

from bakerygw.admin.site import AdminApp
from bakerygw.admin.tenants import TenantCalls
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.edge.healthpages import HealthPages
from bakerygw.ports import StoreUnavailable
from tests.deferreds import success_of
from tests.heads import make_head

NOW = 1_700_000_000.5
NOW_TEXT = "2023-11-14T22:13:20.500Z"
TOKEN = "s3cret-admin-token"
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

    async def _put(self, tenant_id: str, **changes: object) -> None:
        if self.fail_writes:
            raise StoreUnavailable("write")
        self.held[tenant_id] = replace(self.held.get(tenant_id, TenantFlags()), **changes)


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


class NoHealth:
    status = "embedded"

    def services(self):
        return {}


class Admin:
    """The application, its fakes, and the audit events it wrote."""

    def __init__(self, *, token=TOKEN, hosts=("localhost", "127.0.0.1", "[::1]"), services=dict, tenants=None):
        self.tenants = tenants or FakeTenants()
        self.lifecycle, self.level = FakeLifecycle(), FakeLevel()
        self.signals, self.cut = FakeSignals(), []
        self.sections = {}
        self.audited: list[tuple[str, dict[str, object]]] = []

        def audit(event, **fields):
            self.audited.append((event, fields))

        self.app = AdminApp(
            token=token,
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
            ),
            now=lambda: NOW,
            audit=audit,
        )

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
