"""The calls of the auth service beside which the gateway acts itself: refreshing and signing out."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.cookies import set_cookie
from bakerygw.core.forwarding import SESSION_COOKIE
from bakerygw.core.http import WRITING_METHODS, Pairs, Reply, RequestHead
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.refresh_tokens import MAX_BODY_BYTES, RefreshToken, token_of_request
from bakerygw.core.routing import Route
from bakerygw.edge.admission import RETRY_AFTER_STATE_S, Grant, state_unavailable
from bakerygw.edge.body import collect
from bakerygw.edge.body_sources import WatchedBody
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.signin.spending import UNKNOWN_S, Spending, Standing, Use
from bakerygw.ports import Audit, RevocationStore, StoreUnavailable
from bakerygw.runtime.shield import shielded

_REUSED: Final[dict[Standing, str]] = {
    "spent": "This refresh token was used before, and each works once; sign in again.",
    "revoked": "This refresh token was put out of force when its user signed out; sign in again.",
    "busy": "This refresh token is being used at this moment by another request; take the tokens which that one gets.",
    "unknown": "The last use of this refresh token ended without a clear answer; try again in some seconds.",
}


class SessionCalls(Protocol):
    """What refreshing and signing out need of cookie sessions."""

    async def renewed(self, exchange: Exchange, policies: Policies, trace: Trace) -> Reply | None:
        """The answer to a request that refreshes its session; `None` if there is none in it."""

    async def sign_out(self, head: RequestHead, session_id: bytes) -> tuple[RequestHead, bytes]:
        """Head and body that tell the auth service which refresh token to end. Raises `Refused` state-unavailable."""

    async def end(self, session_id: bytes) -> None:
        """Have the session and its tokens work no more, anywhere. Raises `StoreUnavailable`."""


class Refreshing:
    """Handles `refresh` and `logout`."""

    def __init__(
        self,
        proxy: Proxy,
        spending: Spending,
        revocations: RevocationStore,
        *,
        sessions: SessionCalls | None,
        audit: Audit,
        exchange_s: float,
        leeway_s: float,
    ) -> None:
        """`exchange_s` is longer than any exchange with the auth service may take."""
        self._proxy, self._spending, self._revocations = proxy, spending, revocations
        self._sessions, self._audit = sessions, audit
        self._exchange_s, self._leeway_s = exchange_s, leeway_s

    async def refresh(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The service's answer to the one use that a refresh token has.

        A token counts as used unless the service answers 4xx, or could not be asked at all; where nobody knows, for
        some seconds. Raises `Refused`: bad-request, token-revoked, state-unavailable, and what proxying raises.
        """
        head = exchange.head
        body = await collect(exchange.body, MAX_BODY_BYTES)
        token = token_of_request(head, body)
        if token is None and (body or b"authorization" in head.fields or b"cookie" in head.fields):
            return await self._without_token(exchange, policies, trace)
        if token is None:  # there is nothing that the service could take for one
            return await self._proxy.send(head, body, route=route, grant=grant, policies=policies, trace=trace)
        use = await self._begin(token, route, trace)
        try:
            reply = await self._proxy.send(head, body, route=route, grant=grant, policies=policies, trace=trace)
        except Exception as error:  # cancelled, too: what became of the request is then not known
            spared = isinstance(error, Refused) and error.problem.code == "service-unavailable"
            await shielded(use.released() if spared else use.unknown())
            raise
        return await _settled(use, reply)

    async def logout(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The service's answer; where that is a success, the tokens of the request are out of force everywhere.

        Who closes the page meanwhile is signed out all the same. Raises `Refused`: state-unavailable if that could not
        be told to the other instances, method-not-allowed for a session that is to end without a write; and what
        proxying raises.
        """
        head, session_id = exchange.head, _session_of(grant)
        if session_id is not None and head.method not in WRITING_METHODS:
            # It would need no proof that a page of ours has sent it.
            detail = "Sign out of a session by POST."
            raise Refused(Problem(code="method-not-allowed", detail=detail, headers=((b"Allow", b"POST"),)))
        body = await collect(exchange.body, MAX_BODY_BYTES)
        try:
            token = token_of_request(head, body)
        except Refused:
            token = None  # whatever it is, the service has to make of it what it can
        if session_id is not None and self._sessions is not None:
            head, body = await self._sessions.sign_out(head, session_id)
        sending = self._proxy.send(head, body, route=route, grant=grant, policies=policies, trace=trace)
        return await shielded(self._signed_out(sending, grant, token, trace), _stop)

    async def _signed_out(
        self, sending: Coroutine[Deferred[Any], Any, Reply], grant: Grant, token: RefreshToken | None, trace: Trace
    ) -> Reply:
        reply = await sending
        if 200 <= reply.status < 300:
            taken = (set_cookie(SESSION_COOKIE, b""),) if _session_of(grant) is not None else ()
            await self._in_force(reply, partial(self._end, grant, token), taken)
            self._audit(
                "auth.logout",
                user_id=trace.user_id,
                tenant_id=trace.tenant_id,
                client=trace.client,
                request_id=trace.request_id,
            )
            reply = reply.with_headers(taken)
        return reply

    async def _without_token(self, exchange: Exchange, policies: Policies, trace: Trace) -> Reply:
        reply = await self._sessions.renewed(exchange, policies, trace) if self._sessions is not None else None
        if reply is None:
            detail = "Send the refresh token as the member 'refresh_token' of a JSON object."
            raise refuse("bad-request", detail, reason="refresh-without-token")
        return reply

    async def _begin(self, token: RefreshToken, route: Route, trace: Trace) -> Use:
        for_s = self._exchange_s + (route.first_byte_timeout_s or 0.0)
        try:
            use = await self._spending.begin(token, for_s)
        except StoreUnavailable:
            raise state_unavailable("refresh") from None
        if isinstance(use, Use):
            return use
        # What a token says of itself was true if the service once took it.
        user_id = token.user_id if use in ("spent", "revoked") else None
        told = {"digest": token.digest[:16], "client": trace.client, "code": "token-revoked", "state": use}
        self._audit("refresh.reused", user_id=user_id, request_id=trace.request_id, **told)
        raise Refused(
            Problem(
                code="token-revoked",
                detail=_REUSED[use],
                reason=f"refresh-{use}",
                retry_after_s=int(UNKNOWN_S) if use in ("busy", "unknown") else None,
            )
        )

    async def _in_force(
        self, reply: Reply, end: Callable[[], Coroutine[Deferred[Any], Any, None]], taken: Pairs
    ) -> None:
        """Wait until a sign-out holds everywhere; `taken` takes the cookie away, if it was by a cookie.

        Raises `Refused` state-unavailable in place of the service's reply; it is then tried again and again.
        """
        try:
            await end()
        except StoreUnavailable:
            self._spending.insist(end)
            _stop(reply)
            raise Refused(
                Problem(
                    code="state-unavailable",
                    detail="The service has signed you out, but that does not hold everywhere yet; forget your tokens.",
                    headers=taken,
                    retry_after_s=RETRY_AFTER_STATE_S,
                    reason="logout",
                )
            ) from None

    async def _end(self, grant: Grant, token: RefreshToken | None) -> None:
        claims, session_id = grant.claims, _session_of(grant)
        if session_id is not None and self._sessions is not None:
            await self._sessions.end(session_id)
        elif claims is not None and claims.key is None:  # an API key is no token of a sign-in
            await self._revocations.revoke(claims.digest, claims.exp + self._leeway_s)
        if token is not None:
            await self._spending.revoke(token)


def _session_of(grant: Grant) -> bytes | None:
    """The id of the session by which the caller came, if it is one."""
    caller = grant.caller
    return caller.secret if caller is not None and caller.scheme == "session" else None


async def _settled(use: Use, reply: Reply) -> Reply:
    """The reply, once its token stands as it has to."""
    if reply.status >= 500:
        ending = use.unknown()
    elif reply.status >= 400:
        ending = use.released()
    else:
        # Who leaves before the end of the answer has used the token; if the service cuts it, nobody knows.
        ending = use.spent()
    try:
        await shielded(ending)
    except CancelledError:
        _stop(reply)
        raise
    if reply.status >= 400 or isinstance(reply.body, bytes):
        return reply
    return Reply(
        status=reply.status,
        headers=reply.headers,
        body=WatchedBody(reply.body, use.cut),
        length=reply.length,
        close=reply.close,
    )


def _stop(reply: Reply) -> None:
    """Nobody reads its body."""
    if not isinstance(reply.body, bytes):
        reply.body.stop()
