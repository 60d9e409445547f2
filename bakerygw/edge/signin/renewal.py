"""The access token of a session renewed once, however many requests on however many instances need it."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import ClassVar, Final, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.claims import Claims
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.sessions import MAX_ANSWER_BYTES, Session, Tokens, ended, object_in, tokens_in
from bakerygw.edge.body_sources import HeldBody
from bakerygw.edge.proxy import RETRY_AFTER_SERVICE_S, VIA
from bakerygw.edge.signin.spending import UNKNOWN_S, Spending, Use
from bakerygw.ports import CredentialsUnavailable, StoreUnavailable, UpstreamFailed, UpstreamRequest, Upstreams
from bakerygw.runtime.gathering import NotWhole, gather
from bakerygw.runtime.task import Task

SERVICE: Final = "auth"
TARGET: Final = b"/api/v1/auth/refresh"
EXCHANGE_S: Final = 10.0
"""How long the auth service may take in all."""
CLAIM_S: Final = 30.0
"""How long an instance that dies meanwhile keeps the others from trying: longer than asking and writing may take."""
WAIT_S: Final = 13.0
"""How long a request waits for a renewal on another instance: as long as one may take, the writing included."""
LOST_S: Final = 2.5
"""How long after a refresh token was used its record may be the old one, before the new tokens count as lost."""
POLL_S: Final = 0.1
"""How soon it looks for the first time; it takes longer and longer, up to `MAX_POLL_S`."""
MAX_POLL_S: Final = 0.5
WRITE_AGAIN_S: Final[tuple[float, ...]] = (0.0, 0.1, 0.4, 1.5)
"""Pauses before the attempts to keep new tokens for which requests wait; it goes on without them."""
_NOT_NOW: Final = frozenset({408, 425, 429})
"""Refusals of a moment, not of a token (RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4)."""

Outcome = Claims | Problem | None
"""`None`: the shared state could not be asked."""


class Book(Protocol):
    """Where the sessions are. Each call but `claims_of` may raise `StoreUnavailable`."""

    async def read(self, session_id: bytes) -> tuple[bytes, Session] | None:
        """The record as it lies there, and what it holds."""

    async def fresh(self, session_id: bytes, session: Session) -> Claims | None:
        """Its claims, from here on known, if its access token is good."""

    async def claims_of(self, access: str) -> Claims | None:
        """The claims of an access token that is good."""

    async def replace(self, session_id: bytes, sealed: bytes, tokens: Tokens, claims: Claims) -> Claims | None:
        """Put new tokens in the place of those in `sealed`; `None` if something else lies there by now."""

    async def drop(self, session_id: bytes, sealed: bytes) -> None:
        """Its tokens can't be renewed any more."""


