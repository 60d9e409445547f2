"""Refresh tokens that work once, on whichever instance, however many use them at the same moment."""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any, ClassVar, Final, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.refresh_tokens import RefreshToken
from bakerygw.ports import AdmissionAsk, AdmissionStore, Records, RevocationStore, StoreUnavailable
from bakerygw.runtime.task import Task

UNKNOWN_S: Final = 10.0
"""How long a token is kept after a use of which nobody knows whether the service has done it."""
INSIST_S: Final[tuple[float, ...]] = (0.1, 0.4, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The pauses between attempts to write what must not be lost; together shorter than any claim."""

SPENT: Final = b"spent"
UNKNOWN: Final = b"unknown"

Write = Callable[[], Coroutine[Deferred[Any], Any, None]]

Standing = Literal["spent", "unknown", "busy", "revoked"]
"""Why a token can't be used: it was; its use ended without an answer; it is being used now; or it was signed out."""


class Insistence:
    """Writes what must not be lost, and tries again for half a minute where the store is away."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def insist(self, write: Write) -> None:
        """Try it again and again behind the back of whoever asks. `write` raises `StoreUnavailable`."""
        Task(self._insist(write, INSIST_S), self._failed)

    def behind(self, write: Write) -> None:
        """Try it at once, and insist."""
        Task(self._insist(write, (0.0, *INSIST_S)), self._failed)

    async def _insist(self, write: Write, pauses_s: tuple[float, ...]) -> None:
        for pause_s in pauses_s:
            if pause_s:
                await deferLater(self._clock, pause_s)
            try:
                await write()
            except StoreUnavailable:
                continue
            return
        self._log.warn("state.not_written")

    def _failed(self, failure: Failure) -> None:
        self._log.failure("state.write_failed", failure)


class Use:
    """One use of a token, which this instance alone has. Ends by one of `spent`, `unknown` and `released`.

    None of them fails. What could not be written, because Redis is away, ends with the claim.
    """

    def __init__(self, key: str, nonce: bytes, for_s: float, records: Records, insistence: Insistence) -> None:
        self._key, self._nonce, self._for_s = key, nonce, for_s
        self._records, self._insistence = records, insistence

    async def spent(self) -> None:
        """The service took it. This is written as soon as Redis is back."""
        try:
            await self._spent()
        except StoreUnavailable:
            self._insistence.insist(self._spent)

    async def unknown(self) -> None:
        """Nobody knows; it may be tried again after `UNKNOWN_S`."""
        with suppress(StoreUnavailable):
            await self._records.replace(self._key, self._nonce, UNKNOWN, ttl_s=UNKNOWN_S)

    async def released(self) -> None:
        """The service did not take it: nothing has happened."""
        with suppress(StoreUnavailable):
            await self._records.replace(self._key, self._nonce, None, ttl_s=None)

    def cut(self) -> None:
        """The service took it, but its answer did not arrive."""
        self._insistence.behind(self._cut)

    async def _spent(self) -> None:
        await self._records.replace(self._key, self._nonce, SPENT, ttl_s=self._for_s)

    async def _cut(self) -> None:
        await self._records.replace(self._key, SPENT, UNKNOWN, ttl_s=UNKNOWN_S)


class Spending:
    """The uses of refresh tokens, in `Records` under `refresh:<digest>`."""

    def __init__(
        self,
        records: Records,
        revocations: RevocationStore,
        admission: AdmissionStore,
        *,
        clock: IReactorTime,
        now: Callable[[], float],
        leeway_s: float,
    ) -> None:
        """`admission` knows what is revoked; `now` gives Unix seconds."""
        self._records, self._revocations, self._admission = records, revocations, admission
        self._now, self._leeway_s = now, leeway_s
        self._insistence = Insistence(clock)

    async def begin(self, token: RefreshToken, for_s: float) -> Use | Standing:
        """Take the one use that the token has, or say why there is none. Raises `StoreUnavailable`.

        The claim ends after `for_s` seconds by itself, in case that this instance does; so the use must be over before.
        """
        state = await self._admission.admit(AdmissionAsk(digests=(token.digest,)))
        revoked = state.revoked.get(token.digest)
        if revoked is None:
            raise StoreUnavailable("revocations unknown")
        if revoked:
            return "revoked"
        key, nonce = _key(token), token_hex(16).encode()
        try:
            claimed = await self._records.claim(key, nonce, ttl_s=for_s)
        except (StoreUnavailable, CancelledError):
            # Too late is not never: a claim that nobody knows of would lock the token's owner out.
            self.insist(partial(self._withdraw, key, nonce))
            raise
        if claimed:
            return Use(key, nonce, token.remembered_s(self._now(), self._leeway_s), self._records, self._insistence)
        there = await self._records.get(key)
        if there == SPENT:
            return "spent"
        return "unknown" if there == UNKNOWN else "busy"

    def insist(self, write: Write) -> None:
        """Have something written that must not be lost, see `Insistence`."""
        self._insistence.insist(write)

    async def revoke(self, token: RefreshToken) -> None:
        """Have the token work no more, on any instance. Raises `StoreUnavailable`."""
        for_s = token.remembered_s(self._now(), self._leeway_s)
        await self._records.put(_key(token), SPENT, ttl_s=for_s)
        await self._revocations.revoke(token.digest, self._now() + for_s)

    async def _withdraw(self, key: str, nonce: bytes) -> None:
        await self._records.replace(key, nonce, None, ttl_s=None)


def _key(token: RefreshToken) -> str:
    return "refresh:" + token.digest
