"""What instances tell each other of tokens that they have verified: seals in the shared state."""

from collections.abc import Callable
from hashlib import sha256
from typing import ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.claims import Claims
from bakerygw.ports import Records, StoreUnavailable, TokenTelemetry
from bakerygw.tokens.token_seal import TokenSeal

TELL_EVERY_S: Final = 60.0
"""Whoever can write to the store must not be able to fill the log as well."""


class SharedTokens:
    """Seals of verified tokens, by the token's SHA-256; those of demo sessions under a prefix of their own.

    The store is never relied on: where it is away or says nothing that bears a seal, a token is as unknown as before.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        records: Records,
        sealer: TokenSeal,
        *,
        ttl_s: float,
        now: Callable[[], float],
        telemetry: TokenTelemetry,
    ) -> None:
        """`ttl_s`: how long a seal holds at most; it never does beyond the token's `exp`. `now` gives Unix seconds."""
        self._records, self._sealer, self._ttl_s = records, sealer, ttl_s
        self._now, self._telemetry = now, telemetry
        self._told_at = float("-inf")

    async def vouches(self, token: bytes, said: Claims, thumbprint: bytes) -> bool:
        """Whether an instance has found the signature of this very token good, by the key with this thumbprint.

        `said` is what the token says of itself, unverified.
        """
        try:
            found = await self._records.get(_key(token, said))
        except StoreUnavailable:
            self._telemetry.shared_token("unavailable")
            return False
        verdict = "miss" if found is None else self._sealer.judge(found, token, thumbprint, self._now())
        self._telemetry.shared_token(verdict)
        if verdict == "refused":
            self._tell()
        return verdict == "hit"

    def vouch(self, token: bytes, claims: Claims, thumbprint: bytes) -> None:
        """Tell the others that this token is good. Never raises, and waits for nothing."""
        now = self._now()
        until = min(now + self._ttl_s, claims.exp)
        if until - now >= 1:
            sealed = self._sealer.seal(token, thumbprint, until)
            Deferred.fromCoroutine(self._put(_key(token, claims), sealed, until - now)).addErrback(self._failed)

    async def _put(self, key: str, sealed: bytes, ttl_s: float) -> None:
        try:
            await self._records.put(key, sealed, ttl_s=ttl_s)
        except StoreUnavailable:
            self._telemetry.shared_token("unavailable")

    def _tell(self) -> None:
        now = self._now()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._log.error("tokens.seal_refused", reason="somebody without the secret has written or altered a seal")

    def _failed(self, failure: Failure) -> None:
        self._log.failure("tokens.seal_failed", failure)


def _key(token: bytes, claims: Claims) -> str:
    return ("token:demo:" if claims.is_demo else "token:") + sha256(token).hexdigest()
