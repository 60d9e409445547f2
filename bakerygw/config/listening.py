"""Where the gateway listens: Twisted's endpoint descriptions, checked beforehand, and failures in words."""

import errno
import os
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL, crypto
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint

from bakerygw.config.values import endpoint_parts

_HELP: Final = {
    errno.EADDRINUSE: "Another process has this port; stop it, or set PORT, ADMIN_PORT or LISTEN.",
    errno.EADDRNOTAVAIL: "This machine has no such address; set HOST, ADMIN_HOST or the endpoint's interface.",
    errno.EACCES: "This user may not listen there: ports below 1024 need privileges, sockets a folder to write to.",
}
_ANY_HELP: Final = "Look at HOST, PORT, LISTEN and their ADMIN_ counterparts."
_SYSTEMD_HELP: Final = "systemd handed over no such socket: start the .socket unit, and compare its index or name."
_SYSTEMD_DOMAINS: Final = frozenset({"INET", "INET6", "UNIX"})


class ListenFailed(Exception):
    """A port could not be opened: where, why, and what an operator can do."""

    def __init__(self, address: str, error: str, remedy: str) -> None:
        super().__init__(f"{address}: {error}")
        self.address, self.error, self.remedy = address, error, remedy


async def listen_on(
    reactor: Any, endpoint: str | None, host: str, port: int, factory: IProtocolFactory
) -> IListeningPort:
    """Listen at the endpoint description if there is one, else at the address. Raises `ListenFailed`."""
    address = endpoint if endpoint is not None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        listening: IListeningPort = await _way(reactor, endpoint, host, port).listen(factory)
    except CannotListenError as error:
        cause: Any = error.socketError
        raise ListenFailed(address, str(cause), _HELP.get(getattr(cause, "errno", 0), _ANY_HELP)) from error
    except (IndexError, KeyError) as error:  # what the parser of systemd: descriptions raises
        raise ListenFailed(address, "no such socket", _SYSTEMD_HELP) from error
    except OSError as error:
        raise ListenFailed(address, str(error), _HELP.get(error.errno or 0, _ANY_HELP)) from error
    except (TypeError, ValueError, crypto.Error, SSL.Error) as error:
        raise ListenFailed(address, str(error), _ANY_HELP) from error
    return listening


def endpoint_problem(description: str) -> str | None:
    """What is wrong with a description whose kind and port are good, as far as can be seen without listening.

    The sockets of `systemd:` are not looked for: systemd hands them to the gateway alone, and to no earlier check.
    """
    kind, *parts = endpoint_parts(description)
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    if kind == "systemd":
        return _systemd_problem(plain, named)
    if kind == "ssl":
        problem = _ssl_problem(named | dict(zip(("port", "privateKey", "certKey"), plain, strict=False)))
        if problem is not None:
            return problem
    if kind == "unix":
        folder = Path(named.get("address", plain[0] if plain else "")).absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            return f"the socket needs a folder that can be written to, and {folder} is none"
    try:
        serverFromString(None, description)
    except (TypeError, ValueError, LookupError, AttributeError, OSError, crypto.Error, SSL.Error) as error:
        return f"Twisted does not take this endpoint: {_first_line(error)}"
    return None


def _way(reactor: Any, endpoint: str | None, host: str, port: int) -> IStreamServerEndpoint:
    if endpoint is not None:
        described: IStreamServerEndpoint = serverFromString(reactor, endpoint)
        return described
    kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
    way: IStreamServerEndpoint = kind(reactor, port, backlog=1024, interface=host)
    return way


def _systemd_problem(plain: list[str], named: dict[str, str]) -> str | None:
    given = dict(zip(("domain", "index", "name"), plain, strict=False)) | named
    one_of_two = ("index" in given) != ("name" in given)
    index = given.get("index", "0")
    known = given.keys() <= {"domain", "index", "name"} and given.get("domain") in _SYSTEMD_DOMAINS
    if known and len(plain) <= 3 and one_of_two and index.isdecimal():
        return None
    return "systemd:domain=INET (or INET6, UNIX) and one of :index=NUMBER and :name=NAME"


def _ssl_problem(given: dict[str, str]) -> str | None:
    """Whether key and certificate can be read and belong together."""
    if "privateKey" not in given:
        return "ssl: needs privateKey=FILE, and certKey=FILE unless the certificate is in the same file"
    key_file = given["privateKey"]
    certificate_file = given.get("certKey", key_file)
    try:
        key_text, certificate_text = Path(key_file).read_bytes(), Path(certificate_file).read_bytes()
    except OSError as error:
        return f"{error.filename}: cannot be read: {error.strerror or error}"
    try:
        key = load_pem_private_key(key_text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"{key_file}: must hold a private key in PEM without a passphrase"
    try:
        certificate_key = x509.load_pem_x509_certificate(certificate_text).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return f"{certificate_file}: must hold a certificate in PEM"
    pair = [
        each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for each in (key.public_key(), certificate_key)
    ]
    return None if pair[0] == pair[1] else f"{key_file} is not the key of the certificate in {certificate_file}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
