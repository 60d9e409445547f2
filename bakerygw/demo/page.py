"""The page `/demo/`: what a bakery sees live, and what the gateway does about it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Final

from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.routing import Route
from bakerygw.demo.accounts import PASSWORD, Account, Tenant

PREFIX: Final = "/demo"
ROUTE: Final = Route(
    prefix=PREFIX,
    template=f"{PREFIX}/**",
    kind="local",
    auth=False,
    tenant=False,
    methods=frozenset({"GET", "HEAD"}),
)
FILES: Final[Mapping[str, tuple[str, bytes]]] = {
    "/demo/": ("index.html", b"text/html; charset=utf-8"),
    "/demo/app.js": ("app.js", b"text/javascript; charset=utf-8"),
    "/demo/style.css": ("style.css", b"text/css; charset=utf-8"),
    "/demo/icon.svg": ("icon.svg", b"image/svg+xml"),
}
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Pairs] = (
    (b"Cache-Control", b"no-cache"),
    (b"Content-Security-Policy", POLICY),
    (b"Referrer-Policy", b"no-referrer"),
)


class DemoPage:
    """Its files, and the accounts that it offers."""

    def __init__(self, accounts: Iterable[Account], tenants: Mapping[str, Tenant]) -> None:
        """`accounts` are those to sign in as with one click, `tenants` the bakeries by id. Raises `OSError`."""
        folder = files("bakerygw.demo") / "page"
        self._files = {
            path: Reply(status=200, headers=((b"Content-Type", kind), *HEADERS), body=(folder / name).read_bytes())
            for path, (name, kind) in FILES.items()
        }
        self._accounts = [_row(account, tenants) for account in accounts]
        self.admin_url = self.admin_token = ""
        """Where the admin port is, and what a shell makes the admin token of."""

    def reply_to(self, head: RequestHead) -> Reply:
        """A file of the page, or `accounts.json`. Raises `Refused` not-found and method-not-allowed."""
        if head.method not in ("GET", "HEAD"):
            allow = ((b"Allow", b"GET, HEAD"),)
            raise Refused(Problem(code="method-not-allowed", detail="Use GET or HEAD here.", headers=allow))
        path = head.path.decode("latin-1")
        if path == PREFIX:
            return Reply(status=308, headers=((b"Location", b"/demo/"), *HEADERS))
        if path == "/demo/accounts.json":
            return self._offer()
        found = self._files.get(path)
        if found is None:
            raise refuse("not-found", "The demo's page is /demo/.")
        return found

    def _offer(self) -> Reply:
        document = {
            "password": PASSWORD,
            "admin_url": self.admin_url,
            "admin_token": self.admin_token,
            "accounts": self._accounts,
        }
        headers = ((b"Content-Type", b"application/json"), *HEADERS)
        return Reply(status=200, headers=headers, body=json.dumps(document, ensure_ascii=False).encode())


def _row(account: Account, tenants: Mapping[str, Tenant]) -> dict[str, object]:
    return {
        "email": account.email,
        "full_name": account.full_name,
        "role": account.role,
        "shows": account.shows,
        "bakeries": list(_bakeries(account, tenants)),
    }


def _bakeries(account: Account, tenants: Mapping[str, Tenant]) -> Iterator[dict[str, str]]:
    """Its own, and the others that it may enter."""
    for tenant_id in (account.tenant_id, *(access.tenant_id for access in account.access)):
        tenant = tenants.get(tenant_id)
        if tenant is not None:
            yield {"id": tenant_id, "name": tenant.name, "tier": tenant.tier}
