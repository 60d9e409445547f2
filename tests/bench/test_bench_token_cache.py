"""The users of `bench/token_cache.py`, with real verifiers instead of gateways, and time by hand."""

from random import Random

import pytest
from users import MARGIN_S, TOKEN_S, Day, Population, Visit, day_of, expected_hits

from bakerygw.tokens.keys import PemKey, load_public_key
from bakerygw.tokens.verifier import TokenVerifier
from tests.minting import Issuer

BEGAN = 1_800_000_000
ISSUER = Issuer(algorithm="EdDSA", now=lambda: BEGAN)
PEOPLE = Population(users=60, per_minute=6)


def day(people: Population = PEOPLE, seconds: float = 300, seed: int = 1) -> Day:
    return day_of(people, seconds, Random(seed))


def hits_of(people: Population, day: Day, *, cache_size: int = 20_000) -> float:
    """The share of hits of real verifiers, one for each instance."""
    now = [0.0]
    verifiers = [
        TokenVerifier(
            PemKey(load_public_key(ISSUER.public_pem, "EdDSA")),
            algorithm="EdDSA",
            issuer="bakery-auth",
            audience=None,
            leeway_s=10,
            cache_ttl_s=900,
            cache_size=cache_size,
            now=lambda: now[0],
            seconds=lambda: now[0],
        )
        for _ in range(people.instances)
    ]
    made: dict[tuple[int, float], bytes] = {}

    def is_hit(visit: Visit) -> bool:
        now[0] = BEGAN + visit.at
        key = (visit.user, visit.issued_at)
        if key not in made:
            issued = int(BEGAN + visit.issued_at)
            made[key] = ISSUER.token(user_id=f"u{visit.user}", iat=issued, exp=issued + int(TOKEN_S)).encode()
        verifier = verifiers[visit.instance]
        if verifier.known(made[key]) is not None:
            return True
        verifier.verify(made[key])
        return False

    for visit in day.known:
        is_hit(visit)
    return sum(map(is_hit, day.measured)) / len(day.measured)


def test_in_steady_use_19_of_20_tokens_are_found_in_the_cache_as_the_model_expects() -> None:
    its = day()
    found = hits_of(PEOPLE, its)
    assert found >= 0.95
    assert found == pytest.approx(expected_hits(its), abs=0.002)


def test_a_cache_too_small_for_the_users_shows() -> None:
    assert hits_of(PEOPLE, day(), cache_size=20) < 0.9


def test_users_who_ask_seldom_show() -> None:
    seldom = Population(users=200, per_minute=0.5)
    assert expected_hits(day(seldom, 900)) < 0.9


def test_one_instance_needs_half_the_signatures_of_two() -> None:
    one = Population(users=60, per_minute=6, instances=1)
    assert 1 - expected_hits(day(one, 900)) < 0.7 * (1 - expected_hits(day(seconds=900)))


def test_each_user_has_one_token_at_a_time_for_as_long_as_a_client_would_use_it() -> None:
    newest: dict[int, float] = {}
    for visit in PEOPLE.visits(600, Random(2)):
        assert visit.issued_at >= newest.get(visit.user, visit.issued_at)
        assert visit.at - visit.issued_at <= TOKEN_S - MARGIN_S
        newest[visit.user] = visit.issued_at


def test_what_is_known_at_the_beginning_is_each_users_token_in_use_then() -> None:
    its = day(Population(users=200, per_minute=0.5))
    assert {visit.instance for visit in its.known} == {0, 1}
    assert all(MARGIN_S - TOKEN_S < visit.issued_at <= visit.at < 0 for visit in its.known)
    assert len({(visit.user, visit.instance) for visit in its.known}) == len(its.known)
    for user in {visit.user for visit in its.known}:
        assert len({visit.issued_at for visit in its.known if visit.user == user}) == 1


def test_requests_come_at_the_rate_and_some_users_ask_far_more_than_others() -> None:
    measured = day(seconds=900).measured
    assert len(measured) / 900 == pytest.approx(PEOPLE.rate, rel=0.05)
    by_user = [sum(visit.user == user for visit in measured) for user in range(PEOPLE.users)]
    assert by_user[0] > 10 * by_user[-1] > 0
