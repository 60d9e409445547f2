"""Revocations read as soon as Redis tells of them, so that a Redis which is emptied later takes none of them back."""

import re
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import ClassVar, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.ports import StoreUnavailable
from bakerygw.runtime.task import Task
from bakerygw.stores.mirror import Mirror

AT_ONCE: Final = 200
"""Tokens asked for in one call, well below a millisecond of Redis' time."""
MAX_WAITING: Final = 10_000
"""Whoever writes more of them at once has them found when somebody presents one."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Learner:
    """Has each revocation that is made anywhere read once, whether or not its token was ever seen here."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, read: Callable[[tuple[str, ...]], Awaitable[object]], mirror: Mirror) -> None:
        """`read` brings what Redis holds of these digests into the mirror. Raises `StoreUnavailable`."""
        self._read = read
        self._waiting: dict[str, None] = {}
        self._reading = False
        mirror.on_revocation(self._heard)

    def _heard(self, digests: tuple[str, ...]) -> None:
        for digest in digests:
            if len(self._waiting) < MAX_WAITING and _DIGEST.fullmatch(digest) is not None:
                self._waiting[digest] = None
        if self._waiting and not self._reading:
            self._reading = True
            Task(self._learn(), self._failed)

    async def _learn(self) -> None:
        try:
            while self._waiting:
                some = tuple(islice(self._waiting, AT_ONCE))
                for digest in some:
                    del self._waiting[digest]
                await self._read(some)
        except StoreUnavailable:
            self._waiting.clear()  # they are found, if they are still there, when somebody presents one
        finally:
            self._reading = False

    def _failed(self, failure: Failure) -> None:
        self._log.failure("store.learning_failed", failure)
