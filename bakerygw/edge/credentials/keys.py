"""API keys on the public port: how one is presented, how it is refused, and who is told of its use."""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.api_keys import id_of
from bakerygw.core.claims import Claims
from bakerygw.core.http import RequestHead
from bakerygw.core.key_terms import KeyTerms
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.recent import Seldom
from bakerygw.ports import Audit, StoreUnavailable, TokenRefused
from bakerygw.runtime.task import Task

CHALLENGE: Final = (b"WWW-Authenticate", b'ApiKey error="invalid_token"')
"""RFC 9110 11.6.1, with the error of RFC 6750 3.1."""
USED_EVERY_S: Final = 60.0
"""Seconds between two notes of a key's use, and between two audit events of it from one address."""
MAX_NOTED: Final = 10_000

MISPLACED: Final = "This is an API key, not an access token; send it as 'Authorization: ApiKey <key>'."
_INVALID: Final = "This is no API key that is known here; check that it was copied whole, or have an operator make one."
_DETAILS: Final = {
    "key-form": "This is no whole API key, or a mistyped one; copy it again as it was shown when it was made.",
    "key-expired": "This API key has expired; have an operator make another.",
    "key-replaced": "This API key was replaced by a newer one; use that, or have an operator make another.",
    "key-revoked": "This API key was revoked, or replaced by a newer one; use that, or have an operator make another.",
}
"""By reason."""


def is_api_key(values: tuple[bytes, ...]) -> bool:
    """Whether an `Authorization` field, the first if there are several, has the scheme `ApiKey`, in any case."""
    return bool(values) and values[0][:7].lower() in (b"apikey ", b"apikey")


def api_key(values: tuple[bytes, ...]) -> bytes:
    """The key of the `Authorization` field's values, of which `is_api_key` holds: one field, one space.

    Raises `Refused` token-invalid.
    """
    key = values[0][7:]
    if len(values) > 1:
        raise _invalid("Send exactly one Authorization header.", "repeated-header")
    if not key or key[:1] in b" \t":
        raise _invalid("Put exactly one space and then the key behind 'ApiKey'.", "malformed-header")
    return key


def looks_like_key(secret: bytes) -> bool:
    """Whether what was presented as something else was meant as an API key."""
    return secret.startswith(b"bkry_")


def revoked_key() -> Refused:
    """The refusal of a key that was good before."""
    return _unauthorised("token-revoked", "key-revoked")


class KeyDesk:
    """Tells of the use of keys, and of every refusal.

    `used(key_id, at)` is told at most once a minute for each key, and what becomes of it matters to nobody; `now` is
    Unix seconds.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        *,
        audit: Audit,
        attempted: Callable[[str], None],
        used: Callable[[str, float], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        """`attempted` is told how each attempt ended: ok, or a problem's code."""
        self._audit, self._attempted, self._used, self._now = audit, attempted, used, now
        self._noted: Seldom[tuple[str, str]] = Seldom(USED_EVERY_S, MAX_NOTED)

    def used(self, claims: Claims, key: KeyTerms, head: RequestHead) -> None:
        """The key has opened its tenant to a request."""
        self._attempted("ok")
        now = self._now()
        if self._noted.is_due((key.key_id, head.client), now):
            self._audit("key.used", key_id=key.key_id, tenant_id=claims.tenant_id, client=head.client)
        if self._noted.is_due((key.key_id, ""), now):
            Task(self._note(key.key_id, now), self._not_noted)

    def refused(self, refused: TokenRefused, secret: bytes, head: RequestHead) -> Refused:
        """The refusal of what was presented as a key."""
        refusal = _unauthorised(refused.code, refused.reason)
        self._tell_refusal(id_of(secret), None, head, refusal.problem)
        return refusal

    def turned_away(self, claims: Claims, key: KeyTerms, head: RequestHead, problem: Problem) -> None:
        """A key that is good was refused all the same."""
        self._tell_refusal(key.key_id, claims.tenant_id, head, problem)

    def _tell_refusal(self, key_id: str | None, tenant_id: str | None, head: RequestHead, problem: Problem) -> None:
        self._attempted(problem.code)
        told = {"key_id": key_id, "tenant_id": tenant_id, "reason": problem.reason}
        known = {name: text for name, text in told.items() if text}
        self._audit("key.refused", client=head.client, code=problem.code, **known)

    async def _note(self, key_id: str, at: float) -> None:
        try:
            await self._used(key_id, at)
        except StoreUnavailable:
            return  # it says when a key was used last, not whether it may be

    def _not_noted(self, failure: Failure) -> Any:
        self._log.failure("key.not_noted", failure)


def _unauthorised(code: str, reason: str) -> Refused:
    return Refused(Problem(code=code, detail=_DETAILS.get(reason, _INVALID), headers=(CHALLENGE,), reason=reason))


def _invalid(detail: str, reason: str) -> Refused:
    return Refused(Problem(code="token-invalid", detail=detail, headers=(CHALLENGE,), reason=reason))
