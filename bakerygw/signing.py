"""The composition root's part for access tokens: the issuer's keys, the verifier, and what instances share of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from bakerygw.config.settings import Settings
from bakerygw.ports import TokenTelemetry
from bakerygw.state import SharedState
from bakerygw.tokens.bearer import BearerTokens
from bakerygw.tokens.fetching import TIMEOUT_S, Fetch
from bakerygw.tokens.keys import KeySource, PemKey, load_public_key
from bakerygw.tokens.remote_keys import RemoteKeys
from bakerygw.tokens.shared import SharedTokens
from bakerygw.tokens.token_seal import Rules, TokenSeal
from bakerygw.tokens.verifier import TokenVerifier
from bakerygw.upstream.dial import trust_root, way_to
from bakerygw.upstream.names import Names

Source = tuple[str, str]
"""What a key set depends on: URL and algorithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """What checks access tokens."""

    bearer: BearerTokens
    verifier: TokenVerifier
    keys: RemoteKeys | None
    """`None` where the key is given as PEM."""
    fetch: Fetch | None
    """How `keys` are fetched from here on: the certificates to trust may be others than before."""
    source: Source | None
    """Of `keys`."""

    def begin(self, changed: Callable[[], None], older: "Signing | None" = None) -> None:
        """Keep the keys fresh from here on, in the place of those of an older configuration.

        `changed` is called when they are others than before, and now if there was an older configuration.
        """
        if older is not None and older.keys is not self.keys:
            older.close()
        if self.keys is not None and self.fetch is not None:
            verifier = self.verifier

            def keep_only(thumbprints: frozenset[bytes]) -> None:
                verifier.keep_only(thumbprints)
                changed()

            self.keys.fetch, self.keys.changed = self.fetch, keep_only
            self.keys.start()
        if older is not None:
            changed()

    def close(self) -> None:
        """Fetch no more keys."""
        if self.keys is not None:
            self.keys.stop()


def make_signing(
    settings: Settings,
    reactor: Any,
    *,
    state: SharedState,
    names: Names,
    telemetry: TokenTelemetry,
    older: Signing | None = None,
) -> Signing:
    """What the settings ask for; nothing is opened. The key set of `older` goes on if it is of the same source."""
    url, keys, fetch = settings.jwt_jwks_url, None, None
    source = None if url is None else (url, settings.jwt_algorithm)
    if url is not None:
        fetch = _fetch(url, settings.upstream_ca_file, reactor, names)
        same = older is not None and older.source == source
        keys = older.keys if same and older is not None else _remote_keys(fetch, settings, reactor, telemetry)
    verifier = TokenVerifier(
        _pem_key(settings) if keys is None else keys,
        algorithm=settings.jwt_algorithm,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway_s=settings.jwt_leeway_seconds,
        cache_ttl_s=settings.token_cache_ttl_seconds,
        now=time.time,
        seconds=reactor.seconds,
    )
    bearer = BearerTokens(verifier, keys=keys, shared=_shared(settings, state, telemetry))
    return Signing(bearer=bearer, verifier=verifier, keys=keys, fetch=fetch, source=source)


def _pem_key(settings: Settings) -> KeySource:
    return PemKey(load_public_key(settings.jwt_public_key or "", settings.jwt_algorithm))


def _fetch(url: str, ca_file: str | None, reactor: Any, names: Names) -> Fetch:
    trust = trust_root(ca_file) if url.startswith("https:") else None
    return Fetch(reactor, url, way_to(reactor, url, timeout_s=TIMEOUT_S, trust=trust, names=names))


def _remote_keys(fetch: Fetch, settings: Settings, reactor: Any, telemetry: TokenTelemetry) -> RemoteKeys:
    chance = Random().random  # noqa: S311  it only spreads fetches over time
    return RemoteKeys(fetch, algorithm=settings.jwt_algorithm, clock=reactor, random=chance, telemetry=telemetry)


def _shared(settings: Settings, state: SharedState, telemetry: TokenTelemetry) -> SharedTokens | None:
    """Where instances tell each other of good tokens; with the embedded store there are no others."""
    secret = settings.token_cache_secret
    if not settings.token_cache_shared or secret is None or state.embedded is not None:
        return None
    rules = Rules(algorithm=settings.jwt_algorithm, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
    return SharedTokens(
        state.records,
        TokenSeal(secret.get_secret_value(), rules),
        ttl_s=settings.token_cache_ttl_seconds,
        now=time.time,
        telemetry=telemetry,
    )
