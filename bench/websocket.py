"""Bridged WebSockets: memory of each, and processor time for each message, beside nginx as a plain WebSocket proxy.

    python bench/websocket.py [--connections 1000] [--seconds 5] [--pairs 3] [--quick] [--plain]

One client and one echo service on the load's core, and in turn the gateway and nginx between them: 50 connections, on
each one message of 200 bytes at a time, there and back. What counts is the processor time of the process between for
each message that passes it; load and service take about as much again, so that messages a second would measure them.
Then the memory of many open sockets: growth of the gateway's resident memory. `SSE_NEW_PER_SECOND`, which also bounds
new sockets, is overridden. Exits with 1 if a promise is broken, or a message is lost or changed.
"""

import asyncio
import base64
import hashlib
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from builds import build_arguments, of
from procfs import cpu_seconds, rss_bytes, worker_of
from rig import Rig, cores, folder_of, free_port, machine, require, save, verdict

PROMISE_KIB: Final = 45.0
PROMISE_MICROSECONDS: Final = 45.0
PATH: Final = "/api/v1/training/ws"
SIZE: Final = 200
AT_ONCE: Final = 50
SETTINGS: Final = {"SSE_NEW_PER_SECOND": "100000", "WS_MAX_SOCKETS": "20000", "WS_MAX_PER_USER": "1000"}
_KEY: Final = base64.b64encode(bytes(16))
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OUT: Final = bytes([0x82, 0x80 | 126]) + SIZE.to_bytes(2, "big") + bytes(4) + b"x" * SIZE
"""A message as a client sends it, under a mask of zeros."""
_BACK: Final = bytes([0x82, 126]) + SIZE.to_bytes(2, "big") + b"x" * SIZE
"""And as it comes back."""
NGINX: Final = """
daemon off; worker_processes 1; pid {folder}/ws.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://127.0.0.1:{service}; proxy_http_version 1.1; proxy_read_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
    }}
  }}
}}
"""


class Echo(asyncio.Protocol):
    """The service: gives back each message of the one size that is sent here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._data, self._open = transport, b"", False

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            self._open, self._data = True, rest
            self._transport.write(_answer(head))
        while len(self._data) >= len(_OUT) and self._data[:4] == _OUT[:4]:
            mask, payload = self._data[4:8], self._data[8 : len(_OUT)]
            pad = int.from_bytes(mask * (SIZE // 4), "big")
            plain = (int.from_bytes(payload, "big") ^ pad).to_bytes(SIZE, "big")
            self._data = self._data[len(_OUT) :]
            self._transport.write(_BACK[:4] + plain)


def _answer(head: bytes) -> bytes:
    if not head.startswith(b"GET " + PATH.encode()):
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    at = head.lower().find(b"sec-websocket-key: ") + 19
    key = head[at : at + len(fields[b"sec-websocket-key"])]
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    return b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept


class Client(asyncio.Protocol):
    """One socket of a user; while it is `busy` it sends the next message when the last is back."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rested: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.busy = False
        self.count = 0
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        lines = [f"GET {PATH} HTTP/1.1", "Host: gateway.example", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {_KEY.decode()}"]
        lines += [f"Authorization: Bearer {self._token}"]
        transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self.opened.done():
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if end and not head.startswith(b"HTTP/1.1 101 "):
                self.opened.set_exception(ConnectionError(head[:100].decode()))
            elif end:
                self._data = rest
                self.opened.set_result(None)
            return
        if self._data == b"\x89\x00":  # a ping
            self._transport.write(b"\x8a\x80" + bytes(4))
            self._data = b""
        elif len(self._data) >= len(_BACK):
            if self._data != _BACK:
                self.rested.set_exception(ConnectionError("a message that was not sent"))
            self._data = b""
            self.count += 1
            if self.busy:
                self._transport.write(_OUT)
            elif not self.rested.done():
                self.rested.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in (self.opened, self.rested):
            if not waiting.done():
                waiting.set_exception(ConnectionError("lost"))

    def start(self) -> None:
        self.busy = True
        self._transport.write(_OUT)

    def close(self) -> None:
        self._transport.abort()


async def opened(port: int, tokens: Sequence[str], count: int) -> list[Client]:
    """So many sockets, opened a few at a time."""
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for begin in range(0, count, AT_ONCE):
        batch = []
        for number in range(begin, min(begin + AT_ONCE, count)):
            _, client = await loop.create_connection(partial(Client, tokens[number % len(tokens)]), "127.0.0.1", port)
            batch.append(client)
        await asyncio.gather(*(client.opened for client in batch))
        clients += batch
    return clients


async def exchange(clients: Sequence[Client], seconds: float) -> int:
    """Have each send for so long; how many messages passed the process between, both ways counted."""
    for client in clients:
        client.count = 0
        client.start()
    await asyncio.sleep(seconds)
    for client in clients:
        client.busy = False
    await asyncio.wait_for(asyncio.gather(*(client.rested for client in clients)), 10)
    return 2 * sum(client.count for client in clients)


async def pace(service_port: int, pid: int, port: int, tokens: Sequence[str], seconds: float) -> dict[str, float]:
    """Microseconds of the process's time for each message, and messages a second."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", service_port)
    async with server:
        for part in (0.5, seconds):  # the first warms up
            clients = await opened(port, tokens, AT_ONCE)
            before, began = sum(cpu_seconds(pid)), time.monotonic()
            messages = await exchange(clients, part)
            spent, took = sum(cpu_seconds(pid)) - before, time.monotonic() - began
            for client in clients:
                client.close()
    return {"microseconds": spent / messages * 1e6, "messages_per_s": messages / took}


async def crowd(service_port: int, pid: int, port: int, tokens: Sequence[str], count: int) -> float:
    """KiB of each of so many open sockets, on each of which a message went there and back."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", service_port, backlog=1000)
    async with server:
        warm_up = await opened(port, tokens, AT_ONCE)
        await exchange(warm_up, 0.5)
        for client in warm_up:
            client.close()
        await asyncio.sleep(2)
        before = rss_bytes(pid)
        clients = await opened(port, tokens, count)
        await exchange(clients, 0.1)
        await asyncio.sleep(1)
        grown = rss_bytes(pid) - before
        for client in clients:
            client.close()
    return grown / count / 1024


