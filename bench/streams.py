"""Alerts over SSE: memory of open streams, delay of a fan-out, its cost beside nginx with nchan, and HTTP meanwhile.

    python bench/streams.py [--streams 10000] [--seconds 20] [--rounds 3] [--quick] [--plain]

One tenant has 1,000 of the streams and gets five alerts a second; all others idle. Then the same events go to 1,000
streams of the gateway and of nginx with the nchan module (Debian's `libnginx-mod-nchan`), by turns; and requests at
30 % of the gateway's capacity are timed without and with alerts going out. Exits with 1 if a promise is broken: 20 KiB
for each stream, 250 ms (p99) until an alert is with all, 0.6 times nchan's deliveries for the same time on the
processor, 5 ms added to the p99 of requests.

Settings that differ from the defaults are those of `SETTINGS`: bounds on streams, which all come from one machine here.
"""

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import wrk
from builds import Build, build_arguments, of
from client import Load, Planned, paced_load
from procfs import cpu_seconds, rss_bytes, worker_of
from readers import HttpPublisher, Readers, RedisPublisher
from rig import (
    Rig,
    Unusable,
    folder_of,
    free_port,
    http_request,
    machine,
    require,
    require_files,
    sales_requests,
    save,
    verdict,
)

PROMISE_KIB: Final = 20.0
PROMISE_MS: Final = 250.0
PROMISE_RATIO: Final = 0.6
PROMISE_ADDED_MS: Final = 5.0
FANNED: Final = 1_000
"""Streams of the tenant that gets alerts."""
EVERY_S: Final = 0.2
SHARE: Final = 0.3
"""Of its capacity, what the gateway has to do while requests are timed."""
CONNECTIONS: Final = 50
MODULE: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
SETTINGS: Final = {
    "SSE_MAX_PER_USER": "20000",
    "SSE_MAX_PER_TENANT": "20000",
    "SSE_MAX_STREAMS": "20000",
    "SSE_NEW_PER_SECOND": "20000",
    "MAX_CONNECTIONS_PER_CLIENT": "20100",
}

NCHAN: Final = """
load_module {module};
daemon off; worker_processes 1; pid {folder}/nchan.pid; error_log stderr error;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; client_body_temp_path {folder}/nb;
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location /sub {{ nchan_subscriber eventsource; nchan_channel_id $arg_id; nchan_subscriber_first_message newest;
      nchan_eventsource_event alert; }}
    location /pub {{ nchan_publisher; nchan_channel_id $arg_id; nchan_message_buffer_length 100; }}
    location / {{ return 200; }}
  }}
}}
"""


def stream_request(token: str) -> bytes:
    """What opens a stream at the gateway."""
    return http_request("GET", "/api/v1/alerts/stream", token)


def fanned_out(rig: Rig, number: int) -> list[bytes]:
    """Requests for streams of the tenant that gets alerts."""
    return [stream_request(rig.tokens[40 * (it % 5)]) for it in range(number)]


def idling(rig: Rig, number: int) -> list[bytes]:
    """Requests for streams of the 39 other tenants."""
    others = [token for at, token in enumerate(rig.tokens) if at % 40]
    return [stream_request(others[it % len(others)]) for it in range(number)]


