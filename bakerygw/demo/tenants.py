"""The demo's tenant service: what a bakery is and what it pays for."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Final

from bakerygw.demo.accounts import DAY_S, Directory, Tenant, iso
from bakerygw.demo.web import Answer, Call, ServiceError, not_allowed

TIERS: Final = ("starter", "professional", "enterprise")
STATUSES: Final = ("active", "trialing", "past_due", "canceled")
PAID_S: Final = 30 * DAY_S
"""What a subscription lasts from its payment, if nothing else is said."""
MAX_TEXT: Final = 200

_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)")


class TenantService:
    """`/api/v1/tenants`: the tenants of the caller, one tenant, and its subscription."""

    def __init__(self, directory: Directory, now: Callable[[], float]) -> None:
        self._directory, self._now = directory, now

    def __call__(self, call: Call) -> Answer:
        """Answer one call under `/api/v1/tenants`."""
        if call.path[:3] != ("api", "v1", "tenants"):
            raise ServiceError(404, "there is no such resource")
        if len(call.path) == 3:
            return self._list(call)
        tenant = self._tenant(call, call.path[3])
        match call.path[4:]:
            case ():
                return self._one(call, tenant)
            case ("subscription",):
                return self._subscription(call, tenant)
            case ("subscription", "status") if call.method == "GET":
                return Answer(body=tenant.subscription)
            case ("subscription", "status"):
                raise not_allowed("GET")
        raise ServiceError(404, "there is no such resource")

    def _tenant(self, call: Call, tenant_id: str) -> Tenant:
        """The tenant of the path, which the gateway has checked and repeated in `X-Tenant-Id`."""
        tenant = self._directory.tenant(tenant_id)
        if tenant is None or call.header("X-Tenant-Id") != tenant_id:
            raise ServiceError(404, "there is no such tenant")
        return tenant

    def _list(self, call: Call) -> Answer:
        if call.method != "GET":
            raise not_allowed("GET")
        ids = dict.fromkeys(filter(None, [call.header("X-Tenant-Id")]))
        account = self._directory.account(call.header("X-User-Id") or "")
        if account is not None:
            ids |= dict.fromkeys([account.tenant_id, *(access.tenant_id for access in account.access)])
        tenants = [tenant for tenant_id in ids if (tenant := self._directory.tenant(tenant_id)) is not None]
        return Answer(body={"items": [tenant.document for tenant in tenants], "total": len(tenants)})

    def _one(self, call: Call, tenant: Tenant) -> Answer:
        if call.method == "PATCH":
            changes = {name: _text(value, name) for name, value in call.json().items() if name in ("name", "city")}
            tenant = self._directory.change(tenant.tenant_id, **changes)
        elif call.method != "GET":
            raise not_allowed("GET", "PATCH")
        return Answer(body=tenant.document)

    def _subscription(self, call: Call, tenant: Tenant) -> Answer:
        if call.method == "PUT":
            wanted = call.json()
            tenant = self._directory.change(
                tenant.tenant_id,
                tier=_one_of(wanted.get("tier", tenant.tier), "tier", TIERS),
                status=_one_of(wanted.get("status", "active"), "status", STATUSES),
                valid_until=_instant(wanted.get("valid_until", iso(self._now() + PAID_S))),
            )
        elif call.method != "GET":
            raise not_allowed("GET", "PUT")
        return Answer(body=tenant.subscription)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ServiceError(400, f"{name} must be a text of at most {MAX_TEXT} characters")
    return value


def _one_of(value: object, name: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ServiceError(400, f"{name} must be one of {', '.join(allowed)}")
    return value


def _instant(value: object) -> str:
    """An ISO 8601 instant with its offset, as UTC."""
    try:
        if isinstance(value, str) and _INSTANT.fullmatch(value):
            return iso(datetime.fromisoformat(value).timestamp())
    except (ValueError, OverflowError):
        pass
    raise ServiceError(400, "valid_until must be an ISO 8601 time such as 2030-01-31T00:00:00Z")
