"""Asking a Nominatim: one question over a connection of its own, its answer bounded and strictly read.

https://nominatim.org/release-docs/latest/api/Search/ and https://operations.osmfoundation.org/policies/nominatim/
"""

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any, Final, NoReturn

import treq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from bakerygw.core.geocoding import Question
from bakerygw.core.places import Place, PlacesUnreadable, parse_json, read_places
from bakerygw.ports import UpstreamFailed
from bakerygw.upstream.dial import error_type, trust_root

TIMEOUT_S: Final = 10.0
"""From looking its name up to the last byte of its answer."""
CONNECT_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1024 * 1024

FAILED_WAIT_S: Final = 5
"""After a failure nobody should ask again at once."""
REFUSED_WAIT_S: Final = 60
"""After 429 and 503 without `Retry-After`."""
BLOCKED_WAIT_S: Final = 600
"""After 403, by which the public server answers who has broken its rules; asking on would make it worse."""
MAX_WAIT_S: Final = 3600
"""Longer a `Retry-After` is not believed."""

_REFUSALS: Final = {403: BLOCKED_WAIT_S, 429: REFUSED_WAIT_S, 503: REFUSED_WAIT_S}
_NOMINATIM_NAMES: Final = {"country_name": "country"}
"""Parts of an address that it calls otherwise."""


