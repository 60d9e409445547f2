"""Opening a connection to one URL, plain or TLS, and naming what went wrong."""

from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet.abstract import isIPAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
    NoRouteError,
)
from twisted.internet.error import ConnectionRefusedError as TwistedConnectionRefusedError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates
from twisted.python.failure import Failure

from bakerygw.ports import UpstreamFailed
from bakerygw.upstream.connection import UpstreamConnection
from bakerygw.upstream.names import LookUpLate, NameEndpoint, Names

_PORTS: Final = {"http": 80, "https": 443}

_ERROR_TYPES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (DeferredTimeoutError, "connection_timeout"),
    (ConnectTimeoutError, "connection_timeout"),
    (TwistedConnectionRefusedError, "connection_refused"),
    (LookUpLate, "dns_timeout"),
    (DNSLookupError, "dns_error"),
    (NoRouteError, "destination_ip_unroutable"),
    (VerificationError, "tls_certificate_error"),
    (TLSError, "tls_protocol_error"),
    (ConnectionClosed, "connection_terminated"),
    (ConnectError, "destination_unavailable"),
    (OSError, "destination_unavailable"),
)
"""RFC 9209 section 2.3; the first that fits."""


class ConnectFailed(UpstreamFailed):
    """No connection could be had, so nothing of the request was sent."""


class Dialler:
    """Opens connections to one URL."""

    def __init__(self, reactor: Any, url: str, *, timeout_s: float, trust: Any, names: Names) -> None:
        """`trust`: as `trust_root` gives it, `None` for the system's. Raises `ValueError` for a URL with more to it
        than scheme, host and port."""
        self.authority, self._endpoint, self._secure = _way(reactor, url, timeout_s, trust, names)
        self._clock: IReactorTime = reactor
        self._timeout_s = timeout_s

    async def dial(self, build: Callable[[], UpstreamConnection]) -> UpstreamConnection:
        """Connect, and shake hands where the URL says so, within one deadline. Raises `ConnectFailed`."""
        opening = Deferred.fromCoroutine(self._connect(build))
        opening.addTimeout(self._timeout_s, self._clock, onTimeoutCancel=_timed_out)
        try:
            return await opening
        except ConnectingCancelledError:
            raise CancelledError from None
        except tuple(kind for kind, _ in _ERROR_TYPES) as error:
            raise ConnectFailed("upstream-unreachable", error_type(error), f"{self.authority}: {error!r}") from error

    async def _connect(self, build: Callable[[], UpstreamConnection]) -> UpstreamConnection:
        factory = Factory.forProtocol(build)
        factory.noisy = False
        connection = cast(UpstreamConnection, await self._endpoint.connect(factory))
        if self._secure:
            await connection.secured()
        else:
            # The endpoint put a protocol of its own before ours, which only passes on: 1 µs for each piece of data.
            cast(Any, connection.transport).protocol = connection
        return connection


def error_type(error: BaseException) -> str:
    """The RFC 9209 error type of a failure to connect."""
    if isinstance(error, TLSError) and "certificate" in str(error):
        return "tls_certificate_error"
    return next(name for kind, name in _ERROR_TYPES if isinstance(error, kind))


def trust_root(ca_file: str | None) -> Any:
    """What to trust: the certificates in a PEM file, or, without one, the system's.

    Raises `OSError` if the file can't be read and `ValueError` if no certificate is in it.
    """
    if ca_file is None:
        return platformTrust()
    begin = b"-----BEGIN CERTIFICATE-----"
    with open(ca_file, "rb") as file:
        parts = file.read().split(begin)[1:]
    if not parts:
        raise ValueError(f"{ca_file}: no certificate in it")
    return trustRootFromCertificates([Certificate.loadPEM(begin + part) for part in parts])


def _way(reactor: Any, url: str, timeout_s: float, trust: Any, names: Names) -> tuple[str, IStreamClientEndpoint, bool]:
    """Authority, way there, and whether it is TLS."""
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ValueError(f"not the base URL of a service: {url!r}")
    endpoint = way_to(reactor, url, timeout_s=timeout_s, trust=trust, names=names)
    return parts.netloc, endpoint, parts.scheme == "https"


def way_to(reactor: Any, url: str, *, timeout_s: float, trust: Any, names: Names) -> IStreamClientEndpoint:
    """The way to the host and port of any http(s) URL, through TLS where it says so.

    `trust`: as `trust_root` gives it, `None` for the system's. `timeout_s` is for connecting, without TLS and look-up.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    plain: IStreamClientEndpoint
    if ":" in host:
        plain = TCP6ClientEndpoint(reactor, host, port, timeout=timeout_s)
    elif isIPAddress(host):
        plain = TCP4ClientEndpoint(reactor, host, port, timeout=timeout_s)
    else:
        plain = NameEndpoint(reactor, names, host, port, timeout_s=timeout_s)
    if parts.scheme != "https":
        return plain
    options = optionsForClientTLS(host, trustRoot=trust or platformTrust(), acceptableProtocols=[b"http/1.1"])
    wrapped: IStreamClientEndpoint = wrapClientTLS(options, plain)
    return wrapped


def _timed_out(result: object, timeout_s: float) -> object:
    """What a connect that ran out of time fails with, whatever its cancelling said."""
    if isinstance(result, Failure):
        raise DeferredTimeoutError(timeout_s)
    return result
