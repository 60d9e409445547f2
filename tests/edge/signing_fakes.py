"""A gateway that takes part in refreshing and signing out, over records in memory that can go away."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred

from bakerygw.core.routing import Route, Router
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.signin.refreshing import Refreshing
from bakerygw.edge.signin.renewal import Renewal
from bakerygw.edge.signin.session_calls import SessionCalls
from bakerygw.edge.signin.sessions import Sessions
from bakerygw.edge.signin.spending import Spending
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.records import MemoryRecords
from bakerygw.tokens.session_seal import SessionSeal
from tests.edge.port_fakes import NOW, ROUTES, STRICT, Stage, response

JSON = b"Content-Type: application/json"
REFRESH = b"/api/v1/auth/refresh"
LOGOUT = b"/api/v1/auth/logout"
LEEWAY_S = 10.0
EXCHANGE_S = 60.0
LOGIN = b"/api/v1/auth/login"
SESSION = b"/api/v1/auth/session"
SECRET = "s" * 32
CONTENT = (b"Content-Type", b"application/json")
SIGNED_IN = b'{"access_token": "good", "refresh_token": "r-1", "token_type": "bearer", "user": {"name": "Ana"}}'

_PUBLIC: dict[str, Any] = {"auth": False, "tenant": False, "auth_limit": True}
SIGNING = tuple(
    Route(
        prefix=f"/api/v1/auth/{name}", template=f"/api/v1/auth/{name}", kind="proxy", exact=True, service="auth",
        action=name, **more,  # type: ignore[arg-type]
    )
    for name, more in (("login", _PUBLIC), ("refresh", _PUBLIC), ("logout", {}), ("session", {}))
)  # fmt: skip


class FlakyRecords(MemoryRecords):
    """Records that may be away; `left` counts the calls that still pass before they are."""

    def __init__(self, now: Any) -> None:
        super().__init__(now)
        self.left: int | None = None
        self.late = False
        """Claims and replacements are made, but nobody hears of it in time."""
        self.puts: dict[str, float | None] = {}
        self.slow: Deferred[None] | None = None
        """What claims and replacements wait for, once they are done."""

    def _pass(self) -> None:
        if self.left is not None:
            if self.left <= 0:
                raise StoreUnavailable("away")
            self.left -= 1

    async def get(self, key: str) -> bytes | None:
        self._pass()
        return await super().get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
        self._pass()
        self.puts[key] = ttl_s
        await super().put(key, value, ttl_s=ttl_s)

    async def claim(self, key: str, value: bytes, *, ttl_s: float | None) -> bool:
        self._pass()
        claimed = await super().claim(key, value, ttl_s=ttl_s)
        if self.slow is not None:
            await self.slow
        if self.late:
            raise StoreUnavailable("no answer in time")
        return claimed

    async def replace(self, key: str, expected: bytes, value: bytes | None, *, ttl_s: float | None) -> bool:
        self._pass()
        replaced = await super().replace(key, expected, value, ttl_s=ttl_s)
        if self.slow is not None:
            await self.slow
        if self.late:
            raise StoreUnavailable("no answer in time")
        return replaced

    async def delete(self, key: str) -> None:
        self._pass()
        await super().delete(key)


class Revocations:
    """A `RevocationStore` that tells the stage's `Store`."""

    def __init__(self, told: dict[str, bool | None]) -> None:
        self.told, self.until = told, dict[str, float]()
        self.away = False

    async def revoke(self, digest: str, until_unix_s: float) -> None:
        self.told[digest] = True
        if self.away:
            raise StoreUnavailable("away")
        self.until[digest] = until_unix_s


class Browser:
    """Keeps the cookie of a session, and the token for writing."""

    def __init__(self, stage: "SigningStage", told: Any) -> None:
        self.stage, self.told = stage, told
        self.cookie = next(iter(told.headers.get(b"set-cookie", [])), b"").partition(b";")[0]
        self.csrf = json.loads(told.body).get("csrf_token", "").encode() if self.cookie else b""

    def ask(self, target: bytes, *lines: bytes, stage: "SigningStage | None" = None, **how: Any) -> Any:
        return (stage or self.stage).ask(target, b"Cookie: a=1; " + self.cookie, *lines, **how)

    def write(self, target: bytes, *lines: bytes, **how: Any) -> Any:
        return self.ask(target, b"X-CSRF-Token: " + self.csrf, *lines, **{"method": b"POST", **how})


