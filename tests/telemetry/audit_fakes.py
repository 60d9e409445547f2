"""An audit store in memory that can be away, late, or full of nonsense; and outcomes of requests."""

from twisted.internet.defer import Deferred

from bakerygw.core.outcome import Outcome, Trace
from bakerygw.ports import StoreUnavailable


class MemoryAudit:
    def __init__(self):
        self.kept = {"events": [], "refusals": []}
        self.held = {}
        self.away = False
        self.trimmed = []
        self.slow = None
        """A Deferred that reading keys waits for, where one is set."""
        self.asked = 0

    async def append(self, ledger, entries):
        if self.away:
            raise StoreUnavailable("away")
        self.kept[ledger] += entries

    async def trim(self, ledger):
        self.trimmed.append(ledger)

    async def keys(self, fresh):
        self.asked += 1
        if self.slow is not None:
            await self.slow
        if self.away:
            raise StoreUnavailable("away")
        return {name: self.held.setdefault(name, key) for name, key in fresh.items()}

    async def key(self, name):
        return self.held.get(name)

    async def erase(self, name):
        return self.held.pop(name, None) is not None

    async def entries(self, ledger):
        for entry in self.kept[ledger]:
            yield entry

    async def latest(self, ledger, count):
        return list(reversed(self.kept[ledger]))[:count]

    def hang(self):
        self.slow = Deferred()
        return self.slow

    @property
    def all(self):
        return b"\n".join(self.kept["events"] + self.kept["refusals"])


def outcome(status=403, **about):
    fields = {"request_id": "req-12345678", "started": 1.0, "method": "GET", "route": "/api/v1/sales/**"}
    fields |= {"client": "192.0.2.77", "user_id": "ana", "tenant_id": "bakery-1", "reason": "tenant-forbidden"}
    return Outcome(trace=Trace(**{**fields, **about}), status=status, bytes_in=0, bytes_out=0, duration_s=0.01)
