"""A stand-in for Nominatim: answers searches as it does, misbehaves as told, and remembers who asked when."""

import gzip
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

STOCK_AGENTS = ("python", "curl", "treq", "twisted", "mozilla")
"""The usage policy wants an agent that identifies the application, none of a library."""

PACKED = gzip.compress(b" " * 2_000_000 + b"[]")
Behaviour = Callable[["Handler"], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One search as it arrived."""

    at: float
    """Seconds of the monotonic clock."""
    params: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""


def place(query: str, **changes: Any) -> dict[str, Any]:
    """A result as `format=jsonv2` with `addressdetails=1` has it."""
    return {
        "place_id": 116_214_291,
        "licence": "Data © OpenStreetMap contributors, ODbL 1.0. http://osm.org/copyright",
        "osm_type": "way",
        "osm_id": 46_240_148,
        "lat": "41.4036299",
        "lon": "2.1743558",
        "category": "shop",
        "type": "bakery",
        "place_rank": 30,
        "importance": 0.6573,
        "addresstype": "shop",
        "name": query,
        "display_name": f"{query}, Barcelona, España",
        "address": {"shop": query, "city": "Barcelona", "ISO3166-2-lvl4": "ES-CT", "country_code": "es"},
        "boundingbox": ["41.4034", "41.4038", "2.1741", "2.1746"],
        **changes,
    }


class NominatimServer:
    """The stand-in on a loopback port. As a context manager it answers inside."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.behave: Behaviour | None = None
        """What is done instead of answering; assign one of the functions below."""
        self.released = threading.Event()
        """Ends whatever hangs."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._server.nominatim = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def queries(self) -> list[str]:
        """What was asked for, in order."""
        return [asked.params.get("q", "") for asked in self.asked]

    def gaps(self) -> list[float]:
        """Seconds between each search and the next."""
        return [after.at - before.at for before, after in pairwise(self.asked)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    @property
    def nominatim(self) -> NominatimServer:
        return self.server.nominatim  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """A search."""
        at = time.monotonic()
        parts = urlsplit(self.path)
        params = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.nominatim.asked.append(Asked(at=at, params=params, headers=headers))
        agent = headers.get("user-agent", "")
        if not agent or agent.lower().startswith(STOCK_AGENTS):
            self.send(403, b"<html>Blocked: no valid User-Agent</html>", "text/html")
        elif parts.path != "/search":
            self.send(404, b"{}")
        elif self.nominatim.behave is not None:
            self.nominatim.behave(self)
        else:
            self.answer(params)

    def answer(self, params: dict[str, str]) -> None:
        """What is on the map: everything but what is called nowhere."""
        query = params.get("q") or params.get("street", "")
        found = [] if "nowhere" in query.lower() else [place(query)]
        self.send(200, json.dumps(found).encode())

    def send(self, status: int, body: bytes, kind: str = "application/json", **fields: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **fields}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def refuses(status: int, **fields: str) -> Behaviour:
    """An answer without places, e.g. 429 with `Retry_After`."""
    return lambda handler: handler.send(status, b"<html>Usage limit reached</html>", "text/html", **fields)


def redirects(where: str) -> Behaviour:
    """To somewhere else."""
    return lambda handler: handler.send(302, b"", Location=where)


def says(body: bytes, **fields: str) -> Behaviour:
    """A 200 with this body."""
    return lambda handler: handler.send(200, body, **fields)


def hangs(handler: Handler) -> None:
    """Nothing at all, until the stand-in ends."""
    handler.nominatim.released.wait(60)
    handler.close_connection = True


def cuts(handler: Handler) -> None:
    """The beginning of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b'[{"display_name":"Bar')
    handler.close_connection = True


def floods(handler: Handler) -> None:
    """Ten megabytes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "10000000")
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b"[" * 100_000)
    except OSError:
        handler.close_connection = True


def rambles(handler: Handler) -> None:
    """Ten megabytes of head fields."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    try:
        for _ in range(1000):
            handler.wfile.write((b"X-More: " + b"x" * 1000 + b"\r\n") * 10)
        handler.send(200, b"[]")
    except OSError:
        handler.close_connection = True


def packs(handler: Handler) -> None:
    """A little gzip of much, which was not asked for."""
    handler.send(200, PACKED, Content_Encoding="gzip")
