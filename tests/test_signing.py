"""What checks tokens, over reloads of the configuration."""

from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.internet.testing import MemoryReactorClock

from bakerygw.config.settings import load_settings
from bakerygw.signing import Signing, make_signing
from bakerygw.state import SharedState, make_state
from bakerygw.upstream.names import Names
from tests.minting import Issuer
from tests.tokens.token_fakes import Told

URL = "http://127.0.0.1:9/keys"
PEM = Issuer(algorithm="EdDSA").public_pem


class Plant:
    """A reactor on which nothing connects, and what is made on it."""

    def __init__(self, redis: bool = False) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.names = Names(self.reactor)
        self.state: SharedState | None = None
        self.redis = {"REDIS_HOST": "127.0.0.1"} if redis else {}

    def make(self, older: Signing | None = None, **environ: str) -> Signing:
        settings = load_settings({"JWT_ALGORITHM": "EdDSA", **self.redis, **environ})
        telemetry: Any = Told()
        self.state = self.state or make_state(settings, self.reactor, telemetry, telemetry)
        return make_signing(
            settings, self.reactor, state=self.state, names=self.names, telemetry=telemetry, older=older
        )

    @property
    def connections(self) -> int:
        return len(self.reactor.tcpClients)


def unheard() -> None:
    """Who is told of other keys, where it does not matter."""


def forgets_by_its_keys(signing: Signing) -> bool:
    """Whether a change of the key set reaches this verifier."""
    assert signing.keys is not None
    assert signing.keys.changed is not None
    signing.verifier._signers[b"old"] = b""
    signing.keys.changed(frozenset())
    return not signing.verifier._signers


@pytest.fixture
def plant() -> Plant:
    return Plant()


def test_nothing_is_fetched_before_the_beginning_nor_where_the_key_is_given(plant: Plant) -> None:
    plant.make(JWT_JWKS_URL=URL)
    given = plant.make(JWT_PUBLIC_KEY=PEM)
    given.begin(unheard)
    assert given.keys is None
    assert plant.connections == 0


def test_a_reload_goes_on_with_the_same_set_and_prunes_the_new_verifier(plant: Plant) -> None:
    first = plant.make(JWT_JWKS_URL=URL)
    first.begin(unheard)
    second = plant.make(first, JWT_JWKS_URL=URL, JWT_ISSUER="another")
    assert forgets_by_its_keys(first)
    second.begin(unheard, first)
    assert second.keys is first.keys
    assert forgets_by_its_keys(second)
    assert plant.connections == 1


def test_what_tokens_have_opened_is_looked_at_after_each_change_of_keys_and_after_each_reload(plant: Plant) -> None:
    heard: list[str] = []
    first = plant.make(JWT_JWKS_URL=URL)
    first.begin(lambda: heard.append("first"))
    assert heard == []
    assert first.keys is not None
    assert first.keys.changed is not None
    first.keys.changed(frozenset())
    assert heard == ["first"]
    plant.make(first, JWT_PUBLIC_KEY=PEM).begin(lambda: heard.append("reload"), first)
    assert heard == ["first", "reload"]


def test_a_reload_reads_the_certificates_again_and_changes_nothing_before_it_is_in_force(
    plant: Plant, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    settings = {"JWT_JWKS_URL": "https://127.0.0.1:9/keys", "UPSTREAM_CA_FILE": str(authority)}
    first = plant.make(**settings)
    first.begin(unheard)
    assert first.keys is not None
    fetch = first.keys.fetch
    second = plant.make(first, **settings)
    assert first.keys.fetch is fetch
    second.begin(unheard, first)
    assert first.keys.fetch is second.fetch is not fetch


@pytest.mark.parametrize("changed", [{"JWT_JWKS_URL": URL + "2"}, {"JWT_ALGORITHM": "ES256"}])
def test_another_url_or_algorithm_begins_anew_and_ends_the_old(plant: Plant, changed: dict[str, str]) -> None:
    first = plant.make(JWT_JWKS_URL=URL)
    first.begin(unheard)
    second = plant.make(first, **{"JWT_JWKS_URL": URL, **changed})
    second.begin(unheard, first)
    assert second.keys is not first.keys
    assert plant.connections == 2
    assert plant.reactor.connectors[0].stoppedConnecting
    second.close()
    assert plant.reactor.connectors[1].stoppedConnecting


def test_a_key_in_the_place_of_a_set_ends_the_fetching(plant: Plant) -> None:
    first = plant.make(JWT_JWKS_URL=URL)
    first.begin(unheard)
    plant.make(first, JWT_PUBLIC_KEY=PEM).begin(unheard, first)
    assert plant.reactor.connectors[0].stoppedConnecting


@pytest.mark.parametrize(
    ("redis", "shared", "there"), [(True, "true", True), (True, "false", False), (False, "true", False)]
)
def test_tokens_are_shared_only_where_that_is_asked_for_and_there_may_be_others(
    redis: bool, shared: str, there: bool
) -> None:
    signing = Plant(redis).make(JWT_PUBLIC_KEY=PEM, TOKEN_CACHE_SHARED=shared, TOKEN_CACHE_SECRET="s" * 32)
    assert (signing.bearer._shared is not None) == there
