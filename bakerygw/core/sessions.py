"""Sessions of browsers as values: what lies behind a cookie, and what a service's answer means for it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import field
from hashlib import sha256
from typing import Final

from bakerygw.core.claims import ClaimsError, strict_object
from bakerygw.core.cookies import set_cookie
from bakerygw.core.forwarding import SESSION_COOKIE
from bakerygw.core.http import Pairs
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.refresh_tokens import RefreshToken, refresh_token
from bakerygw.core.values import value

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Of an answer in which tokens are looked for."""
_ABOUT_THE_BODY: Final = frozenset(
    {b"cache-control", b"content-digest", b"content-md5", b"digest", b"etag", b"expires", b"last-modified",
     b"repr-digest", b"set-cookie"}
)  # fmt: skip

_FOR_SHARED_CACHES: Final = frozenset({b"cache-control", b"cdn-cache-control", b"surrogate-control"})


@value
class Tokens:
    """What an auth service has given."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False)


@value
class Session:
    """What lies behind one cookie."""

    access: str = field(repr=False)
    refresh: RefreshToken | None
    until: float
    """Unix seconds at which it ends, whatever happens."""
    user_id: str
    sealed_by: bytes = b""
    """The thumbprint of the secret that it is sealed with."""

    def document(self) -> bytes:
        """As it is kept, sealed."""
        refresh = self.refresh.text if self.refresh is not None else None
        kept = {"access": self.access, "refresh": refresh, "until": self.until, "user_id": self.user_id}
        return json.dumps(kept).encode()


def session_from(text: bytes, sealed_by: bytes = b"") -> Session | None:
    """What `document` has made, and what it was sealed with."""
    try:
        said = strict_object(text)
        access, refresh, until = said.get("access"), said.get("refresh"), said.get("until")
        user_id = said.get("user_id")
        if not (isinstance(access, str) and isinstance(until, int | float) and isinstance(user_id, str)):
            return None
        its_refresh = refresh_token(refresh) if isinstance(refresh, str) else None
    except (ClaimsError, Refused):
        return None
    return Session(access=access, refresh=its_refresh, until=float(until), user_id=user_id, sealed_by=sealed_by)


def signer_of(of_token: bytes, sealed_by: bytes) -> bytes:
    """The `Claims.signer` of a session: what its access token was checked with, and what its record is sealed with."""
    return sha256(b"session" + of_token + sealed_by).digest() if of_token else b""


def digest_of(session_id: bytes) -> str:
    """What names a session everywhere but in its cookie."""
    return sha256(session_id).hexdigest()


def ended(code: str, reason: str) -> Refused:
    """The refusal of a cookie that stands for no session, or for none any more; it takes the cookie away."""
    cleared = set_cookie(SESSION_COOKIE, b"")
    return Refused(
        Problem(code=code, detail="The session has ended; sign in again.", headers=(cleared,), reason=reason)
    )


def tokens_in(document: Mapping[str, object]) -> Tokens | None:
    """The tokens of an auth service's answer (RFC 6749 5.1); `None` if it gives none as it should."""
    access, refresh = document.get("access_token"), document.get("refresh_token")
    if not isinstance(access, str) or not access.isascii() or not (refresh is None or isinstance(refresh, str)):
        return None
    try:
        if refresh is not None:
            refresh_token(refresh)
    except Refused:
        return None
    return Tokens(access=access, refresh=refresh)


def object_in(text: bytes) -> dict[str, object] | None:
    """The JSON object that this is, if it is one beyond doubt."""
    try:
        return strict_object(text)
    except ClaimsError:
        return None


def without_tokens(said: object, secrets: Collection[str]) -> object:
    """A JSON value less every member that is named like a token or holds one of `secrets`, at any depth."""
    if isinstance(said, dict):
        return {
            name: without_tokens(member, secrets)
            for name, member in said.items()
            if not _token_like(name) and not _holds(member, secrets)
        }
    if isinstance(said, list):
        return [without_tokens(member, secrets) for member in said if not _holds(member, secrets)]
    return said


def headers_without_tokens(headers: Pairs, secrets: Collection[str]) -> Pairs:
    """The fields of an answer whose tokens stay here: no cookies, nothing about its body, nothing that holds one."""
    return tuple(
        (name, text)
        for name, text in headers
        if name.lower() not in _ABOUT_THE_BODY and not _holds(text.decode("latin-1"), secrets)
    )


def private_headers(headers: Pairs) -> Pairs:
    """The fields of an answer to somebody known by cookie, so that no shared cache keeps it for others.

    Caches keep no answer to a request with `Authorization` (RFC 9111 3.5), on which services may rely; of cookies
    they know nothing.
    """
    said = b", ".join(text for name, text in headers if name.lower() == b"cache-control")
    kept = [pair for pair in headers if pair[0].lower() not in _FOR_SHARED_CACHES]
    directives = [part.strip() for part in said.split(b",") if part.strip()]
    names = {directive.partition(b"=")[0].lower() for directive in directives}
    if not names & {b"private", b"no-store"}:
        directives = [part for part in directives if part.partition(b"=")[0].lower() not in (b"public", b"s-maxage")]
        directives.append(b"private")
    return (*kept, (b"Cache-Control", b", ".join(directives)), (b"Vary", b"Cookie"))


def _token_like(name: str) -> bool:
    return name.lower().endswith(("token", "tokens", "jwt"))


def _holds(member: object, secrets: Collection[str]) -> bool:
    return isinstance(member, str) and any(secret in member for secret in secrets)