class Renewal:
    """Renews sessions at the auth service. The one use that a refresh token has is what only one instance gets."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, upstreams: Upstreams, spending: Spending, clock: IReactorTime) -> None:
        self._upstreams, self._spending, self._clock = upstreams, spending, clock
        self._waiting: dict[bytes, list[Deferred[Outcome]]] = {}

    async def of(self, session_id: bytes, book: Book, *, forced: bool = False) -> Claims:
        """The claims of this session's access token, a new one if the old has ended or it is `forced`.

        Raises `Refused` token-expired when the session can't go on, service-unavailable when the auth service does
        not answer; `StoreUnavailable`. A request that is given up ends no renewal.
        """
        mine: Deferred[Outcome] = Deferred()
        others = self._waiting.get(session_id)
        if others is not None:
            others.append(mine)
        else:
            self._waiting[session_id] = [mine]
            Task(self._run(session_id, book, forced), self._failed)
        outcome = await mine
        if isinstance(outcome, Problem):
            raise Refused(outcome)
        if outcome is None:
            raise StoreUnavailable("session")
        return outcome

    async def _run(self, session_id: bytes, book: Book, forced: bool) -> None:
        outcome: Outcome = None
        try:
            outcome = await self._renewed(session_id, book, forced)
        except Refused as refused:
            outcome = refused.problem
        except (StoreUnavailable, CredentialsUnavailable):
            outcome = None
        except Exception:
            self._log.failure("session.renewal_failed")
        for waiting in self._waiting.pop(session_id):
            waiting.callback(outcome)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("session.renewal_failed", failure)

    async def _renewed(self, session_id: bytes, book: Book, forced: bool) -> Claims:
        deadline = self._clock.seconds() + WAIT_S
        before: bytes | None = None
        lost_at, pause_s = inf, POLL_S
        while True:
            found = await book.read(session_id)
            if found is None:
                raise ended("token-invalid", "session-unknown")
            sealed, session = found
            if sealed != before and not (forced and before is None):
                claims = await book.fresh(session_id, session)
                if claims is not None:
                    return claims
            if sealed != before:
                before, lost_at = sealed, inf
            if session.refresh is None:
                raise await self._over(session_id, sealed, book, "session-without-refresh")
            use = await self._spending.begin(session.refresh, CLAIM_S)
            if isinstance(use, Use):
                return await self._exchanged(session_id, sealed, session, use=use, book=book)
            if use == "revoked":
                raise await self._over(session_id, sealed, book, "session-revoked")
            if use == "unknown":
                raise _unavailable(int(UNKNOWN_S), "session-renewal-unknown")
            now = self._clock.seconds()
            if use == "spent":
                # Maybe only since the record was read; so it is over when it still lies there a good while later.
                lost_at = min(lost_at, now + LOST_S)
                if now >= lost_at:
                    raise await self._over(session_id, sealed, book, "session-lost")
            elif now >= deadline:
                raise _unavailable(RETRY_AFTER_SERVICE_S, "session-renewal-busy")
            await deferLater(self._clock, pause_s)
            pause_s = min(1.5 * pause_s, MAX_POLL_S)

    async def _exchanged(self, session_id: bytes, sealed: bytes, session: Session, *, use: Use, book: Book) -> Claims:
        asking: Deferred[tuple[int, bytes | None]] = Deferred.fromCoroutine(self._ask(session))
        asking.addTimeout(EXCHANGE_S, self._clock)
        try:
            status, text = await asking
        except (UpstreamFailed, TimeoutError) as failed:
            spared = isinstance(failed, UpstreamFailed) and failed.code == "service-unavailable"
            await (use.released() if spared else use.unknown())
            pause_s = RETRY_AFTER_SERVICE_S if spared else int(UNKNOWN_S)
            raise _unavailable(pause_s, "session-renewal-failed") from None
        if 400 <= status < 500:
            if status in _NOT_NOW:
                await use.unknown()  # the token is good, but who asks to be left in peace is
                raise _unavailable(int(UNKNOWN_S), f"session-renewal-{status}")
            await use.released()
            raise await self._over(session_id, sealed, book, f"session-renewal-{status}")
        tokens = _tokens(text, session) if 200 <= status < 300 and text is not None else None
        try:
            claims = await book.claims_of(tokens.access) if tokens is not None else None
        except CredentialsUnavailable:
            claims = None
        if tokens is None or claims is None or claims.user_id != session.user_id:
            await use.unknown()
            raise _unavailable(int(UNKNOWN_S), f"session-renewal-{status}")
        try:
            kept = await self._kept(session_id, sealed, tokens, claims, book=book)
        except StoreUnavailable:
            # Nothing could bring them back. The claim stays meanwhile, so that nobody takes them for lost.
            put = partial(self._put, session_id, sealed, tokens, claims, book=book)
            self._spending.insist(partial(_put_and_settled, put, partial(_settled, use, session, tokens)))
            raise
        await _settled(use, session, tokens)
        if kept is None:
            raise ended("token-invalid", "session-ended-meanwhile")
        return kept

    async def _ask(self, session: Session) -> tuple[int, bytes | None]:
        """Status and body of the auth service's answer; no body if it is too long or was cut."""
        refresh = session.refresh.text if session.refresh is not None else ""
        response = await self._upstreams.request(
            SERVICE,
            UpstreamRequest(
                method="POST",
                target=TARGET,
                headers=(
                    (b"Content-Type", b"application/json"),
                    (b"Accept", b"application/json"),
                    (b"Accept-Encoding", b"identity"),
                    (b"User-Agent", b"bakerygw"),
                    (b"Via", VIA),
                ),
                body=HeldBody(json.dumps({"refresh_token": refresh}).encode()),
                first_byte_timeout_s=EXCHANGE_S,
            ),
        )
        text = await gather(response.body, MAX_ANSWER_BYTES)
        return response.status, None if isinstance(text, NotWhole) else text

    async def _kept(
        self, session_id: bytes, sealed: bytes, tokens: Tokens, claims: Claims, *, book: Book
    ) -> Claims | None:
        for pause_s in WRITE_AGAIN_S:
            if pause_s:
                await deferLater(self._clock, pause_s)
            try:
                return await self._put(session_id, sealed, tokens, claims, book=book)
            except StoreUnavailable:
                continue
        raise StoreUnavailable("session")

    async def _put(
        self, session_id: bytes, sealed: bytes, tokens: Tokens, claims: Claims, *, book: Book
    ) -> Claims | None:
        """The claims, once these tokens lie there; `None` if something else does. Raises `StoreUnavailable`."""
        kept = await book.replace(session_id, sealed, tokens, claims)
        if kept is not None:
            return kept
        # An attempt that has seemed to fail may have been carried out.
        found = await book.read(session_id)
        return (
            await book.fresh(session_id, found[1]) if found is not None and found[1].access == tokens.access else None
        )

    async def _over(self, session_id: bytes, sealed: bytes, book: Book, reason: str) -> Refused:
        await book.drop(session_id, sealed)
        return ended("token-expired", reason)


def _tokens(text: bytes, session: Session) -> Tokens | None:
    """The tokens of the answer; without a new refresh token the old one goes on (RFC 6749 6)."""
    document = object_in(text)
    tokens = tokens_in(document) if document is not None else None
    if tokens is None or tokens.refresh is not None or session.refresh is None:
        return tokens
    return Tokens(access=tokens.access, refresh=session.refresh.text)


async def _settled(use: Use, session: Session, tokens: Tokens) -> None:
    """The refresh token is used up, unless the service has left it in force."""
    same = session.refresh is not None and tokens.refresh == session.refresh.text
    await (use.released() if same else use.spent())


async def _put_and_settled(put: Callable[[], Awaitable[object]], settled: Callable[[], Awaitable[None]]) -> None:
    await put()
    await settled()


def _unavailable(retry_s: int, reason: str) -> Refused:
    return Refused(
        Problem(
            code="service-unavailable",
            detail="The session has to be renewed and the auth service does not do it now; it is kept, try again.",
            retry_after_s=retry_s,
            reason=reason,
        )
    )
