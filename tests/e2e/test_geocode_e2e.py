"""`POST /api/v1/geocode` from outside: answers, misbehaviour of the map service, and its rules kept by two."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.e2e import nominatim
from tests.e2e.calling import at_once, code_of, until
from tests.e2e.harness import Gateway
from tests.e2e.nominatim import NominatimServer
from tests.e2e.stage import NO_LIMITS, paired
from tests.minting import Issuer
from tests.redis_server import RedisServer

GEOCODE = "/api/v1/geocode"
AGENT = "bakery-tests (ops@bakery.example)"


@pytest.fixture(scope="module")
def osm() -> Iterator[NominatimServer]:
    with NominatimServer() as server:
        yield server


@pytest.fixture(scope="module")
def pair(osm: NominatimServer, module_redis: RedisServer, issuer: Issuer) -> Iterator[list[Gateway]]:
    """Two instances over one Redis."""
    env = {
        "NOMINATIM_URL": osm.url,
        "NOMINATIM_USER_AGENT": AGENT,
        **NO_LIMITS,
    }
    with paired(issuer, module_redis, env) as gateways:
        yield list(gateways)


@pytest.fixture
def clients(pair: list[Gateway], issuer: Issuer, osm: NominatimServer) -> Iterator[list[httpx.Client]]:
    """A client of each instance."""
    osm.asked.clear()
    osm.behave = None
    with ExitStack() as running:
        yield [running.enter_context(gateway.client(issuer.token(), timeout=25)) for gateway in pair]


def ask(client: httpx.Client, query: str, **members: Any) -> httpx.Response:
    return client.post(GEOCODE, json={"query": query, **members})


def test_an_address_becomes_coordinates_once_for_all_instances(
    pair: list[Gateway], clients: list[httpx.Client], osm: NominatimServer, module_redis: RedisServer
) -> None:
    first = ask(clients[0], "Forn  Gràcia & Fills", country="ES", language="ca", limit=3)
    again = ask(clients[0], "forn gràcia & fills", country=["es"], language="CA", limit=3)
    elsewhere = ask(clients[1], "Forn Gràcia & Fills", country="es", language="ca", limit=3)

    assert first.status_code == again.status_code == elsewhere.status_code == 200
    assert first.json() == {
        "results": [
            {
                "display_name": "Forn Gràcia & Fills, Barcelona, España",
                "lat": 41.4036299,
                "lon": 2.1743558,
                "boundingbox": [41.4034, 41.4038, 2.1741, 2.1746],
                "type": "bakery",
                "importance": 0.6573,
                "address": {"shop": "Forn Gràcia & Fills", "city": "Barcelona", "country_code": "es"},
            }
        ],
        "attribution": "Data © OpenStreetMap contributors, ODbL 1.0. https://osm.org/copyright",
        "cached": False,
    }
    assert first.headers["cache-control"] == "no-store"
    assert again.json() == elsewhere.json() == {**first.json(), "cached": True}
    (asked,) = osm.asked
    assert asked.headers["user-agent"] == AGENT
    assert asked.headers["accept-language"] == "ca"
    assert {name: asked.params[name] for name in ("q", "countrycodes", "limit", "format", "addressdetails")} == {
        "q": "Forn Gràcia & Fills", "countrycodes": "es", "limit": "3", "format": "jsonv2", "addressdetails": "1",
    }  # fmt: skip
    keys = module_redis.command(
        "EVAL", "return table.concat(redis.call('KEYS', 'bakerygw:geocode:*'), ' ')", "0"
    ).decode()
    assert keys.startswith("bakerygw:geocode:")
    assert "forn" not in keys.lower()
    assert not [gateway for gateway in pair if "gràcia" in gateway.output.lower() or "gr%c3" in gateway.output.lower()]


def test_never_more_than_one_question_a_second_from_all_instances_and_equal_ones_once(
    clients: list[httpx.Client], osm: NominatimServer
) -> None:
    questions = [(0, "Rate 1"), (0, "Rate same"), (1, "Rate same"), (1, "Rate 2"), (1, "Rate same"), (0, "Rate 3")]
    answers = at_once([lambda at=at, query=query: ask(clients[at], query) for at, query in questions])

    assert [answer.status_code for answer in answers] == [200] * len(questions)
    assert sorted(osm.queries()) == ["Rate 1", "Rate 2", "Rate 3", "Rate same"]
    # As they were heard by a stand-in that may hear of one later than of another.
    assert min(osm.gaps()) > 0.5
    assert sum(osm.gaps()) > 3 * 0.9


def test_who_leaves_the_line_is_not_asked_for(
    pair: list[Gateway], clients: list[httpx.Client], osm: NominatimServer, module_redis: RedisServer
) -> None:
    until(lambda: module_redis.command("EXISTS", "bakerygw:geocode:slot") == b":0")
    module_redis.command("SET", "bakerygw:geocode:slot", "held elsewhere", "PX", "60000")
    with pytest.raises(httpx.ReadTimeout):
        clients[0].post(GEOCODE, json={"query": "Left behind"}, timeout=httpx.Timeout(25, read=0.5))
    pair[0].wait_for_event("request.done", lambda event: event.get("status") == 499)
    module_redis.command("DEL", "bakerygw:geocode:slot")

    assert ask(clients[0], "Still here").status_code == 200
    assert osm.queries() == ["Still here"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", None),
        (b"{", None),
        (b"{}", "query"),
        (b'{"query":"x","city":"Graz"}', "city"),
        (b'{"query":"x","query":"y"}', "query"),
        (b'{"query":"x","q":"y"}', "q"),
        (b'{"query":"a\\u0000b"}', "query"),
        (b'{"query":"x","limit":11}', "limit"),
        (b'{"query":"x","country":"ESP"}', "country"),
        (b'{"query":"x","language":"es\\r\\nHost: y"}', "language"),
    ],
)
def test_what_is_no_question_is_refused_by_the_member(
    clients: list[httpx.Client], osm: NominatimServer, body: bytes, field: str | None
) -> None:
    answer = clients[0].post(GEOCODE, content=body)

    assert code_of(answer) == (400, "bad-request")
    assert answer.json().get("field") == field
    assert osm.asked == []


def test_a_body_over_8_kib_is_refused(clients: list[httpx.Client]) -> None:
    assert code_of(ask(clients[0], "x" * 8192)) == (413, "body-too-large")


def test_an_ill_map_service_is_spared_by_all_instances(clients: list[httpx.Client], osm: NominatimServer) -> None:
    osm.behave = nominatim.refuses(429, Retry_After="7")
    first = ask(clients[0], "Too much")
    second = ask(clients[1], "Too much elsewhere")

    assert code_of(first) == code_of(second) == (503, "service-unavailable")
    assert first.headers["retry-after"] == "7"
    assert 1 <= second.json()["retry_after"] <= 8
    assert f"{second.json()['retry_after']} seconds" in second.json()["detail"]
    assert osm.queries() == ["Too much"]


def test_without_redis_what_is_known_here_is_answered_and_nothing_is_asked(
    clients: list[httpx.Client], osm: NominatimServer, module_redis: RedisServer
) -> None:
    assert code_of(ask(clients[0], " "))[0] == 400  # so that the instance knows this token and its tenant
    module_redis.kill()
    try:
        known = ask(clients[0], "Forn Gràcia & Fills", country="es", language="ca", limit=3)
        unknown = ask(clients[0], "Not known here")
    finally:
        module_redis.start()

    assert known.status_code == 200
    assert known.json()["cached"] is True
    assert code_of(unknown) == (503, "state-unavailable")
    assert "retry-after" in unknown.headers
    assert osm.asked == []
