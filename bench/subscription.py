"""What the check of a subscription costs: the time that it takes, and what it asks of others, which is nothing.

    python bench/subscription.py [--requests 2000] [--quick] [--plain]

The check itself is timed in a process of the build, in time of its core: each kind of subscription, and a tier, over
and over; the figure is the time within which 999 of 1,000 checks are over. Then a gateway with a real Redis and a
tenant service that counts its callers gets requests with tokens that carry a subscription. Exits with 1 if a check
takes a millisecond, if the tenant service is asked anything, or if Redis gets more than one call for a request.
"""

import json
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from builds import Build, build_arguments, of
from client import parse_answer
from rig import Rig, cores, folder_of, machine, require, sales_requests, save, verdict

PROMISE_MS: Final = 1.0
WARM_UP: Final = 200
"""Requests before those that are counted: each user's first one reads the flags."""
CHECKS: Final = """
import json, sys, time
from bakerygw.core.claims import Subscription
from bakerygw.core.problem import Refused
from bakerygw.core.tenancy import check_subscription, check_tier

NOW = 1_800_000_000.0
KINDS = {
    "active": Subscription(tier="professional", status="active", valid_until=NOW + 86_400),
    "in grace": Subscription(tier="professional", status="active", valid_until=NOW - 86_400),
    "past due": Subscription(tier="professional", status="past_due", valid_until=NOW + 86_400),
    "expired": Subscription(tier="professional", status="active", valid_until=NOW - 30 * 86_400),
    "cancelled": Subscription(tier="professional", status="canceled", valid_until=NOW + 86_400),
}
clock, found = time.thread_time_ns, {}  # of the core: who else uses it is no matter here
for kind, subscription in KINDS.items():
    times = []
    for _ in range(int(sys.argv[1])):
        began = clock()
        try:
            check_subscription(subscription, NOW, 7)
            check_tier(subscription.tier, "professional")
        except Refused:
            pass
        times.append(clock() - began)
    times.sort()
    found[kind] = {"p50": times[len(times) // 2] / 1e6, "p99.9": times[len(times) * 999 // 1000] / 1e6}
print(json.dumps(found))
"""


def checks(build: Build, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one check, by the kind of subscription."""
    command = ["taskset", "-c", str(cores()[0]), str(build.python), "-c", CHECKS, str(count)]
    told = subprocess.run(command, env={**build.environ}, cwd="/", capture_output=True, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(told.stdout)
    return found


class TenantService:
    """Counts who asks it anything but its health."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/health":
                    service.asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "TenantService":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def calls_of(stats: str) -> dict[str, int]:
    """How often each command was called, of what Redis answers to `INFO commandstats`."""
    lines = (line.partition(":") for line in stats.splitlines() if line.startswith("cmdstat_"))
    return {name.removeprefix("cmdstat_"): int(rest.partition("=")[2].partition(",")[0]) for name, _, rest in lines}


def redis_calls(port: int) -> dict[str, int]:
    """How often Redis has been asked what so far."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"INFO commandstats\r\n")
        data = b""
        while not data.endswith(b"\r\n") or len(data) < 16 or not _whole(data):
            data += connection.recv(65_536)
    return calls_of(data.decode())


def _whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n")
    return len(body) >= int(head[1:]) + 2


def ask(port: int, requests: Sequence[bytes], count: int) -> int:
    """Send so many requests, one after the other; how many were not answered with 200."""
    wrong = 0
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        for number in range(count):
            connection.sendall(requests[number % len(requests)])
            data, answer = b"", None
            while answer is None:
                more = connection.recv(65_536)
                if not more:
                    raise ConnectionError("the gateway closed the connection")
                data += more
                answer = parse_answer(data)
            wrong += answer[0] != 200
    return wrong


def counted(before: Mapping[str, int], after: Mapping[str, int], count: int) -> dict[str, float]:
    """Calls of each command for a request; what an instance does by itself, once in a while, rounds to nothing."""
    return {name: (after[name] - before.get(name, 0)) / count for name in after if name not in ("info", "ping")}


def main() -> int:
    """All of it; 0 if every promise is kept."""
    parser = build_arguments(__doc__)
    parser.add_argument("--requests", type=int)
    given = parser.parse_args()
    count = given.requests or (400 if given.quick else 2_000)
    require("nginx", "redis-server")
    build = of(given)
    about: dict[str, Any] = machine() | {"build": build.name}
    times = checks(build, 20_000 if given.quick else 200_000)
    for kind, its in times.items():
        print(f"{kind}: {its['p50'] * 1000:.2f} us, 999 of 1,000 within {its['p99.9'] * 1000:.2f} us", flush=True)
    with Rig() as rig, TenantService() as tenant:
        rig.start_service()
        rig.start_redis()
        requests = sales_requests(rig.tokens)
        with rig.gateway(build, {"TENANT_SERVICE_URL": tenant.url}) as (_, port):
            wrong = ask(port, requests, max(WARM_UP, 2 * len(requests)))
            before = redis_calls(rig.redis_port)
            wrong += ask(port, requests, count)
            commands = counted(before, redis_calls(rig.redis_port), count)
    print(f"{count} requests, calls for each: { {name: round(it, 3) for name, it in commands.items() if it > 0.001} }")
    slowest = max(its["p99.9"] for its in times.values())
    scripts = commands.get("evalsha", 0.0) + commands.get("eval", 0.0)
    reads = commands.get("get", 0.0)
    told = [
        verdict("subscription_check", slowest, "ms", f"<= {PROMISE_MS:g} ms", slowest <= PROMISE_MS),
        verdict("subscription_calls", len(tenant.asked), "calls", "0 calls", not tenant.asked and not wrong),
        verdict("subscription_redis", scripts, "calls", "<= 1 call", 0 < scripts <= 1 and reads <= 1 and not wrong),
    ]
    result = {"machine": about, "verdicts": told, "times": times, "commands": commands, "requests": count}
    save("subscription", folder_of(parser, given), result)
    return int(not all(it["kept"] for it in told))


if __name__ == "__main__":
    raise SystemExit(main())
