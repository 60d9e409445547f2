"""A fuzzed gateway process: streams of clients on one side, rogue services on the other, for so many seconds."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.e2e.harness import Gateway
from tests.e2e.stage import NO_LIMITS
from tests.fuzz.clients import Client
from tests.fuzz.services import FENCE, Record, Services
from tests.fuzz.streams import Shape, stream
from tests.minting import Issuer

SOUND, ROGUES, WORKERS = 4, 40, 6
"""Services of each kind, many rogues, so that a gateway that ejects failing ones still asks some."""
MAX_BODY = 2000
"""Below the largest bodies, so that the cap is met."""
SETTLES_S = 30.0
"""Far longer than an idle connection to a service is kept."""


@dataclass(kw_only=True)
class Finding:
    """What a run came to."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Each with the seed and number that make its case again."""


class Fuzzed:
    """A gateway with its services."""

    def __init__(self, gateway: Gateway, record: Record, token: bytes, seed: int) -> None:
        self.gateway, self.record, self._token, self._seed = gateway, record, token, seed

    def run(self, seconds: float) -> Finding:
        """Play cases until the time is over."""
        found = Finding()
        ends = time.monotonic() + seconds
        workers = [threading.Thread(target=self._work, args=(number, ends, found)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        found.faults += self.record.faults
        return found

    def _work(self, worker: int, ends: float, found: Finding) -> None:
        number = worker
        while time.monotonic() < ends and len(found.faults) < 20:
            try:
                found.faults += self.play(number, found.statuses)
            except Exception as error:
                found.faults.append(f"case {self._seed}:{number}: {error!r}")
            found.cases += 1
            number += WORKERS

    def play(self, number: int, statuses: Counter[int]) -> list[str]:
        """One case; what was wrong with it."""
        random = Random(f"{self._seed}:{number}")
        rogue = random.random() < 0.35
        service = f"rogue-{random.randrange(ROGUES)}" if rogue else f"sound-{random.randrange(SOUND)}"
        base = f"/api/v1/{service}/f{number}".encode()
        shape = Shape(
            targets=lambda at: base + b"-%d" % at,
            lines=(b"Host: bakery.example", b"Authorization: Bearer {T}"),
            substitute=(b"{T}", self._token),
        )
        sent = stream(random, shape)
        client = Client(self.gateway.port, self.record, statuses)
        client.play(random, sent, rogue=rogue)
        if number % 20 == 0:
            self._fence(client)
        shown = sent.data.replace(self._token, b"{T}")[:2000]
        return [f"case {self._seed}:{number}: {fault[:2000]}\n{shown!r}" for fault in client.faults]

    def _fence(self, client: Client) -> None:
        """Whatever was sent before, a good request of another client is answered."""
        head = b"GET /api/v1/sound-0%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (FENCE, self._token)
        answer = self.gateway.raw(head)
        if not (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"fenced")):
            client.faults.append(f"a good request is answered: {answer!r}")

    def open_files(self) -> int:
        """Descriptors that the process holds."""
        return len(list(Path(f"/proc/{self.gateway.pid}/fd").iterdir()))

    def metric(self, name: str) -> float:
        """The sum of all series of one metric."""
        with self.gateway.admin() as admin:
            lines = admin.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

    def untold(self) -> set[str]:
        """The requests in the log that have begun, and not ended."""
        began, done = (
            {event["request_id"] for event in self.gateway.events(f"request.{name}")} for name in ("start", "done")
        )
        return began - done

    def settle(self) -> None:
        """Wait until no connection to a client or service is left. AssertionError if some are."""
        ends = time.monotonic() + SETTLES_S
        while self.metric("gateway_connections") or self.metric("gateway_upstream_pool_connections"):
            assert time.monotonic() < ends, "connections are left over"
            time.sleep(0.1)


@contextmanager
def fuzzed(seed: int, issuer: Issuer) -> Iterator[Fuzzed]:
    """A running gateway before sound and rogue services; at its end its log must be free of faults."""
    record = Record()
    with (
        Services(SOUND, record, seed=seed, rogue=False) as sound,
        Services(ROGUES, record, seed=seed, rogue=True) as rogues,
    ):
        urls = {f"SOUND_{at}_SERVICE_URL": url for at, url in enumerate(sound.urls)}
        urls |= {f"ROGUE_{at}_SERVICE_URL": url for at, url in enumerate(rogues.urls)}
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "UPSTREAM_FIRST_BYTE_TIMEOUT": "0.4",
            "UPSTREAM_IDLE_TIMEOUT": "0.4",
            "UPSTREAM_KEEPALIVE_SECONDS": "2",
            "MAX_REQUEST_BODY_BYTES": str(MAX_BODY),
            **NO_LIMITS,
            **urls,
        }
        with Gateway(settings) as gateway:
            yield Fuzzed(gateway, record, issuer.token().encode(), seed)
