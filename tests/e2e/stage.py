"""A gateway with recording services behind it, shared by the tests of a module, and answers as they came."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis

from tests.e2e.calling import until
from tests.e2e.harness import Environment, Gateway, Recorded, RecordingUpstream
from tests.e2e.wire import field_values, head_end, unchunked
from tests.minting import Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

SIGNALS = b"bakerygw:signals"
"""The channel by which instances hear each other."""
Pairs = Iterable[tuple[bytes, bytes]]

NO_LIMITS = {
    "RATE_LIMIT_REQUESTS": "10000000",
    "AUTH_RATE_LIMIT_REQUESTS": "10000000",
    "TENANT_MAX_CONCURRENT": "10000000",
}


class Received:
    """The first final answer in `raw`; `interim` holds what came before it, `rest` what came behind."""

    def __init__(self, raw: bytes, *, to_head: bool = False) -> None:
        start = 0
        while raw[start:].startswith(b"HTTP/1.1 1"):
            start = _end_of_head(raw, start)
        self.interim = raw[:start]
        body_start = _end_of_head(raw, start)
        self.head = raw[start:body_start]
        self.status = int(self.head.split(b" ", 2)[1])
        self.chunked = bool(field_values(self.head, b"transfer-encoding"))
        self.raw_body, self.rest = self._split(raw[body_start:], to_head)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields in order, names as sent."""
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name, value[1:]) for name, _, value in (line.partition(b":") for line in lines)]

    @property
    def body(self) -> bytes:
        """The body without its framing."""
        return unchunked(self.raw_body) if self.chunked else self.raw_body

    def values(self, name: str) -> list[bytes]:
        """The values of one field, by its name in any case."""
        return field_values(self.head, name.encode())

    def _split(self, after: bytes, to_head: bool) -> tuple[bytes, bytes]:
        if to_head or self.status in (204, 304):
            return b"", after
        if self.chunked:
            end = after.find(b"0\r\n\r\n") if after.startswith(b"0\r\n\r\n") else after.find(b"\r\n0\r\n\r\n") + 2
            return after[: end + 5], after[end + 5 :]
        lengths = self.values("content-length")
        length = int(lengths[0]) if lengths else len(after)
        return after[:length], after[length:]


class Stage:
    """One gateway; its services by name; and a good token for it."""

    def __init__(self, gateway: Gateway, services: dict[str, RecordingUpstream], issuer: Issuer) -> None:
        self.gateway, self.services, self.issuer = gateway, services, issuer
        self.token = issuer.token()
        self.base = b"/api/v1/sales"
        """Where the sales service is reached."""
        self._moves = 0

    @property
    def upstream(self) -> RecordingUpstream:
        """The sales service."""
        return self.services["sales"]

    def head(self, target: bytes = b"", *fields: tuple[bytes, bytes], method: bytes = b"GET") -> bytes:
        """A request's head with Host and a good token, these fields behind them."""
        lines = [method + b" " + (target or self.base + b"/x") + b" HTTP/1.1", b"Host: gateway.example"]
        lines += [b"Authorization: Bearer " + self.token.encode(), *(name + b": " + value for name, value in fields)]
        return b"\r\n".join([*lines, b"", b""])

    def ask(self, data: bytes | list[bytes], timeout_s: float = PATIENCE_S, **how: Any) -> Received:
        """The answer to exactly these bytes."""
        first = data if isinstance(data, bytes) else data[0]
        return Received(self.gateway.raw(data, timeout_s, **how), to_head=first.startswith(b"HEAD "))

    def get(self, target: bytes = b"", *fields: tuple[bytes, bytes]) -> Received:
        """The answer to a good GET."""
        return self.ask(self.head(target, *fields))

    def arrived(self, fenced: RecordingUpstream | None = None) -> list[Recorded]:
        """Every request that has reached the sales service, when a later one has for certain overtaken none."""
        service = fenced or self.upstream
        fence = self.base + b"/fence"
        assert self.get(fence).status == 200
        return [request for request in service.requests if request.target != fence]

    def reset(self) -> None:
        """Forget what the last test did with the services."""
        for service in self.services.values():
            service.reset()

    def move(self) -> None:
        """Reach the sales service by the next of its other names, whose breaker has seen no failure yet."""
        self._moves += 1
        self.base = b"/api/v1/case-%d" % self._moves


@contextmanager
def staged(
    issuer: Issuer, env: Environment | None = None, *, services: Iterable[str] = ("sales",), moves: int = 0
) -> Iterator[Stage]:
    """A running gateway with a recording service for each name, without limits to speak of.

    `moves`: how often its stage can `move`.
    """
    with ExitStack() as running:
        recorders = {name: running.enter_context(RecordingUpstream()) for name in services}
        urls = {f"{name.upper()}_SERVICE_URL": recorder.url for name, recorder in recorders.items()}
        for number in range(moves):
            urls[f"CASE_{number + 1}_SERVICE_URL"] = recorders["sales"].url
        settings = {"JWT_PUBLIC_KEY": issuer.public_pem, **NO_LIMITS, **urls, **(env or {})}
        yield Stage(running.enter_context(Gateway(settings)), recorders, issuer)


@contextmanager
def paired(
    issuer: Issuer, store: RedisServer, env: Environment, *, second: Environment | None = None
) -> Iterator[tuple[Gateway, Gateway]]:
    """Two instances over one Redis, each of which hears the other; `second` is for the second alone."""
    settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "REDIS_HOST": store.host, "REDIS_PORT": str(store.port), **env}
    with Gateway(settings) as one, Gateway({**settings, **(second or {})}) as two:
        with redis.Redis(store.host, store.port) as client:
            until(lambda: dict(client.pubsub_numsub(SIGNALS))[SIGNALS] == 2)
        yield one, two


def _end_of_head(raw: bytes, start: int) -> int:
    end = head_end(raw, start)
    assert end is not None, f"no whole head in {raw[start:]!r}"
    return end
