"""What stands in for the outside of `bakerygw.tokens`: issuers' documents, a store, telemetry."""

import json
from collections.abc import Callable
from typing import Any

from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from twisted.internet.defer import Deferred

from bakerygw.ports import StoreUnavailable
from bakerygw.tokens.fetching import Fetched, FetchFailed
from tests.minting import Issuer

NOW = 1_800_000_000


class Wall:
    """A wall clock set by hand."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def jwk(issuer: Issuer, kid: str | None = None, **members: Any) -> dict[str, Any]:
    """The issuer's public key as a JWK, with further members; `None` leaves one out."""
    kinds: dict[str, Any] = {"R": RSAAlgorithm, "P": RSAAlgorithm, "E": ECAlgorithm}
    kind = OKPAlgorithm if issuer.algorithm == "EdDSA" else kinds[issuer.algorithm[0]]
    made = json.loads(kind.to_jwk(issuer.key.public_key()))
    made.pop("key_ops", None)
    return {name: value for name, value in {**made, "kid": kid, **members}.items() if value is not None}


def document(*keys: object) -> bytes:
    """A key set of these keys."""
    return json.dumps({"keys": keys}).encode()


class Url:
    """A `Fetch` by hand: each call waits until the test answers or fails it."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Fetched]] = []
        self.cancelled = 0

    async def __call__(self) -> Fetched:
        def count(_: object) -> None:
            self.cancelled += 1

        waiting: Deferred[Fetched] = Deferred(count)
        self.asked.append(waiting)
        return await waiting

    def answer(self, body: bytes, max_age_s: int | None = None) -> None:
        self.asked[-1].callback(Fetched(body=body, max_age_s=max_age_s))

    def fail(self, result: str = "unreachable") -> None:
        self.asked[-1].errback(FetchFailed(result, f"it is {result}"))


class Told:
    """`TokenTelemetry` that keeps what it is told."""

    def __init__(self) -> None:
        self.fetches: list[str] = []
        self.seals: list[str] = []

    def key_set(self, result: str) -> None:
        self.fetches.append(result)

    def shared_token(self, result: str) -> None:
        self.seals.append(result)


class Shelf:
    """The part of `Records` that seals need, open to everybody's writing, and `down` where the test says so."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lives: dict[str, float | None] = {}
        self.down = False
        self.asked = 0
        self.before_answer: Callable[[], None] | None = None
        """Called while somebody waits for an answer."""

    async def get(self, key: str) -> bytes | None:
        self.asked += 1
        if self.before_answer is not None:
            self.before_answer()
        if self.down:
            raise StoreUnavailable("away")
        return self.values.get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
        if self.down:
            raise StoreUnavailable("away")
        self.values[key], self.lives[key] = value, ttl_s