def many(rig: Rig, build: Build, streams: int, seconds: float) -> dict[str, float]:
    """Memory for each of many streams, and the delay of alerts to a thousand of them."""
    with rig.gateway(build, SETTINGS) as (pid, port):
        warm = Readers(port)
        warm.open(fanned_out(rig, 64))
        publish = RedisPublisher(rig.redis_port, "tenant-0")
        warm.read(2.0, publish, 0.02)
        warm.close()
        time.sleep(2.0)
        before = rss_bytes(pid)
        readers = Readers(port)
        began = time.monotonic()
        fanned = min(FANNED, streams // 10)
        readers.open(fanned_out(rig, fanned))
        readers.open(idling(rig, streams - fanned))
        took = time.monotonic() - began
        readers.read(min(20.0, seconds))
        kib = (rss_bytes(pid) - before) / streams / 1024
        print(f"{streams} streams in {took:.1f} s, {kib:.1f} KiB each", flush=True)
        readers.forget()
        sent = readers.read(seconds, publish, EVERY_S)
        readers.drain()
        kib = max(kib, (rss_bytes(pid) - before) / streams / 1024)
        delays = {name: readers.percentile(share) for name, share in (("p50", 0.5), ("p99", 0.99), ("worst", 1.0))}
        missing = sent * fanned - len(readers.delays_ms)
        print(f"{sent} alerts to {fanned}: " + ", ".join(f"{name} {it:.1f} ms" for name, it in delays.items()))
        found = {"kib": kib, "missing": float(missing), "lost": float(readers.lost), **delays}
        readers.close()
    return found


@contextlib.contextmanager
def nchan(rig: Rig) -> Iterator[tuple[int, int]]:
    """nginx with nchan: the process id of its worker, and its port."""
    port = free_port()
    conf = rig.folder / "nchan.conf"
    conf.write_text(NCHAN.format(module=MODULE, folder=rig.folder, port=port))
    with rig.running("nchan", ["nginx", "-c", str(conf)], port=port) as pid:
        yield worker_of(pid), port


def cost(pid: int, readers: Readers, publish: Callable[[], None], seconds: float) -> float:
    """Microseconds on the processor for each delivery. Raises `Unusable` if one is missing."""
    readers.read(1.0, publish, EVERY_S)
    readers.drain(0.5)
    readers.forget()
    before = sum(cpu_seconds(pid))
    sent = readers.read(seconds, publish, EVERY_S)
    readers.drain(0.5)
    spent = sum(cpu_seconds(pid)) - before
    if len(readers.delays_ms) != sent * len(readers):
        raise Unusable(f"{sent} alerts to {len(readers)} streams, and {len(readers.delays_ms)} deliveries")
    return spent / len(readers.delays_ms) * 1e6


def beside(rig: Rig, build: Build, rounds: int, seconds: float) -> dict[str, list[float]]:
    """The cost of a delivery at both, by turns."""
    found: dict[str, list[float]] = {"bakerygw": [], "nchan": []}
    with rig.gateway(build, SETTINGS) as (pid, port), nchan(rig) as (nchan_pid, nchan_port):
        ours, theirs = Readers(port), Readers(nchan_port)
        ours.open(fanned_out(rig, FANNED))
        theirs.open([b"GET /sub?id=1 HTTP/1.1\r\nHost: nchan\r\nAccept: text/event-stream\r\n\r\n"] * FANNED)
        to_ours, to_theirs = RedisPublisher(rig.redis_port, "tenant-0"), HttpPublisher(nchan_port)
        for _ in range(rounds):
            found["bakerygw"].append(cost(pid, ours, to_ours, seconds))
            found["nchan"].append(cost(nchan_pid, theirs, to_theirs, seconds))
            print(f"a delivery: {found['bakerygw'][-1]:.1f} µs, nchan's {found['nchan'][-1]:.1f} µs", flush=True)
        ours.close()
        theirs.close()
    return found


def meanwhile(rig: Rig, build: Build, seconds: float, rounds: int) -> dict[str, Any]:
    """The p99 of requests at a share of the capacity, without and with alerts to a thousand streams.

    Those streams are not read meanwhile, which would keep the load's own core from reading answers; what they are owed
    lies in the kernel, and is counted afterwards.
    """
    with rig.gateway(build, SETTINGS) as (_, port):
        requests = sales_requests(rig.tokens)
        plan = itertools.cycle(Planned(request=request, status=200) for request in requests)
        full = wrk.load(port, wrk.write_requests(rig.folder / "requests", requests), connections=50, seconds=4)
        load = Load(port=port, rate=full["rps"] * SHARE, connections=CONNECTIONS)
        readers = Readers(port)
        readers.open(fanned_out(rig, FANNED))
        publish = RedisPublisher(rig.redis_port, "tenant-0")
        quiet, busy = [], []
        for _ in range(rounds):
            quiet.append(asyncio.run(_timed(load, plan, seconds, None)))
            sent = publish.number
            busy.append(asyncio.run(_timed(load, plan, seconds, publish)))
            readers.forget()
            readers.drain()
            if len(readers.delays_ms) != (publish.number - sent) * FANNED:
                raise Unusable("not every alert arrived")
        readers.close()
    print(
        f"{load.rate:.0f} requests/s: p99 {statistics.median(quiet):.1f} ms, with alerts {statistics.median(busy):.1f}"
    )
    return {"rate": load.rate, "quiet_ms": quiet, "busy_ms": busy}


async def _timed(load: Load, plan: Iterator[Planned], seconds: float, publish: Callable[[], None] | None) -> float:
    """The p99 of a paced run, in ms. Raises `Unusable` for a wrong answer."""
    running = asyncio.ensure_future(paced_load(load, plan, seconds=seconds))
    while publish is not None and not running.done():
        publish()
        await asyncio.sleep(EVERY_S)
    tally = await running
    if tally.wrong:
        raise Unusable(f"wrong answers: {tally.wrong}")
    return tally.percentile(0.99)


def main() -> int:
    """All of it; 0 if every promise is kept."""
    parser = build_arguments(__doc__)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    streams = given.streams or (1_000 if given.quick else 10_000)
    seconds = given.seconds or (3.0 if given.quick else 20.0)
    rounds = given.rounds or (1 if given.quick else 3)
    require("nginx", "redis-server", "wrk")
    if not MODULE.exists():
        raise Unusable("nginx has no nchan module\nOn Debian or Ubuntu: sudo apt install libnginx-mod-nchan")
    build = of(given)
    about = machine() | {"build": build.name}
    with Rig() as rig:
        require_files(streams)
        rig.start_service()
        rig.start_redis()
        crowd = many(rig, build, streams, seconds)
        costs = beside(rig, build, rounds, seconds / 2)
        http = meanwhile(rig, build, seconds / 2, rounds)
    ratio = statistics.median(b / a for a, b in zip(costs["bakerygw"], costs["nchan"], strict=True))
    added = statistics.median(b - a for a, b in zip(http["quiet_ms"], http["busy_ms"], strict=True))
    whole = not crowd["missing"] and not crowd["lost"]
    verdicts = [
        verdict("stream_memory", crowd["kib"], "KiB", f"<= {PROMISE_KIB:g} KiB", crowd["kib"] <= PROMISE_KIB),
        verdict("fan_out_p99", crowd["p99"], "ms", f"<= {PROMISE_MS:g} ms, all", whole and crowd["p99"] <= PROMISE_MS),
        verdict("delivery_to_nchan", ratio, "x", f">= {PROMISE_RATIO:g} x", ratio >= PROMISE_RATIO),
        verdict("fan_out_beside_http", added, "ms", f"<= {PROMISE_ADDED_MS:g} ms", added <= PROMISE_ADDED_MS),
    ]
    result = {"machine": about, "verdicts": verdicts, "streams": crowd, "costs": costs, "http": http}
    save("streams", folder_of(parser, given), result | {"settings": SETTINGS})
    return int(not all(it["kept"] for it in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
