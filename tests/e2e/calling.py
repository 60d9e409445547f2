"""Calls that end-to-end tests make again and again: by address, in parallel, until something holds."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self, TypeVar

import httpx

from tests.e2e.harness import Gateway
from tests.patience import PATIENCE_S

T = TypeVar("T")

SALES = "/api/v1/sales/today"
WITHIN_S = 5.0
"""What is in force within a second, on a machine that is busy with other things; what is not told stays for minutes."""


def until(look: Callable[[], T], timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> T:
    """What `look` returns, as soon as it is true. AssertionError with the last value if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {found!r}"
        time.sleep(every_s)
    return found


def code_of(response: httpx.Response) -> tuple[int, str]:
    """Status and problem code; an empty code for what is no problem document."""
    problem = response.headers.get("content-type") == "application/problem+json"
    return response.status_code, response.json()["code"] if problem else ""


def from_address(gateway: Gateway, address: str, token: str | None = None) -> httpx.Client:
    """A client of the public port that comes from another loopback address."""
    return gateway.client(token, transport=httpx.HTTPTransport(local_address=address))


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all calls, each in a thread of its own, let go together."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        start.wait(PATIENCE_S)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@dataclass(kw_only=True)
class Load:
    """One client that asks again and again in the background. As a context manager it has ended afterwards."""

    client: httpx.Client
    path: str = SALES
    method: str = "GET"
    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive(), "a call never ended"

    def go_on(self, calls: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until so many more calls have been answered."""
        goal = len(self.statuses) + calls
        until(lambda: len(self.statuses) >= goal or self.errors, timeout_s)

    def _run(self) -> None:
        while not self._over.is_set() and not self.errors:
            began = time.monotonic()
            try:
                self.statuses.append(self.client.request(self.method, self.path).status_code)
            except Exception as error:
                self.errors.append(error)
            self.seconds.append(time.monotonic() - began)
            self._over.wait(0.002)
