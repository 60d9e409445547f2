"""Asking a Nominatim: one question over a connection of its own, its answer bounded and strictly read.

https://nominatim.org/release-docs/latest/api/Search/ and https://operations.osmfoundation.org/policies/nominatim/
"""

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any, Final, NoReturn

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.python.failure import Failure
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

from bakerygw.core.geocoding import Question
from bakerygw.core.places import Place, PlacesUnreadable, parse_json, read_places
from bakerygw.ports import UpstreamFailed
from bakerygw.runtime.oneway import OneWay, PlainBodies, WholeBody
from bakerygw.upstream.dial import error_type, trust_root, way_to
from bakerygw.upstream.names import Names

TIMEOUT_S: Final = 10.0
"""From looking its name up to the last byte of its answer."""
CONNECT_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of the answer, and of what frames its body: `Agent` has no bound for the number of fields."""

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
        # Names of its own: hanging names of services must not make it wait for its turn.
        names, trust = Names(reactor), trust_root(ca_file)
        self._endpoint = way_to(reactor, url, timeout_s=CONNECT_TIMEOUT_S, trust=trust, names=names)

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
        way = OneWay(self._endpoint, MAX_ANSWER_BYTES + MAX_HEAD_BYTES)
        body: WholeBody | None = None
        try:
            # A client anew each time, for a client keeps cookies.
            response = await HTTPClient(PlainBodies(Agent.usingEndpointFactory(self._reactor, way), _compressed)).get(
                self._url,
                params=search_params(question),
                headers=self._headers(question),
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
            if response.code != 200:
                raise self._refused(response)
            body = WholeBody(MAX_ANSWER_BYTES, _too_long)
            response.deliverBody(body)
            text = await body.done
        except (CancelledError, ConnectingCancelledError):
            raise CancelledError from None
        except UpstreamFailed:
            raise
        except Exception as error:  # OpenSSL's, Twisted's for HTTP, zlib's: what the network and its peers come up with
            if way.overrun:
                raise _too_long() from error
            if body is not None:
                raise _invalid("cut short") from error
            _fail(error)
        finally:
            way.abort()
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


def _compressed() -> UpstreamFailed:
    return _invalid("compressed")


def _too_long() -> UpstreamFailed:
    return _invalid("too long")


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
