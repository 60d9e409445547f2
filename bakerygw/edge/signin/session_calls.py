"""The calls by which a browser's page begins its session, asks about it, renews and ends it."""

import json
from dataclasses import replace
from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.cookies import set_cookie
from bakerygw.core.forwarding import SESSION_COOKIE
from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.routing import Route
from bakerygw.core.sessions import MAX_ANSWER_BYTES, headers_without_tokens, object_in, tokens_in, without_tokens
from bakerygw.edge.admission import RETRY_AFTER_STATE_S, Grant, state_unavailable
from bakerygw.edge.body import collect
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.signin.sessions import Sessions
from bakerygw.ports import CredentialsUnavailable, StoreUnavailable
from bakerygw.runtime.gathering import NotWhole, gather
from bakerygw.runtime.shield import shielded

MAX_LOGIN_BYTES: Final = 64 * 1024
_JSON: Final = (b"Content-Type", b"application/json")
_NO_STORE: Final = (b"Cache-Control", b"no-store")
_OF_THE_BODY: Final = frozenset({b"content-type", b"content-encoding"})


class SessionCalls:
    """Handles `login` and `session`, and what refreshing and signing out mean for a session."""

    def __init__(self, proxy: Proxy, sessions: Sessions) -> None:
        self._proxy, self._sessions = proxy, sessions

    async def login(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The service's answer; where it gives tokens, they stay here, and the client gets a cookie in their place.

        Any answer that is not 2xx with a JSON object of good tokens passes as it is. Raises `Refused`: csrf,
        origin-forbidden for pages of other sites, which would sign users in as somebody else; upstream-invalid for
        an answer that is too long to look for tokens in; state-unavailable.
        """
        head = exchange.head
        self._sessions.check_origin(head)
        body = await collect(exchange.body, min(MAX_LOGIN_BYTES, route.max_body or MAX_LOGIN_BYTES))
        reply = await self._proxy.send(
            _without(head, frozenset({b"accept-encoding"})), body, route=route, grant=grant, policies=policies,
            trace=trace,
        )  # fmt: skip
        if not 200 <= reply.status < 300 or isinstance(reply.body, bytes):
            return reply
        text = await gather(reply.body, MAX_ANSWER_BYTES)
        if isinstance(text, NotWhole):
            raise Refused(Problem(code="upstream-invalid", detail="The service's answer is cut or too long."))
        return await self._begun(head, reply.with_body(text), text)

    async def session(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """What a page has to know of its session after it was loaded anew; for other callers the service's answer."""
        caller, claims = grant.caller, grant.claims
        if caller is None or claims is None or claims.forwarded is None:
            return await self._proxy.reply_to(exchange, route, grant, policies, trace)
        return self._told(caller.secret, claims)

    async def renewed(self, exchange: Exchange, policies: Policies, trace: Trace) -> Reply | None:
        """The answer to a request that refreshes its session; `None` if there is none in it."""
        head = exchange.head
        session_id = self._sessions.presented(head) if b"authorization" not in head.fields else None
        if session_id is None:
            return None
        try:
            claims = await self._sessions.renew(session_id)
        except StoreUnavailable:
            raise state_unavailable("session") from None
        trace.user_id, trace.tenant_id = claims.user_id, claims.tenant_id
        return self._told(session_id, claims)

    async def sign_out(self, head: RequestHead, session_id: bytes) -> tuple[RequestHead, bytes]:
        """Head and body that tell the auth service which refresh token to end. Raises `Refused` state-unavailable."""
        try:
            refresh = await self._sessions.refresh_of(session_id)
        except StoreUnavailable:
            raise state_unavailable("session") from None
        told = {} if refresh is None else {"refresh_token": refresh.text}
        plain = _without(head, _OF_THE_BODY)
        return replace(plain, headers=(*plain.headers, _JSON)), json.dumps(told).encode()

    async def end(self, session_id: bytes) -> None:
        """Have the session and its tokens work no more, anywhere. Raises `StoreUnavailable`."""
        await self._sessions.end(session_id)

    async def _begun(self, head: RequestHead, reply: Reply, text: bytes) -> Reply:
        document = object_in(text)
        tokens = tokens_in(document) if document is not None else None
        if document is None or tokens is None:
            return reply
        try:
            old = self._sessions.id_of(head)
        except Refused:
            old = None  # what is no session of ours can't be in the way
        try:
            session_id = await shielded(self._sessions.begin(tokens, old))
        except (StoreUnavailable, CredentialsUnavailable):
            raise _not_kept() from None
        if session_id is None:
            return reply
        secrets = (tokens.access, *((tokens.refresh,) if tokens.refresh else ()))
        shown = without_tokens(document, secrets)
        assert isinstance(shown, dict)  # noqa: S101  as `document` is
        shown["csrf_token"] = self._sessions.csrf_token(session_id)
        headers = tuple(
            pair for pair in headers_without_tokens(reply.headers, secrets) if pair[0].lower() != b"content-type"
        )
        return Reply(
            status=reply.status,
            headers=(*headers, _JSON, _NO_STORE, set_cookie(SESSION_COOKIE, session_id)),
            body=json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace"),
        )

    def _told(self, session_id: bytes, claims: Claims) -> Reply:
        told = {
            "csrf_token": self._sessions.csrf_token(session_id),
            "user_id": claims.user_id,
            "tenant_id": claims.tenant_id,
        }
        return Reply(status=200, headers=(_JSON, _NO_STORE), body=json.dumps(told).encode())


def _without(head: RequestHead, names: frozenset[bytes]) -> RequestHead:
    """The head less the fields of these lower-case names, for a service to see."""
    return replace(
        head,
        headers=tuple(pair for pair in head.headers if pair[0].lower() not in names),
        fields={name: values for name, values in head.fields.items() if name not in names},
    )


def _not_kept() -> Refused:
    return Refused(
        Problem(
            code="state-unavailable",
            detail="The sign-in was right, but its session can't be kept at the moment; sign in again shortly.",
            retry_after_s=RETRY_AFTER_STATE_S,
            reason="session",
        )
    )
