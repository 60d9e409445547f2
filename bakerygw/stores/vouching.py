"""How instances ask each other whether all that was published has been heard and stored by somebody.

`ask <nonce>` is published by who has to know, and heard by every instance in the order of publication, behind all
alerts before it. Who has missed none of them, and has stored them, publishes `sure <nonce> …`.
"""

import re
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final, Literal

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.redis_link import RedisLink

LISTENING: Final = "bakerygw:alerts:listening"
"""The channel; whoever is subscribed to it hears all alerts, too."""
VOUCH_S: Final = 1.0
"""So long others have time to answer."""
ASK_TIMES: Final = 3
"""Within that time: an answer may have failed on its way."""
MAX_PENDING: Final = 64
"""Questions to be answered at most; they come from a few instances that begin to listen."""
MAX_NONCES: Final = 16
"""In one message."""
FORGET_S: Final = 5.0
"""Nobody waits for an answer any more."""

_SAID: Final = re.compile(rb"(ask|sure)((?: [0-9a-f]{16}){1,%d})" % MAX_NONCES)

Found = Literal["vouched", "unknown", "elsewhere", "late"]


class _Question:
    """One question, until it is answered."""

    __slots__ = ("alone", "heard", "nonce", "vouched", "waiting")

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self.alone = self.heard = self.vouched = False
        self.waiting: Deferred[None] | None = None

    @property
    def closed(self) -> bool:
        """There is nothing more to learn."""
        return self.heard and (self.vouched or self.alone)


class Vouching:
    """Asks the other instances, and answers them."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        link: RedisLink,
        *,
        nonce: Callable[[], str],
        sure: Callable[[], bool],
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        """`nonce` gives 16 hexadecimal digits. `sure`: this instance has missed nothing that no era tells of.

        `settled` ends when all that this instance has heard until then is stored, or it is no longer sure.
        """
        self._clock, self._link, self._nonce, self._sure, self._settled = clock, link, nonce, sure, settled
        self._question: _Question | None = None
        self._pending: dict[bytes, float] = {}
        """Nonces of others, with the moment at which each was heard first."""
        self._answering: Deferred[None] | None = None

    async def ask(self, answered_at: Callable[[], float]) -> Found:
        """Whether somebody vouches for all that was published until now. Raises `StoreUnavailable`.

        `answered_at` tells when the latest ping was sent that the subscriber connection has answered: if that was
        after the question and the question was not heard, the two connections lead elsewhere. late: nobody can tell.
        """
        question = self._question = _Question(self._nonce().encode())
        try:
            for _ in range(ASK_TIMES):
                receivers = await self._link.call("PUBLISH", LISTENING, b"ask " + question.nonce)
                told_at = self._clock.seconds()
                if receivers == 0:
                    return "elsewhere"
                question.alone = receivers == 1
                await self._wait(question)
                if question.closed:
                    return "vouched" if question.vouched else "unknown"
            if question.heard:
                return "unknown"
            return "elsewhere" if answered_at() > told_at else "late"
        finally:
            if self._question is question:
                self._question = None

    def heard(self, said: bytes) -> None:
        """Take what was published on the channel, maybe by none of us."""
        found = _SAID.fullmatch(said)
        if found is None:
            return
        nonces = found[2].split()
        question = self._question
        if question is not None and question.nonce in nonces:
            question.heard |= found[1] == b"ask"
            question.vouched |= found[1] == b"sure"
            if question.closed and question.waiting is not None and not question.waiting.called:
                question.waiting.callback(None)
        elif found[1] == b"ask":
            for nonce in nonces:
                if len(self._pending) < MAX_PENDING:
                    self._pending.setdefault(nonce, self._clock.seconds())
            self.answer()

    def answer(self) -> None:
        """Answer what was asked, as soon as all that was heard before is stored; nothing while this one is not sure."""
        if self._pending and self._answering is None and self._sure():
            answering = self._answering = Deferred.fromCoroutine(self._answer())
            if answering.called:
                self._answering = None
            answering.addErrback(lambda failure: self._log.failure("alerts.vouching_failed", failure))

    async def _answer(self) -> None:
        try:
            while self._pending and self._sure():
                asked = dict(list(self._pending.items())[:MAX_NONCES])
                await self._settled()
                if not self._sure():
                    return  # and answer when it is again
                for nonce in asked:
                    self._pending.pop(nonce, None)
                late = self._clock.seconds() - FORGET_S
                if nonces := [nonce for nonce, heard_at in asked.items() if heard_at > late]:
                    await self._link.call("PUBLISH", LISTENING, b"sure " + b" ".join(nonces))
        except StoreUnavailable:
            return  # who asked will ask again
        finally:
            self._answering = None

    async def _wait(self, question: _Question) -> None:
        """Wait for answers, as long as one question may take."""
        if not question.closed:
            question.waiting = Deferred()
            try:
                await question.waiting.addTimeout(VOUCH_S / ASK_TIMES, self._clock)
            except TimeoutError:
                return
