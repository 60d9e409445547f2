"""What must be answerable for, who it is about, and what instances tell each other."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal, Protocol

Ledger = Literal["events", "refusals"]
"""What was done; and what was refused, which anybody can provoke and which must not push out the other."""


class AuditStore(Protocol):
    """Entries by age, and one key for each person that they are about. Each call raises `StoreUnavailable`.

    Entries and keys are opaque bytes; a key's `name` says whose it is without naming them. What is older than the
    store's time to keep, or beyond its bound, goes by itself.
    """

    async def append(self, ledger: Ledger, entries: Sequence[bytes]) -> None:
        """Keep these entries."""

    async def trim(self, ledger: Ledger) -> None:
        """Let go of what is too old."""

    async def keys(self, fresh: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The key of each name; `fresh` is what becomes the key where there is none. Unusable ones are left out."""

    async def key(self, name: str) -> bytes | None:
        """The key of one name; `None` if there is none."""

    async def erase(self, name: str) -> bool:
        """Forget a key for good, and tell all instances (signal `erased`); whether there was one."""

    def entries(self, ledger: Ledger) -> AsyncIterator[bytes]:
        """All that is kept, oldest first."""

    async def latest(self, ledger: Ledger, count: int) -> Sequence[bytes]:
        """The last so many, newest first."""


SignalKind = Literal["erased", "disconnect"]
"""erased: of this name of a key; disconnect: of this tenant."""


class Signals(Protocol):
    """What instances tell each other at once. Nothing is kept for those who are away."""

    def on(self, kind: SignalKind, handler: Callable[[str], object]) -> None:
        """Call `handler` with the subject of each signal of this kind that another instance or program sends."""

    async def send(self, kind: SignalKind, subject: str) -> int:
        """Tell all other instances; how many instances listen, this one included. Raises `StoreUnavailable`."""
