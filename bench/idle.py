"""Many keep-alive connections at once: each asks once, rests, and asks once more.

    python bench/idle.py [--connections 10000] [--rest 20] [--quick] [--plain]

Prints the gateway's memory for each (growth of its resident memory, without the kernel's own for sockets). Exits with 1
above 15 KiB, or if any of them is refused, lost or answered wrongly. A gateway closes connections that rest for 75 s.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from builds import build_arguments, of
from client import Connection, connect
from procfs import open_files, rss_bytes
from rig import Rig, folder_of, machine, require, require_files, sales_requests, save, verdict

PROMISE_KIB: Final = 15.0
AT_ONCE: Final = 32
"""Connections being opened, or requests under way, at a time: what rests is measured here, not a rush."""
PORTS: Final = 20_000
"""Connections from one source address: fewer than the kernel has ports for."""
SETTLE_S: Final = 2.0


class Crowd:
    """The connections, and what went wrong with them."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port, self._requests = port, requests
        self.connections: list[Connection | None] = []
        self.wrong: Counter[str] = Counter()

    async def open(self, count: int) -> None:
        """Open `count` connections, and have each ask once."""
        self.connections = [None] * count
        await self._all(self._open_one)

    async def ask(self) -> None:
        """Have each ask once more."""
        await self._all(self._ask_one)

    def close(self) -> None:
        """Close all of them."""
        for connection in self.connections:
            if connection is not None:
                connection.close()

    async def _all(self, step: Callable[[int], Awaitable[None]]) -> None:
        numbers = iter(range(len(self.connections)))

        async def worker() -> None:
            for number in numbers:
                try:
                    await step(number)
                except (OSError, TimeoutError) as error:
                    self.wrong[f"{type(error).__name__}: {error}"[:200]] += 1

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def _open_one(self, number: int) -> None:
        self.connections[number] = await connect(self._port, f"127.0.0.{1 + number // PORTS}")
        await self._ask_one(number)

    async def _ask_one(self, number: int) -> None:
        connection = self.connections[number]
        if connection is None:
            raise ConnectionError("never opened")
        status = await connection.ask(self._requests[number % len(self._requests)])
        if status != 200:
            self.wrong[f"status {status}"] += 1


async def measure(pid: int, port: int, requests: Sequence[bytes], count: int, rest_s: float) -> tuple[list[int], Crowd]:
    """Resident memory before, after the first request of each, and after the second; and the connections."""
    warm_up = Crowd(port, requests)
    await warm_up.open(AT_ONCE)
    for _ in range(20):
        await warm_up.ask()
    warm_up.close()
    await asyncio.sleep(SETTLE_S)
    memory = [rss_bytes(pid)]
    crowd = Crowd(port, requests)
    try:
        for step, asking in (("opened", crowd.open(count)), ("asked again", crowd.ask())):
            began = time.monotonic()
            await asking
            took = time.monotonic() - began
            await asyncio.sleep(rest_s if step == "opened" else SETTLE_S)
            memory.append(rss_bytes(pid))
            grown = (memory[-1] - memory[0]) / count / 1024
            print(f"{step} {count} in {took:.1f} s: {open_files(pid)} files, {grown:.1f} KiB each", flush=True)
    finally:
        crowd.close()
    return memory, crowd


def main() -> int:
    """All of it; 0 if the promise is kept."""
    parser = build_arguments(__doc__)
    parser.add_argument("--connections", type=int)
    parser.add_argument("--rest", type=float)
    given = parser.parse_args()
    count = given.connections or (1_000 if given.quick else 10_000)
    rest_s = given.rest or (2.0 if given.quick else 20.0)
    require("nginx", "redis-server")
    build = of(given)
    about = machine() | {"build": build.name}
    with Rig() as rig:
        require_files(count)
        rig.start_service()
        rig.start_redis()
        settings = {"MAX_CONNECTIONS_PER_CLIENT": str(count + 100)}
        with rig.gateway(build, settings) as (pid, port):
            memory, crowd = asyncio.run(measure(pid, port, sales_requests(rig.tokens), count, rest_s))
    for what, number in crowd.wrong.most_common(10):
        print(f"{number} x {what}")
    kib = (max(memory) - memory[0]) / count / 1024
    kept = kib <= PROMISE_KIB and not crowd.wrong
    told = verdict("idle_connection", kib, "KiB", f"<= {PROMISE_KIB:g} KiB, {count} connections all answered", kept)
    save("idle", folder_of(parser, given), {"machine": about, "verdicts": [told], "connections": count, "rss": memory})
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
