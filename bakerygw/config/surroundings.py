"""What the settings name on this machine: certificates, host names, places to listen, the folder of the admin token."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from OpenSSL import SSL, crypto
from twisted.internet.ssl import optionsForClientTLS

from bakerygw.config.listening import endpoint_problem
from bakerygw.config.token_file import token_folder

if TYPE_CHECKING:
    from bakerygw.config.settings import Settings

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


def surrounding_findings(settings: "Settings", environ: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every setting that could not be put to use here, with what is allowed. Reads files and opens nothing else."""
    for name in ("upstream_ca_file", "redis_ca_file"):
        path = getattr(settings, name)
        if path is not None and not _holds_certificates(path):
            yield (name,), "the file must hold certificates in PEM"
    for kind, services in (("", settings.services), ("demo_", settings.demo_services)):
        for service, urls in services.items():
            if not all(_can_be_asked(urlsplit(url).hostname or "") for url in urls):
                yield (f"{kind}{service}_service_url",), _HOST_NAMES
    if settings.jwt_jwks_url is not None and not _can_be_asked(urlsplit(settings.jwt_jwks_url).hostname or ""):
        yield ("jwt_jwks_url",), _HOST_NAMES
    if settings.redis_host is not None and not _can_be_asked(settings.redis_host):
        yield ("redis_host",), _HOST_NAMES
    for name in ("listen", "admin_listen"):
        endpoint = getattr(settings, name)
        problem = endpoint_problem(endpoint) if endpoint is not None else None
        if problem is not None:
            yield (name,), problem
    folder = token_folder(environ)
    if settings.admin_token is None and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        yield ("xdg_runtime_dir",), f"without ADMIN_TOKEN {folder} must be a folder that can be written to"


_HOST_NAMES: Final = "host names are letters, digits, - and ., each part of at most 63 characters, without _"


def _holds_certificates(path: str) -> bool:
    try:
        parts = Path(path).read_bytes().split(_BEGIN)[1:]
        for part in parts:
            crypto.load_certificate(crypto.FILETYPE_PEM, _BEGIN + part)
    except (OSError, ValueError, crypto.Error, SSL.Error):
        return False
    return bool(parts)


def _can_be_asked(host: str) -> bool:
    """Whether the resolver and TLS take the name (RFC 5891); addresses always pass."""
    try:
        optionsForClientTLS(host)
    except UnicodeError:
        return False
    return True
