"""Sessions of browsers: a cookie that says nothing, and the tokens behind it, sealed in the shared state."""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from secrets import token_urlsafe
from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.cookies import cookie_values
from bakerygw.core.forwarding import SESSION_COOKIE
from bakerygw.core.http import WRITING_METHODS, RequestHead
from bakerygw.core.origins import check_origin
from bakerygw.core.problem import refuse
from bakerygw.core.recent import Recent
from bakerygw.core.refresh_tokens import OPAQUE_S, RefreshToken, refresh_token
from bakerygw.core.sessions import Session, Tokens, digest_of, ended, session_from, signer_of
from bakerygw.edge.signin.renewal import Renewal
from bakerygw.edge.signin.spending import Spending
from bakerygw.ports import (
    Credentials,
    CredentialsUnavailable,
    Records,
    RevocationStore,
    SessionSealer,
    StoreUnavailable,
    TokenRefused,
)

IDLE_S: Final = 7 * 86_400.0
"""A session that was not renewed for so long has ended; one in use is with each access token."""
ID_BYTES: Final = 32
_ID: Final = re.compile(rb"[A-Za-z0-9_-]{43}")


class Sessions:
    """`Credentials` for the cookie, and the beginning, renewal and end of sessions.

    A record is found by the SHA-256 of the session's id, so who reads the shared state can't use one. The claims of a
    session have that digest as theirs: what is revoked is the session. `now` gives Unix seconds, `seconds` those of a
    monotonic clock.
    """

    def __init__(
        self,
        bearer: Credentials,
        sealer: SessionSealer,
        records: Records,
        *,
        revocations: RevocationStore,
        spending: Spending,
        renewal: Renewal,
        origins: Collection[bytes],
        now: Callable[[], float],
        seconds: Callable[[], float],
        leeway_s: float,
        cache_ttl_s: float,
        cache_size: int = 10_000,
    ) -> None:
        """`origins` are those of pages that may use a session besides the gateway's own."""
        self._bearer, self._sealer, self._records = bearer, sealer, records
        self._revocations, self._spending, self._renewal = revocations, spending, renewal
        self._origins = frozenset(origins) - {b"*"}
        self._now, self._seconds, self._leeway_s, self._ttl_s = now, seconds, leeway_s, cache_ttl_s
        self._good: Recent[str, tuple[float, Claims]] = Recent(cache_size)
        """Until when, by the monotonic clock; the token's own end is the bearer's affair."""

    def signers(self, of_tokens: Collection[bytes]) -> Collection[bytes]:
        """One of which `Claims.signer` is of every session in force, where it is one of these for access tokens."""
        return {signer_of(token, seal) for token in of_tokens for seal in self._sealer.thumbprints}

    # what a request presents

    def presented(self, head: RequestHead) -> bytes | None:
        """The id in the request's cookie, if it has one; a request that writes must have come from a page of ours.

        Raises `Refused`: token-invalid for a cookie that is none of ours; csrf, origin-forbidden.
        """
        session_id = self.id_of(head)
        if session_id is not None and head.method in WRITING_METHODS:
            check_origin(head, self._origins)
            tokens = head.fields.get(b"x-csrf-token", ())
            if len(tokens) != 1 or not self._sealer.csrf_good(session_id, tokens[0]):
                detail = "Send the session's csrf_token as X-CSRF-Token; GET /api/v1/auth/session tells it."
                raise refuse("csrf", detail, reason="csrf-token" if tokens else "no-csrf-token")
        return session_id

    def id_of(self, head: RequestHead) -> bytes | None:
        """The id in the request's cookie. Raises `Refused` token-invalid for what can be none, and for two."""
        ids = cookie_values(head, SESSION_COOKIE)
        if not ids:
            return None
        if len(ids) > 1 or _ID.fullmatch(ids[0]) is None:
            raise ended("token-invalid", "session-cookie")
        return ids[0]

    def check_origin(self, head: RequestHead) -> None:
        """Refuse a request from a page of another site. Raises `Refused`: csrf, origin-forbidden."""
        check_origin(head, self._origins)

    def csrf_token(self, session_id: bytes) -> str:
        """What writes of this session have to send as `X-CSRF-Token`."""
        return self._sealer.csrf_token(session_id)

    # Credentials

    def known(self, secret: bytes) -> Claims | None:
        """Claims of a session whose access token this instance has verified, while that lasts.

        The token must be known, too: whatever made it be forgotten, such as a key that was taken away, ends this.
        """
        digest = digest_of(secret)
        entry = self._good.use(digest)
        if entry is None:
            return None
        until, claims = entry
        if self._seconds() >= until or self._bearer.known(claims.forwarded or b"") is None:
            self._good.drop(digest)
            return None
        return claims

    def peek(self, secret: bytes) -> Claims | None:
        """A cookie says nothing of itself."""
        return None

    async def verify(self, secret: bytes) -> Claims:
        """Claims of a session, its access token renewed if it has ended.

        Raises `Refused` token-invalid, token-expired, service-unavailable; `StoreUnavailable`.
        """
        session = await self._read(secret)
        if session is None:
            raise ended("token-invalid", "session-unknown")
        claims = await self.claims_of(session.access)
        if claims is None:
            return await self._renewal.of(secret, self)
        return self._remember(secret, session, claims)

    async def renewed_elsewhere(self, session_id: bytes, claims: Claims) -> bool:
        """Whether its tokens are others than those of `claims`, known here; the others are known from here on."""
        try:
            session = await self._read(session_id)
            if session is None or session.access.encode() == claims.forwarded:
                return False
            return await self.fresh(session_id, session) is not None
        except (StoreUnavailable, CredentialsUnavailable):
            return False

    # the life of a session

    async def begin(self, tokens: Tokens, old: bytes | None) -> bytes | None:
        """The id of a new session over these tokens; `None` if the access token is not good.

        It takes the place of `old`. Raises `StoreUnavailable`.
        """
        claims = await self.claims_of(tokens.access)
        if claims is None:
            return None
        session_id = token_urlsafe(ID_BYTES).encode("ascii")
        session = self._session(tokens, claims)
        await self._records.put(_key(session_id), self._sealed(session_id, session), ttl_s=self._life_s(session))
        if old is not None:
            await self.end(old)
        return session_id

    async def renew(self, session_id: bytes) -> Claims:
        """Have its tokens renewed though the access token may be good. Raises as `verify`."""
        return await self._renewal.of(session_id, self, forced=True)

    async def refresh_of(self, session_id: bytes) -> RefreshToken | None:
        """The refresh token behind it, for the auth service to end. Raises `StoreUnavailable`."""
        session = await self._read(session_id)
        return session.refresh if session is not None else None

    async def end(self, session_id: bytes) -> None:
        """Have it, and its tokens, work no more on any instance. Raises `StoreUnavailable`."""
        digest = digest_of(session_id)
        was_known = self._good.drop(digest) is not None
        session = await self._read(session_id)
        if session is None:
            if was_known:  # its record is lost, but other instances may know it too
                await self._revocations.revoke(digest, self._now() + OPAQUE_S)
            return
        await self._revocations.revoke(digest, session.until)
        access = self._bearer.peek(session.access.encode())
        if access is not None:
            await self._revocations.revoke(access.digest, access.exp + self._leeway_s)
        if session.refresh is not None:
            await self._spending.revoke(session.refresh)
        await self._records.delete(_key(session_id))

    # what a renewal does to the record

    async def read(self, session_id: bytes) -> tuple[bytes, Session] | None:
        """The record as it lies there, and what it holds; `None` if there is none. Raises `StoreUnavailable`."""
        sealed = await self._records.get(_key(session_id))
        if sealed is None:
            return None
        found = self._sealer.opened_with(session_id, sealed)
        session = session_from(*found) if found is not None else None
        return None if session is None or session.until <= self._now() else (sealed, session)

    async def fresh(self, session_id: bytes, session: Session) -> Claims | None:
        """Its claims, from here on known, if its access token is good."""
        claims = await self.claims_of(session.access)
        return None if claims is None else self._remember(session_id, session, claims)

    async def replace(self, session_id: bytes, sealed: bytes, tokens: Tokens, claims: Claims) -> Claims | None:
        """Put new tokens in the place of those in `sealed`; `None` if something else lies there by now."""
        session = self._session(tokens, claims)
        text = self._sealed(session_id, session)
        if not await self._records.replace(_key(session_id), sealed, text, ttl_s=self._life_s(session)):
            return None
        return self._remember(session_id, session, claims)

    async def drop(self, session_id: bytes, sealed: bytes) -> None:
        """Its tokens can't be renewed any more."""
        self._good.drop(digest_of(session_id))
        await self._records.replace(_key(session_id), sealed, None, ttl_s=None)

    # parts

    async def _read(self, session_id: bytes) -> Session | None:
        found = await self.read(session_id)
        return found[1] if found is not None else None

    async def claims_of(self, access: str) -> Claims | None:
        """The claims of an access token that is good."""
        try:
            claims = await self._bearer.verify(access.encode())
        except TokenRefused:
            return None  # ended, or of a key that was changed: the next one will be good
        return claims if claims.exp > self._now() else None

    def _remember(self, session_id: bytes, session: Session, claims: Claims) -> Claims:
        digest = digest_of(session_id)
        signer = signer_of(claims.signer, session.sealed_by)
        claims = replace(claims, digest=digest, forwarded=session.access.encode(), signer=signer)
        self._good.put(digest, (self._seconds() + min(self._ttl_s, claims.exp - self._now()), claims))
        return claims

    def _session(self, tokens: Tokens, claims: Claims) -> Session:
        refresh = refresh_token(tokens.refresh) if tokens.refresh is not None else None
        now = self._now()
        until = claims.exp if refresh is None else now + refresh.remembered_s(now, 0)
        return Session(
            access=tokens.access,
            refresh=refresh,
            until=until,
            user_id=claims.user_id,
            sealed_by=self._sealer.thumbprints[0],
        )

    def _sealed(self, session_id: bytes, session: Session) -> bytes:
        return self._sealer.seal(session_id, session.document())

    def _life_s(self, session: Session) -> float:
        return max(1.0, min(session.until - self._now(), IDLE_S))


def _key(session_id: bytes) -> str:
    return "session:" + digest_of(session_id)
