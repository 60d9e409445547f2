"""Who publishes: most alerts by PUBLISH, some by the call that answers when they are stored."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from time import monotonic

TICK_S = 0.02


@dataclass
class Published:
    """What became of the alerts of one tenant."""

    tenant: str
    count: int = 0
    heard: set[int] = field(default_factory=set)
    """Redis has handed these to somebody."""
    unheard: set[int] = field(default_factory=set)
    """Redis has taken these, and nobody listened."""
    unknown: set[int] = field(default_factory=set)
    """Redis did not answer."""
    stored: dict[int, str] = field(default_factory=dict)
    """The gateway has answered that these are stored, and where."""


class Publisher:
    """Publishes at a steady rate for some tenants, whatever fails."""

    def __init__(
        self,
        redis: tuple[str, int],
        tenants: Sequence[str],
        *,
        admins: Callable[[], list[int]],
        token: str,
        chance: Random,
    ) -> None:
        """`admins` are the admin ports of the instances that live."""
        self._redis, self._admins, self._token, self._chance = redis, admins, token, chance
        self.published = {tenant: Published(tenant) for tenant in tenants}
        self._posting: set[asyncio.Task[None]] = set()
        self._reading: asyncio.StreamReader | None = None
        self._writing: asyncio.StreamWriter | None = None
        self.total = 0

    async def run(self, alerts: int, rate: float, posted: float) -> None:
        """Publish so many; `posted` is the share of those that are posted. Ends when all are answered or given up."""
        begun = monotonic()
        while self.total < alerts:
            due = min(alerts, round((monotonic() - begun) * rate) + 1)
            # After a pause of Redis the rest comes no faster than four times.
            number = min(due - self.total, max(1, round(4 * rate * TICK_S)))
            if number > 0:
                await self._publish(number, posted)
            if due - self.total > rate:
                begun += 0.5 * (due - self.total) / rate
            await asyncio.sleep(TICK_S)
        if self._posting:
            await asyncio.wait(self._posting, timeout=30)
        self._hang_up()

    async def post(self, tenant: str, payload: bytes | None = None) -> None:
        """Post one alert until an instance has stored it."""
        its = self.published[tenant]
        number = its.count
        its.count += 1
        body = payload or self._alert(tenant, number)
        while True:
            ports = self._admins()
            try:
                async with asyncio.timeout(5):
                    status, answer = await self._ask(self._chance.choice(ports), tenant, body)
            except (OSError, EOFError, TimeoutError, IndexError, ValueError):
                status, answer = 0, {}
            if status in (200, 201):
                its.stored[number] = str(answer["id"])
                return
            if 400 <= status < 500:
                raise AssertionError(f"an alert is refused: {status} {answer}")
            await asyncio.sleep(0.2)

    def _alert(self, tenant: str, number: int) -> bytes:
        alert = {"alert_id": f"{tenant}-{number}", "message": "m", "severity": "low", "tenant": tenant, "seq": number}
        return json.dumps({**alert, "at": monotonic()}).encode()

    async def _publish(self, number: int, posted: float) -> None:
        batch = []
        for _ in range(number):
            tenant = self._chance.choice(list(self.published))
            self.total += 1
            if self._chance.random() < posted:
                task = asyncio.create_task(self.post(tenant))
                self._posting.add(task)
                task.add_done_callback(self._posting.discard)
                continue
            its = self.published[tenant]
            batch.append((its, its.count, self._alert(tenant, its.count)))
            its.count += 1
        unanswered = list(batch)
        try:
            async with asyncio.timeout(10):
                reading, writing = await self._connection()
                writing.write(b"".join(_command(f"alerts:tenant:{its.tenant}", body) for its, _, body in batch))
                for its, seq, _ in batch:
                    reply = await reading.readuntil(b"\r\n")
                    if not reply.startswith(b":"):
                        raise OSError(reply)
                    (its.heard if int(reply[1:]) else its.unheard).add(seq)
                    unanswered.pop(0)
        except (OSError, EOFError, TimeoutError):
            self._hang_up()
            for its, seq, _ in unanswered:
                its.unknown.add(seq)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reading is None or self._writing is None:
            self._reading, self._writing = await asyncio.open_connection(*self._redis)
        return self._reading, self._writing

    def _hang_up(self) -> None:
        if self._writing is not None:
            self._writing.transport.abort()
        self._reading = self._writing = None

    async def _ask(self, port: int, tenant: str, body: bytes) -> tuple[int, dict[str, object]]:
        reading, writing = await asyncio.open_connection("127.0.0.1", port)
        try:
            lines = [f"POST /api/tenants/{tenant}/alerts HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
            lines += [
                f"Authorization: Bearer {self._token}",
                f"Content-Length: {len(body)}",
                "Connection: close",
                "",
                "",
            ]
            writing.write("\r\n".join(lines).encode() + body)
            head, _, rest = (await reading.read()).partition(b"\r\n\r\n")
            if not head:
                raise EOFError
            return int(head.split(b" ", 2)[1]), json.loads(rest)
        finally:
            writing.transport.abort()


def _command(channel: str, body: bytes) -> bytes:
    words = (b"PUBLISH", channel.encode(), body)
    return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
