"""The admin port: who may call it, and what each call does."""

import hashlib
import hmac
import html
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Literal, Protocol

from bakerygw.admin.alerts import PATH as ALERTS
from bakerygw.admin.calls import Call, Handler, Table
from bakerygw.admin.fields import read_object
from bakerygw.core.claims import is_id
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.times import iso_time
from bakerygw.edge.pages.common import json_reply
from bakerygw.ports import Audit

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
OPEN_PATHS: Final = frozenset({"/metrics", "/health", "/live", "/ready"})
"""For Prometheus and probes, which come by address and carry no token."""

NO_STORE: Final = (b"Cache-Control", b"no-store")
WITH_ID: Final = re.compile(r"(/api/(?:tenants|keys)/)([^/]+)")
AUTHORITY: Final = re.compile(rb"(\[[0-9A-Za-z:.%]+\]|[^\[\]:@/\s]+)(?::(\d{0,5}))?")

STYLE: Final = "body{font:16px/1.5 sans-serif;margin:2rem}td{padding:.2rem 2rem .2rem 0;vertical-align:top}"
PAGE_POLICY: Final = (
    b"default-src 'none'; style-src 'sha256-"
    + b64encode(hashlib.sha256(STYLE.encode()).digest())
    + b"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class LifecycleView(Protocol):
    """The gateway's own life, as operators see and end it."""

    @property
    def state(self) -> Literal["starting", "running", "draining"]:
        """Where it is now."""

    def drain(self) -> None:
        """Begin to stop; returns at once."""


class LogLevel(Protocol):
    """The level below which log lines are dropped: DEBUG, INFO, WARNING or ERROR."""

    level: str
    """The level in force; assigning puts another in force at once."""


class AdminApp:
    """Answers the admin port's requests.

    All but `OPEN_PATHS` needs a `Host` named in `hosts`, no foreign `Origin`, and the bearer `token`; publishing alerts
    is open to `publish_token` too. `metrics` gives the exposition and its media type; `services`, `routes`, `config`
    and `connections` give what JSON can hold, secrets already masked; `tables` are further calls; `now` is Unix
    seconds. Raises `ValueError` for an empty token, which anyone could present, and for what is no host name.
    """

    def __init__(
        self,
        *,
        token: str,
        publish_token: str | None = None,
        hosts: Collection[str],
        metrics: Callable[[], tuple[bytes, str]],
        health: Callable[[], Reply],
        lifecycle: LifecycleView,
        services: Callable[[], object],
        routes: Callable[[], object],
        config: Callable[[], Mapping[str, object]],
        connections: Callable[[], object],
        log_level: LogLevel,
        tables: Iterable[Table],
        now: Callable[[], float],
        audit: Audit,
    ) -> None:
        if not token or publish_token == "":
            raise ValueError("the admin port's tokens must not be empty")
        self._token = token.encode()
        self._publish_token = publish_token.encode() if publish_token is not None else self._token
        self._hosts = frozenset(_configured_name(host) for host in hosts)
        self._metrics, self._health, self._lifecycle, self._log_level = metrics, health, lifecycle, log_level
        self._now, self._audit = now, audit
        self._calls: dict[str, Mapping[str, Call]] = {
            **self._process_calls(),
            "/api/services": {"GET": Call(says="The services and their state.", handler=_shown(services))},
            "/api/routes": {"GET": Call(says="The route table.", handler=_shown(routes))},
            "/api/config": {"GET": Call(says="The settings in force, secrets masked.", handler=_shown(config))},
            "/api/connections": {"GET": Call(says="Open connections.", handler=_shown(connections))},
        }
        for table in tables:
            self._calls |= table

    def _process_calls(self) -> Table:
        return {
            "/": {"GET": Call(says="This list.", handler=self._index)},
            "/metrics": {"GET": Call(says="Metrics for Prometheus; no token.", handler=self._show_metrics)},
            "/health": {"GET": Call(says="Health of the services and of Redis; no token.", handler=self._show_health)},
            "/live": {"GET": Call(says="The process is alive; no token.", handler=self._live)},
            "/ready": {"GET": Call(says="Whether it takes requests, else 503; no token.", handler=self._ready)},
            "/api/log-level": {
                "GET": Call(says="The log level.", handler=self._show_level),
                "PUT": Call(says='Set it: {"level": "DEBUG"}.', handler=self._set_level),
            },
            "/api/drain": {
                "POST": Call(says="Stop taking requests, finish those that run, exit.", handler=self._drain),
            },
        }

    async def reply_to(self, head: RequestHead, body: bytes) -> Reply:
        """The answer to one request; HEAD is answered as GET, its body is dropped on delivery. Raises `Refused`."""
        path = head.path.decode("latin-1")
        template, its_id = _template(path)
        if path not in OPEN_PATHS:
            self._authorise(head, template)
        call = _choose(self._calls.get(template), head.method)
        if its_id and not is_id(its_id):
            raise refuse("bad-request", "An id has 1 to 64 of the characters A-Z a-z 0-9 . _ -", field="id")
        if body and head.method not in ("GET", "HEAD"):
            _check_json(head)
        return await call.handler(head, body, its_id)

    def _authorise(self, head: RequestHead, template: str) -> None:
        try:
            self._check_host(head)
            _check_origin(head)
            self._check_token(head, template)
        except Refused as refusal:
            code = refusal.problem.code
            self._audit("admin.refused", client=head.client, method=head.method, code=code, when=iso_time(self._now()))
            raise

    def _check_host(self, head: RequestHead) -> None:
        """Refuse names that are not ours, or a page could reach this port under a name of its own (DNS rebinding)."""
        values = head.fields.get(b"host", ())
        if len(values) != 1 or _host_name(values[0]) not in self._hosts:
            detail = "This host name is not accepted on the admin port; add it to ADMIN_HOSTS to use it."
            raise refuse("origin-forbidden", detail, reason="admin-host")

    def _check_token(self, head: RequestHead, template: str) -> None:
        values = head.fields.get(b"authorization", ())
        name = "PUBLISH_TOKEN" if template == ALERTS else "ADMIN_TOKEN"
        if not values:
            raise refuse("token-missing", f"Send the token: `Authorization: Bearer <{name}>`.")
        scheme, _, presented = values[0].partition(b" ")
        matches = hmac.compare_digest(presented.strip(b" "), self._token)
        if template == ALERTS:
            matches |= hmac.compare_digest(presented.strip(b" "), self._publish_token)
        if len(values) != 1 or scheme.lower() != b"bearer" or not matches:
            raise refuse("token-invalid", f"This is not the gateway's {name}.", reason="admin-token")

    async def _index(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        rows = [(method, path, call.says) for path, calls in self._calls.items() for method, call in calls.items()]
        if b"text/html" in (head.first(b"accept") or b"").lower():
            return _page(rows)
        calls = [{"method": method, "path": path, "does": says} for method, path, says in rows]
        return json_reply({"name": "bakerygw admin", "calls": calls}, headers=((b"Vary", b"Accept"),))

    async def _show_metrics(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        exposition, media_type = self._metrics()
        return Reply(status=200, headers=((b"Content-Type", media_type.encode()), NO_STORE), body=exposition)

    async def _show_health(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        return self._health()

    async def _live(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        return json_reply({"status": "alive"})

    async def _ready(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        state = self._lifecycle.state
        return json_reply({"status": state}, status=200 if state == "running" else 503)

    async def _show_level(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        return json_reply({"level": self._log_level.level})

    async def _set_level(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        level = read_object(body, ("level",)).get("level")
        if level not in LEVELS:
            raise refuse("bad-request", f"level must be one of {', '.join(LEVELS)}.", field="level")
        before = self._log_level.level
        self._log_level.level = str(level)
        self._changed("admin.log_level.set", head, before=before, after=level)
        return json_reply({"level": level})

    async def _drain(self, head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        read_object(body, ())
        before = self._lifecycle.state
        if before != "draining":
            self._lifecycle.drain()
        self._changed("admin.drain", head, before=before, after="draining")
        return json_reply({"status": "draining"}, status=202)

    def _changed(self, event: str, head: RequestHead, *, before: object, after: object) -> None:
        when = iso_time(self._now())
        self._audit(event, who="admin", client=head.client, when=when, before=before, after=after, outcome="done")


def _shown(source: Callable[[], object]) -> Handler:
    async def show(head: RequestHead, body: bytes, tenant_id: str) -> Reply:
        return json_reply(source())

    return show


def _template(path: str) -> tuple[str, str]:
    """The path with the id of a tenant or a key taken out of it, and that id."""
    found = WITH_ID.match(path)
    return (f"{found[1]}{{id}}{path[found.end() :]}", found[2]) if found else (path, "")


def _choose(calls: Mapping[str, Call] | None, method: str) -> Call:
    if calls is None:
        raise refuse("not-found", "The admin port has no such call; GET / lists all.")
    call = calls.get("GET" if method == "HEAD" else method)
    if call is None:
        allowed = ", ".join([*calls, "HEAD"] if "GET" in calls else calls)
        detail = f"Use {allowed} here."
        raise Refused(Problem(code="method-not-allowed", detail=detail, headers=((b"Allow", allowed.encode()),)))
    return call


def _host_name(authority: bytes) -> bytes | None:
    """The name in `host[:port]` or `[v6][:port]`, lower case, brackets and a trailing dot left out."""
    found = AUTHORITY.fullmatch(authority.strip())
    return found[1].lower().strip(b"[]").removesuffix(b".") if found else None


def _configured_name(host: str) -> bytes:
    bare_v6 = host.count(":") > 1 and not host.startswith("[")
    name = _host_name(f"[{host}]".encode() if bare_v6 else host.encode())
    if name is None:
        raise ValueError(f"not a host name: {host!r}")
    return name


def _check_origin(head: RequestHead) -> None:
    """Refuse requests that a page of another origin (RFC 6454) made the browser send; `null` is such an origin."""
    scheme, default_port = (b"https", b":443") if head.secure else (b"http", b":80")
    host = (head.first(b"host") or b"").strip().lower().removesuffix(default_port)
    for origin in head.fields.get(b"origin", ()):
        if origin.lower().removesuffix(default_port) != scheme + b"://" + host:
            raise refuse("origin-forbidden", "The admin port takes no calls from other origins.", reason="admin-origin")


def _check_json(head: RequestHead) -> None:
    """Refuse media types that an HTML form can send, so that no page can make a browser change anything."""
    media_type = (head.first(b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise refuse("bad-request", "Send the body with Content-Type: application/json.", field="Content-Type")


def _page(rows: list[tuple[str, str, str]]) -> Reply:
    cells = "".join(
        f"<tr><td><code>{html.escape(method)} {html.escape(path)}</code></td><td>{html.escape(says)}</td></tr>\n"
        for method, path, says in rows
    )
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>bakerygw admin</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>bakerygw: admin port</h1>\n<table>\n{cells}</table></body></html>\n"
    )
    headers = ((b"Content-Type", b"text/html; charset=utf-8"), (b"Content-Security-Policy", PAGE_POLICY))
    return Reply(status=200, headers=(*headers, (b"Vary", b"Accept"), NO_STORE), body=text.encode())
