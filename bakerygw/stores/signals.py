"""What instances tell each other at once, over a channel of Redis or, for a single instance, to nobody."""

import json
import secrets
from collections.abc import Callable
from typing import Any, ClassVar, Final, get_args

from twisted.logger import Logger

from bakerygw.ports import SignalKind
from bakerygw.stores.redis_link import RedisLink

SIGNALS: Final = "bakerygw:signals"
MAX_BYTES: Final = 512
"""Of one signal."""
MAX_SUBJECT: Final = 128
_KINDS: Final = frozenset(get_args(SignalKind))


class LocalSignals:
    """`Signals` of an instance that is alone."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[[str], object]]] = {}

    def on(self, kind: SignalKind, handler: Callable[[str], object]) -> None:
        """Call `handler` with the subject of each such signal."""
        self._handlers.setdefault(kind, []).append(handler)

    async def send(self, kind: SignalKind, subject: str) -> int:
        """There is no other instance."""
        return 1

    def dispatch(self, kind: str, subject: str) -> None:
        """Hand a signal to its handlers; a fault in one of them is logged."""
        for handler in self._handlers.get(kind, ()):
            try:
                handler(subject)
            except Exception:
                self._log.failure("signal.failed", kind=kind)


class RedisSignals(LocalSignals):
    """`Signals` by PUBLISH; what others publish is brought by the connection that hears of invalidations."""

    def __init__(self, link: RedisLink) -> None:
        super().__init__()
        self._link = link
        self._own = secrets.token_hex(8)

    async def send(self, kind: SignalKind, subject: str) -> int:
        """Tell all other instances; how many instances listen. Raises `StoreUnavailable`."""
        signal = json.dumps({"kind": kind, "subject": subject, "from": self._own})
        heard = await self._link.call("PUBLISH", SIGNALS, signal)
        return max(1, heard) if isinstance(heard, int) else 1

    def heard(self, payload: object) -> None:
        """What somebody, maybe not one of us, has published; what is no signal is ignored."""
        if not isinstance(payload, bytes) or len(payload) > MAX_BYTES:
            return
        try:
            signal: Any = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if not isinstance(signal, dict) or signal.get("from") == self._own:
            return
        kind, subject = signal.get("kind"), signal.get("subject")
        if isinstance(kind, str) and kind in _KINDS and isinstance(subject, str) and 0 < len(subject) <= MAX_SUBJECT:
            self.dispatch(kind, subject)