class SigningStage(Stage):
    """`Stage` with the handlers of the auth service's routes. Time passes by `pass_s`."""

    def __init__(self, **policies: Any) -> None:
        plain = [route for route in ROUTES if route.prefix not in {its.prefix for its in SIGNING}]
        super().__init__(**{"router": Router((*SIGNING, *plain)), "auth_limit": STRICT, **policies})
        self.background = self.clock
        """What drives work that goes on after a request."""
        self.records = FlakyRecords(self.unix_s)
        self.revocations = Revocations(self.store.revoked)
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.spending = Spending(
            self.records, self.revocations, self.store, clock=self.clock, now=self.unix_s, leeway_s=LEEWAY_S
        )
        self.sessions: Any = None
        self.refreshing = Refreshing(
            Proxy(self.clock),
            self.spending,
            self.revocations,
            sessions=None,
            audit=self.audit,
            exchange_s=EXCHANGE_S,
            leeway_s=LEEWAY_S,
        )
        self.gateway.handlers = {"refresh": self.refreshing.refresh, "logout": self.refreshing.logout}
        self.passed = self.steady_s = 0.0
        self.services.response = response(200, body=b'{"access_token": "new"}')

    def with_sessions(
        self, other: "SigningStage | None" = None, *, secrets: Sequence[str] = (SECRET,)
    ) -> "SigningStage":
        """Turn cookie sessions on, over the shared state and the services of `other` if given."""
        if other is not None:
            self.records, self.store.revoked = other.records, other.store.revoked
            self.services, self.revocations = other.services, other.revocations
            self.spending = Spending(
                self.records, self.revocations, self.store, clock=self.background, now=self.unix_s, leeway_s=LEEWAY_S
            )
        self.sessions = Sessions(
            self.tokens,
            SessionSeal(secrets),
            self.records,
            revocations=self.revocations,
            spending=self.spending,
            renewal=Renewal(self.services, self.spending, self.background),
            origins=frozenset({b"https://app.example"}),
            now=self.unix_s,
            seconds=lambda: self.steady_s,
            leeway_s=LEEWAY_S,
            cache_ttl_s=900,
        )
        proxy = Proxy(self.clock)
        calls = SessionCalls(proxy, self.sessions)
        refreshing = Refreshing(
            proxy, self.spending, self.revocations, sessions=calls, audit=self.audit, exchange_s=EXCHANGE_S,
            leeway_s=LEEWAY_S,
        )  # fmt: skip
        self.gateway.policies = replace(
            self.policies,
            upstreams=self.services,
            credentials={"bearer": self.tokens, "session": self.sessions},
            sessions=self.sessions,
        )
        self.gateway.handlers = {
            "login": calls.login, "session": calls.session, "refresh": refreshing.refresh, "logout": refreshing.logout,
        }  # fmt: skip
        return self

    def sign_in(self, *lines: bytes, answer: bytes = SIGNED_IN) -> "Browser":
        """A browser that has signed in, if the answer gave it a session."""
        self.services.response = response(200, (CONTENT,), answer)
        told = self.ask(LOGIN, JSON, *lines, method=b"POST", body=b'{"email": "a@b"}')
        self.services.response = response(200)
        return Browser(self, told)

    def unix_s(self) -> float:
        return NOW + getattr(self, "passed", 0.0)

    def pass_s(self, seconds: float) -> None:
        self.passed += seconds
        self.steady_s += seconds

    def set_clock(self, ahead_s: float) -> None:
        """Set the wall clock so far ahead, or back."""
        self.passed += ahead_s

    def audit(self, event: str, **fields: object) -> None:
        self.audited.append((event, fields))

    def refresh(self, text: str = "abc") -> Any:
        return self.ask(REFRESH, JSON, method=b"POST", body=b'{"refresh_token": "%s"}' % text.encode())
