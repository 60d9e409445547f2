"""Fetching a document from one URL, whole or not at all, within a time and a size."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.web.client import Agent, RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers

from bakerygw.runtime.oneway import OneWay, PlainBodies, WholeBody

TIMEOUT_S: Final = 5.0
"""For all of it, from the look-up of the name to the last byte."""
MAX_BYTES: Final = 256 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of the answer, and of what frames its body: `Agent` has no bound for the number of fields."""

_MAX_AGE: Final = re.compile(r'(?:^|[,\s])max-age="?([0-9]{1,9})"?(?=$|[,\s])', re.IGNORECASE)


class FetchFailed(Exception):
    """No document came. `result` is a short constant for metrics; the text says why, without what was received."""

    def __init__(self, result: str, why: str) -> None:
        """`result`: unreachable, timeout, status, too-large or invalid."""
        super().__init__(why)
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A document."""

    body: bytes
    max_age_s: int | None
    """For how long its server says that it holds (RFC 9111 5.2.2.1)."""


class Fetch:
    """`GET` of one URL, on a connection of its own each time. Redirects are not followed, and cookies not kept."""

    def __init__(
        self,
        reactor: Any,
        url: str,
        endpoint: IStreamClientEndpoint,
        *,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`endpoint` leads to the URL's host, through TLS where the URL says so."""
        self._clock: IReactorTime = reactor
        self._reactor, self._url, self._endpoint = reactor, url, endpoint
        self._timeout_s, self._max_bytes = timeout_s, max_bytes

    async def __call__(self) -> Fetched:
        """The document. Raises `FetchFailed`. Whatever comes of it, no connection is left behind."""
        way = OneWay(self._endpoint, self._max_bytes + MAX_HEAD_BYTES)
        begun = self._clock.seconds()
        getting = Deferred.fromCoroutine(self._get(way))
        getting.addTimeout(self._timeout_s, self._clock)
        try:
            return await getting
        except (CancelledError, FetchFailed):
            raise
        except Exception as error:  # a broken peer shows in many ways, and all of them mean the same here
            if way.overrun:
                raise FetchFailed("too-large", "the answer is too large") from error
            if self._clock.seconds() - begun >= self._timeout_s:
                raise FetchFailed("timeout", f"no document within {self._timeout_s:g} s") from error
            cause = _cause(error)
            if isinstance(cause, CancelledError | ConnectingCancelledError):
                raise CancelledError from error
            # Its name alone: a text could quote the peer.
            raise FetchFailed("unreachable", type(cause).__name__) from error
        finally:
            way.abort()

    async def _get(self, way: OneWay) -> Fetched:
        # A client anew each time, for a client keeps cookies.
        response = await HTTPClient(PlainBodies(Agent.usingEndpointFactory(self._reactor, way), _packed)).get(
            self._url,
            headers=Headers({"Accept": ["application/jwk-set+json, application/json"], "User-Agent": ["bakerygw"]}),
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        if response.code != 200:
            raise FetchFailed("status", f"answered {response.code}")
        body = WholeBody(self._max_bytes, _too_large)
        response.deliverBody(body)
        data = await body.done  # if it ended with the connection it may be cut short; then it is no JSON
        return Fetched(body=data, max_age_s=max_age_of(response.headers.getRawHeaders("cache-control", ())))


def _packed() -> FetchFailed:
    return FetchFailed("invalid", "the document is packed, although that was not asked for")


def _too_large() -> FetchFailed:
    return FetchFailed("too-large", "the document is too large")


def max_age_of(values: Iterable[str]) -> int | None:
    """The seconds of `max-age` in `Cache-Control` fields, if they are there."""
    found = _MAX_AGE.search(", ".join(values))
    return int(found[1]) if found else None


def _cause(error: BaseException) -> BaseException:
    """What went wrong at the bottom."""
    if isinstance(error, ResponseFailed | RequestTransmissionFailed) and error.reasons:
        return _cause(error.reasons[0].value)
    return error