def nginx(rig: Rig, service_port: int) -> tuple[AbstractContextManager[int], int]:
    """nginx before the service, and its port."""
    port = free_port()
    conf = rig.folder / "websocket.conf"
    conf.write_text(NGINX.format(folder=rig.folder, port=port, service=service_port))
    return rig.running("nginx-ws", ["nginx", "-c", str(conf)], port=port, core=cores()[0]), port


def main() -> int:
    """All of it; 0 if the promises are kept."""
    parser = build_arguments(__doc__)
    parser.add_argument("--connections", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--pairs", type=int)
    given = parser.parse_args()
    count = given.connections or (100 if given.quick else 1_000)
    seconds = given.seconds or (1.0 if given.quick else 5.0)
    pairs = given.pairs or (1 if given.quick else 3)
    require("nginx", "redis-server")
    build = of(given)
    about = machine() | {"build": build.name}
    service_port = free_port()
    settings = {"TRAINING_SERVICE_URL": f"http://127.0.0.1:{service_port}", "HEALTH_CHECK_INTERVAL": "3600", **SETTINGS}
    runs: list[dict[str, dict[str, float]]] = []
    with Rig() as rig:
        rig.start_redis()
        between, nginx_port = nginx(rig, service_port)
        with rig.gateway(build, settings) as (pid, port), between as master:
            worker = worker_of(master)
            for number in range(pairs):
                run = {
                    "gateway": asyncio.run(pace(service_port, pid, port, rig.tokens, seconds)),
                    "nginx": asyncio.run(pace(service_port, worker, nginx_port, rig.tokens, seconds)),
                }
                runs.append(run)
                shown = ", ".join(
                    f"{name} {found['microseconds']:.1f} µs and {found['messages_per_s']:,.0f}/s"
                    for name, found in run.items()
                )
                print(f"pair {number + 1}: {shown}", flush=True)
        with rig.gateway(build, settings) as (pid, port):
            kib = asyncio.run(crowd(service_port, pid, port, rig.tokens, count))
    cost, theirs = (statistics.median(run[name]["microseconds"] for run in runs) for name in ("gateway", "nginx"))
    print(f"for each message nginx takes {theirs:.1f} µs, the gateway {cost / theirs:.1f} times as much")
    told = [
        verdict("websocket_message", cost, "µs", f"<= {PROMISE_MICROSECONDS:g} µs", cost <= PROMISE_MICROSECONDS),
        verdict("websocket_connection", kib, "KiB", f"<= {PROMISE_KIB:g} KiB, {count} sockets", kib <= PROMISE_KIB),
    ]
    save("websocket", folder_of(parser, given), {"machine": about, "verdicts": told, "runs": runs, "kib": kib})
    return int(not all(one["kept"] for one in told))


if __name__ == "__main__":
    raise SystemExit(main())
