"""Run the gateway and its peers side by side, interleaved, and print throughput and latency.

    python bench/compare.py [--rounds 3] [--seconds 5] [--systems bakerygw,aiohttp,seed,haproxy] [--connections 50]

One core for the system under test, the other for nginx (the service: a fixed 213-byte JSON answer), Redis and wrk.
Needs nginx, wrk, redis-server and, for its peer, haproxy (Debian packages of these names); the Python peers need what
`bench/requirements.txt` lists. Every system verifies the same RS256 tokens of 200 users and limits each user, the
limit set out of reach. Prints one line for each run, then the median of the pairs' ratios against bakerygw.
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

HERE = Path(__file__).resolve().parent
USERS = 200
LIMIT = "1000000"
ANSWER = json.dumps({"id": 1, "product": "Pain au levain", "note": "x" * 164})

NGINX = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log stderr error;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  server {{
    listen 127.0.0.1:{port} backlog=2048; default_type application/json;
    location / {{ return 200 '{answer}'; }}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_tokens(directory: Path) -> tuple[str, Path]:
    """The public key in PEM and a file with one token a line."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    now = int(time.time())
    path = directory / "tokens"
    with path.open("w") as lines:
        for number in range(USERS):
            claims = {
                "user_id": f"user-{number}",
                "email": f"user-{number}@bakery.example",
                "tenant_id": f"tenant-{number % 40}",
                "tenant_role": "owner",
                "subscription": {"tier": "professional", "status": "active", "valid_until": "2099-12-31T23:59:59Z"},
                "tenant_access": [],
                "exp": now + 86_400,
                "iat": now - 5,
                "iss": "bakery-auth",
            }
            lines.write(jwt.encode(claims, key, algorithm="RS256") + "\n")
    (directory / "key.pem").write_bytes(public)
    return public.decode(), path


@contextmanager
def running(command: list[str], core: int, environ: dict[str, str], port: int, log: Path) -> Iterator[int]:
    """A process pinned to a core, from when it accepts connections on `port` until the end of the block."""
    pinned = ["taskset", "-c", str(core), *command]
    with log.open("ab") as output:
        process = subprocess.Popen(pinned, env={**os.environ, **environ}, stdout=output, stderr=output, cwd=log.parent)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def system_command(  # noqa: PLR0917
    name: str, port: int, upstream: int, redis: int, pem: str, directory: Path
) -> tuple[list[str], dict[str, str]]:
    """How to start one system, with its environment."""
    environ = {
        "JWT_PUBLIC_KEY": pem,
        "JWT_PUBLIC_KEY_FILE": str(directory / "key.pem"),
        "RATE_LIMIT_REQUESTS": LIMIT,
        "LOG_FILE": str(directory / f"{name}.requests.log"),
    }
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    if name == "bakerygw":
        environ |= {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "ADMIN_PORT": "0",
            "ADMIN_TOKEN": "bench",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(redis),
            "SALES_SERVICE_URL": f"http://127.0.0.1:{upstream}",
            "DRAIN_GRACE_SECONDS": "0",
        }
        del environ["JWT_PUBLIC_KEY_FILE"]
        return [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "bakerygw"], environ
    if name == "haproxy":
        environ |= {"PEER_PORT": str(port), "UPSTREAM_ADDR": f"127.0.0.1:{upstream}"}
        return ["haproxy", "-db", "-f", str(HERE / "peers" / "haproxy.cfg")], environ
    environ |= {"UPSTREAM": f"http://127.0.0.1:{upstream}", "REDIS_URL": f"redis://127.0.0.1:{redis}/0"}
    if name == "seed":
        served = ["seed_stack:app", "--app-dir", str(HERE / "peers"), "--port", str(port), "--no-access-log"]
        return [python, "-m", "uvicorn", *served], environ
    return [python, str(HERE / "peers" / f"{name}_stack.py"), str(port)], environ


def load(port: int, tokens: Path, connections: int, seconds: float) -> dict[str, float]:
    """One run of wrk: requests per second, latencies in milliseconds, errors."""
    wrk = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    done = subprocess.run(
        [*wrk, "-s", str(HERE / "tokens.lua"), f"http://127.0.0.1:{port}"],
        env={**os.environ, "TOKENS": str(tokens)},
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0}

    def percentile(name: str) -> float:
        found = re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", text)
        return float(found[1]) * units[found[2]] if found else float("nan")

    bad = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    bad += sum(int(n) for line in re.findall(r"Socket errors: (.*)", text) for n in re.findall(r"\d+", line))
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    return {"rps": float(rate[1]) if rate else 0.0, "p50": percentile("50"), "p99": percentile("99"), "errors": bad}


def measure(options: argparse.Namespace, directory: Path) -> dict[str, list[dict[str, float]]]:
    """All rounds; every system is started anew in each, so that none profits from its age."""
    pem, tokens = make_tokens(directory)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.systems}
    upstream, redis = free_port(), free_port()
    conf = directory / "nginx.conf"
    conf.write_text(NGINX.format(dir=directory, port=upstream, answer=ANSWER))
    with ExitStack() as stack:
        stack.enter_context(running(["nginx", "-c", str(conf)], 1, {}, upstream, directory / "nginx.log"))
        redis_command = [
            "redis-server",
            "--port",
            str(redis),
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
        ]
        stack.enter_context(running(redis_command, 1, {}, redis, directory / "redis.log"))
        for number in range(options.rounds):
            for name in options.systems:
                port = free_port()
                command, environ = system_command(name, port, upstream, redis, pem, directory)
                with running(command, 0, environ, port, directory / f"{name}.log"):
                    check(port, tokens)
                    load(port, tokens, options.connections, options.warm_up)
                    result = load(port, tokens, options.connections, options.seconds)
                results[name].append(result)
                print(
                    f"round {number + 1} {name:9}",
                    *(f"{key} {value:9.2f}" for key, value in result.items()),
                    flush=True,
                )
    return results


def check(port: int, tokens: Path) -> None:
    """One request must pass and bring the service's answer."""
    token = tokens.read_text().split("\n", 1)[0]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/sales/1", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        if answer.status != 200 or answer.read().decode() != ANSWER:
            raise SystemExit("the system under test does not give the service's answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm-up", type=float, default=2)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument(
        "--systems", type=lambda text: text.split(","), default=["bakerygw", "aiohttp", "seed", "haproxy"]
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = measure(options, Path(directory))
    ours = results.get("bakerygw", [])
    for name, runs in results.items():
        rps = statistics.median(run["rps"] for run in runs)
        p99 = statistics.median(run["p99"] for run in runs)
        ratio = (
            statistics.median(a["rps"] / b["rps"] for a, b in zip(ours, runs, strict=True)) if ours else float("nan")
        )
        print(f"{name:9} median {rps:8.0f} requests/s, p99 {p99:7.2f} ms; bakerygw has {ratio:.2f} x its throughput")


if __name__ == "__main__":
    main()
