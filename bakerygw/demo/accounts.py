"""The demo's bakeries and the people who sign in to them."""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final
from uuid import NAMESPACE_DNS, uuid5

from bakerygw.core.tenancy import ReadOnly, TenantFlags

PASSWORD: Final = "croissant"
"""Every account that exists from the start has this password."""

MAX_ACCOUNTS: Final = 1000
"""Accounts in all; registration is refused beyond it."""

DAY_S: Final = 86_400


def stable_id(kind: str, name: str) -> str:
    """A UUID that is the same at each start."""
    return str(uuid5(NAMESPACE_DNS, f"{name}.{kind}.bakery-ia.example"))


def iso(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A bakery and what it pays for."""

    tenant_id: str
    name: str
    city: str
    tier: str
    status: str
    valid_until: str
    """ISO 8601, UTC."""
    demo: bool = False
    read_only: ReadOnly | None = None

    @property
    def subscription(self) -> dict[str, object]:
        """As tokens and the tenant service state it."""
        return {"tier": self.tier, "status": self.status, "valid_until": self.valid_until}

    @property
    def document(self) -> dict[str, object]:
        """As the tenant service shows it."""
        return {
            "id": self.tenant_id,
            "name": self.name,
            "city": self.city,
            "is_demo": self.demo,
            "subscription": self.subscription,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A further tenant that a person may enter, and as what."""

    tenant_id: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person who can sign in."""

    user_id: str
    email: str
    full_name: str
    password: str = field(repr=False)
    tenant_id: str
    role: str
    access: tuple[Access, ...] = ()
    old_token: bool = False
    """Signs in to tokens as the auth service made them once: without `subscription` and without `email`."""
    shows: str = ""
    """What this account is good for in the demo, in a few words."""


class Directory:
    """All tenants and accounts, as the auth and tenant services share them."""

    def __init__(self, tenants: tuple[Tenant, ...], accounts: tuple[Account, ...]) -> None:
        self._tenants = {tenant.tenant_id: tenant for tenant in tenants}
        self._accounts = {account.user_id: account for account in accounts}
        self._by_email = {account.email: account.user_id for account in accounts}

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Everyone, in the order in which they came."""
        return tuple(self._accounts.values())

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """All tenants by id, as they are now."""
        return MappingProxyType(self._tenants)

    def tenant(self, tenant_id: str) -> Tenant | None:
        """The tenant with this id."""
        return self._tenants.get(tenant_id)

    def account(self, user_id: str) -> Account | None:
        """The account with this id."""
        return self._accounts.get(user_id)

    def authenticated(self, email: str, password: str) -> Account | None:
        """Who signs in with this pair; an unknown address costs the same comparison as a wrong password."""
        account = self._accounts.get(self._by_email.get(email.lower(), ""))
        expected = account.password if account is not None else ""
        right = hmac.compare_digest(expected.encode("utf-8", "replace"), password.encode("utf-8", "replace"))
        return account if right else None

    def has_email(self, email: str) -> bool:
        """Whether the address is taken."""
        return email.lower() in self._by_email

    def full(self) -> bool:
        """Whether no further account fits."""
        return len(self._accounts) >= MAX_ACCOUNTS

    def add(self, tenant: Tenant, account: Account) -> None:
        """Enter a new bakery and its owner."""
        self._tenants[tenant.tenant_id] = tenant
        self._accounts[account.user_id] = account
        self._by_email[account.email] = account.user_id

    def change(self, tenant_id: str, **changes: str) -> Tenant:
        """Replace some of a tenant's fields; the new state is in every token made from here on."""
        tenant = replace(self._tenants[tenant_id], **changes)  # type: ignore[arg-type]
        self._tenants[tenant_id] = tenant
        return tenant

    def flags(self) -> Mapping[str, TenantFlags]:
        """What the gateway's store must know: who is on hold and who is a demo tenant."""
        return {
            tenant.tenant_id: TenantFlags(read_only=tenant.read_only, demo=tenant.demo)
            for tenant in self._tenants.values()
            if tenant.demo or tenant.read_only is not None
        }


def _tenant(name: str, city: str, slug: str, tier: str, until: float, **more: bool | ReadOnly) -> Tenant:
    return Tenant(
        tenant_id=stable_id("tenant", slug),
        name=name,
        city=city,
        tier=tier,
        status="active",
        valid_until=iso(until),
        **more,  # type: ignore[arg-type]
    )


def _tenants(now: float) -> dict[str, Tenant]:
    year = now + 300 * DAY_S
    hold = ReadOnly(reason="Year-end stock-taking", since=iso(now - DAY_S), until=iso(now + 2 * DAY_S), by="support")
    return {
        "espiga": _tenant("Panadería La Espiga", "Sevilla", "espiga", "professional", year),
        "martin": _tenant("Boulangerie Martin", "Lyon", "martin", "starter", year),
        "puig": _tenant("Forn Puig", "Girona", "puig", "enterprise", now - 2 * DAY_S),
        "vogel": _tenant("Bäckerei Vogel", "Leipzig", "vogel", "professional", now - 30 * DAY_S),
        "rossi": _tenant("Panificio Rossi", "Bologna", "rossi", "professional", year, read_only=hold),
        "demo": _tenant("Demo Bakery", "Anywhere", "demo", "professional", year, demo=True),
    }


def _account(email: str, name: str, tenant: Tenant, role: str, shows: str) -> Account:
    return Account(
        user_id=stable_id("user", email.replace("@", ".")),
        email=email,
        full_name=name,
        password=PASSWORD,
        tenant_id=tenant.tenant_id,
        role=role,
        shows=shows,
    )


def demo_directory(now: Callable[[], float]) -> Directory:
    """The bakeries and people that are there at start; `now` gives Unix seconds."""
    t = _tenants(now())
    accounts = (
        _account("ana@espiga.example", "Ana Romero", t["espiga"], "owner", "everything works"),
        _account("luis@espiga.example", "Luis Vega", t["espiga"], "baker", "the same bakery, another role"),
        replace(
            _account(
                "rosa@espiga.example", "Rosa Gil", t["espiga"], "manager", "an old token: plan and e-mail looked up"
            ),
            old_token=True,
        ),
        _account("claire@martin.example", "Claire Martin", t["martin"], "owner", "a smaller plan"),
        replace(
            _account("jordi@martin.example", "Jordi Serra", t["martin"], "admin", "may also enter La Espiga"),
            access=(
                Access(tenant_id=t["espiga"].tenant_id, role="admin"),
                Access(tenant_id=t["demo"].tenant_id, role="viewer"),
            ),
        ),
        _account("nuria@puig.example", "Núria Puig", t["puig"], "owner", "in grace, two days past the end"),
        _account("otto@vogel.example", "Otto Vogel", t["vogel"], "owner", "subscription expired"),
        _account("gina@rossi.example", "Gina Rossi", t["rossi"], "owner", "bakery is read-only"),
        _account("visitor@demo.example", "Demo Visitor", t["demo"], "owner", "a demo session"),
    )
    return Directory(tuple(t.values()), accounts)