class Nominatim:
    """Implements `ports.Geocoder` over the search of one server. Follows no redirect and keeps no cookie."""

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        user_agent: str,
        now: Callable[[], float],
        ca_file: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`url` is the server's base URL; `user_agent` says who asks; `now` gives Unix seconds; `ca_file` has
        certificates to trust in place of the system's.

        Raises `OSError` or `ValueError` if the file can't be used.
        """
        self._reactor: Any = reactor
        self._url, self._user_agent, self._now = f"{url}/search", user_agent, now
        self._timeout_s = timeout_s
        pool = HTTPConnectionPool(reactor, persistent=False)
        policy = BrowserLikePolicyForHTTPS(trustRoot=trust_root(ca_file))
        self._agent = _Uncompressed(Agent(reactor, policy, connectTimeout=CONNECT_TIMEOUT_S, pool=pool))

    async def search(self, question: Question) -> tuple[Place, ...]:
        """The places that fit. Raises `UpstreamFailed`."""
        asking = Deferred.fromCoroutine(self._ask(question))
        asking.addTimeout(self._timeout_s, self._reactor, onTimeoutCancel=_timed_out)
        try:
            return await asking
        except DeferredTimeoutError:
            raise UpstreamFailed(
                "upstream-timeout", "http_response_timeout", "geocoder: no whole answer", retry_after_s=FAILED_WAIT_S
            ) from None

    async def _ask(self, question: Question) -> tuple[Place, ...]:
        try:
            response = await treq.client.HTTPClient(self._agent).get(
                self._url,
                params=search_params(question),
                headers=self._headers(question),
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
            if response.code != 200:
                response.deliverBody(_Unwanted())
                raise self._refused(response)
            body = _Body()
            response.deliverBody(body)
            text = await body.whole
        except (CancelledError, ConnectingCancelledError):
            raise CancelledError from None
        except UpstreamFailed:
            raise
        except Exception as error:  # OpenSSL's, Twisted's for HTTP, zlib's: what the network and its peers come up with
            _fail(error)
        try:
            return read_places(parse_json(text))[: question.limit]
        except PlacesUnreadable as error:
            raise _invalid(str(error)) from None

    def _headers(self, question: Question) -> Headers:
        headers = Headers({"User-Agent": [self._user_agent], "Accept": ["application/json"]})
        if question.language is not None:
            headers.setRawHeaders("Accept-Language", [question.language])
        return headers

    def _refused(self, response: Any) -> UpstreamFailed:
        """The failure for an answer without places."""
        usual_s = _REFUSALS.get(response.code)
        if usual_s is None:  # below 500 this question alone was the reason
            return _invalid(f"answered {response.code}", FAILED_WAIT_S if response.code >= 500 else None)
        wait_s = _retry_after(response.headers.getRawHeaders("Retry-After", []), self._now())
        wait_s = usual_s if wait_s is None else min(max(wait_s, FAILED_WAIT_S), MAX_WAIT_S)
        cause = f"geocoder: answered {response.code}"
        return UpstreamFailed("service-unavailable", "destination_unavailable", cause, retry_after_s=wait_s)


def search_params(question: Question) -> dict[str, str]:
    """The question as parameters of `/search`."""
    params = {"format": "jsonv2", "addressdetails": "1", "limit": str(question.limit)}
    if question.query is not None:
        params["q"] = question.query
    for name, text in question.address:
        params[_NOMINATIM_NAMES.get(name, name)] = text
    if question.countries:
        params["countrycodes"] = ",".join(question.countries)
    return params


def _retry_after(values: list[str], now: float) -> int | None:
    """Seconds to wait (RFC 9110 10.2.3), `None` if nothing readable says so."""
    text = values[0].strip() if values else ""
    if text.isascii() and text.isdigit():
        return int(text[:9])
    try:
        return ceil(parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError, TypeError):
        return None


def _invalid(why: str, wait_s: int | None = FAILED_WAIT_S) -> UpstreamFailed:
    return UpstreamFailed("upstream-invalid", "http_protocol_error", f"geocoder: {why}", retry_after_s=wait_s)


def _fail(error: Exception) -> NoReturn:
    """Raise what a failed exchange means."""
    reasons: Any = getattr(error, "reasons", None)  # Twisted's failures of HTTP hold what they came from
    if reasons and isinstance(reasons[0], Failure) and isinstance(reasons[0].value, Exception):
        if reasons[0].check(CancelledError, ConnectingCancelledError):
            raise CancelledError from None
        _fail(reasons[0].value)
    try:
        kind = error_type(error)
    except StopIteration:
        raise _invalid(type(error).__name__) from error
    if isinstance(error, ConnectError | DNSLookupError) or kind.startswith("tls_") or kind == "connection_terminated":
        cause = f"geocoder: {type(error).__name__}"
        raise UpstreamFailed("upstream-unreachable", kind, cause, retry_after_s=FAILED_WAIT_S) from error
    raise _invalid(type(error).__name__) from error


def _timed_out(result: object, timeout_s: float) -> object:
    """What an exchange that ran out of time fails with, whatever its cancelling said."""
    if isinstance(result, Failure):
        raise DeferredTimeoutError(timeout_s)
    return result


@implementer(IAgent)
class _Uncompressed:
    """Asks for plain bodies, whatever treq would offer, and takes no other: a small one could unpack to gigabytes."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> "Deferred[IResponse]":
        """As `IAgent` has it."""
        plain = Headers() if headers is None else headers.copy()
        plain.setRawHeaders(b"Accept-Encoding", [b"identity"])
        asking: Deferred[IResponse] = self._agent.request(method, uri, plain, bodyProducer)
        return asking.addCallback(self._plain)

    def _plain(self, response: IResponse) -> IResponse:
        if response.headers.hasHeader(b"Content-Encoding"):
            response.deliverBody(_Unwanted())
            raise _invalid("compressed")
        return response


class _Unwanted(Protocol):
    """Ends the connection of a body that nobody reads; untaken it would stay."""

    def connectionMade(self) -> None:
        """Leave."""
        if self.transport is not None:
            self.transport.loseConnection()


class _Body(Protocol):
    """Collects a body, and ends the connection if it is too long or not waited for any more."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(self._unwanted)
        """Fails with `UpstreamFailed` if it is too long or cut short."""
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        """The next bytes."""
        self._size += len(data)
        if self._size <= MAX_ANSWER_BYTES:
            self._parts.append(data)
        elif not self.whole.called:
            self._parts.clear()
            self.whole.errback(_invalid("too long"))
            self._leave()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(_invalid("cut short"))

    def _unwanted(self, _: "Deferred[bytes]") -> None:
        self._leave()

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
