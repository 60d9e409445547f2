"""The adapter to Nominatim against a stand-in that behaves and misbehaves, over real sockets."""

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.geocoding import Question, read_question
from bakerygw.ports import UpstreamFailed
from bakerygw.upstream.nominatim import Nominatim
from tests.e2e import nominatim as osm
from tests.e2e.harness import free_ports
from tests.e2e.nominatim import NominatimServer, place

AGENT = "bakery-tests (ops@bakery.example)"


@pytest.fixture
def server() -> Iterator[NominatimServer]:
    with NominatimServer() as running:
        yield running


def question(**members: Any) -> Question:
    return read_question(json.dumps(members or {"query": "Forn"}).encode(), None)


def at(url: str, **more: Any) -> Nominatim:
    return Nominatim(reactor, url, user_agent=AGENT, now=time.time, **more)


@pytest_twisted.ensureDeferred
async def test_a_question_in_parts_goes_out_under_nominatims_names(server: NominatimServer) -> None:
    asked = question(street="Häuptstr. 1 & 2+3 %41", city="Graz", country_name="Österreich", postalcode="8010")
    (found,) = await at(server.url).search(asked)

    assert found.type == "bakery"
    assert server.asked[0].params == {
        "street": "Häuptstr. 1 & 2+3 %41", "city": "Graz", "country": "Österreich", "postalcode": "8010",
        "limit": "5", "format": "jsonv2", "addressdetails": "1",
    }  # fmt: skip
    assert "accept-language" not in server.asked[0].headers
    assert "cookie" not in server.asked[0].headers
    assert server.asked[0].headers["accept-encoding"] == "identity"


@pytest_twisted.ensureDeferred
async def test_no_more_places_come_than_were_asked_for(server: NominatimServer) -> None:
    server.behave = osm.says(json.dumps([place(str(number)) for number in range(40)]).encode())

    assert len(await at(server.url).search(question(query="Forn", limit=2))) == 2


@pytest_twisted.ensureDeferred
async def test_no_cookie_comes_back(server: NominatimServer) -> None:
    server.behave = osm.says(b"[]", Set_Cookie="track=1")
    asker = at(server.url)
    assert await asker.search(question()) == ()
    await asker.search(question())

    assert "cookie" not in server.asked[1].headers


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (osm.says(b"<html>busy</html>"), "upstream-invalid"),
        (osm.says(b'{"error":"Unable to geocode"}'), "upstream-invalid"),
        (osm.says(b'[{"display_name":"x","lat":"91","lon":"0"}]'), "upstream-invalid"),
        (osm.says(b"[" * 100_000), "upstream-invalid"),
        (osm.says(b"\xff\xfe"), "upstream-invalid"),
        (osm.floods, "upstream-invalid"),
        (osm.rambles, "upstream-invalid"),
        (osm.packs, "upstream-invalid"),
        (osm.cuts, "upstream-invalid"),
        (osm.refuses(500), "upstream-invalid"),
        (osm.hangs, "upstream-timeout"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_misbehaviour_is_a_failure_with_a_wait(
    server: NominatimServer, behaviour: osm.Behaviour, code: str
) -> None:
    server.behave = behaviour
    with pytest.raises(UpstreamFailed) as failed:
        await at(server.url, timeout_s=0.6 if behaviour is osm.hangs else 30.0).search(question())

    assert failed.value.code == code
    assert failed.value.retry_after_s == 5
    assert "Forn" not in failed.value.cause
    assert len(server.asked) == 1


@pytest_twisted.ensureDeferred
async def test_an_answer_whose_head_does_not_end_is_not_read_on(server: NominatimServer) -> None:
    server.behave = osm.rambles
    with pytest.raises(UpstreamFailed) as failed:
        await at(server.url).search(question())

    assert failed.value.cause == "geocoder: too long"


@pytest_twisted.ensureDeferred
async def test_a_question_that_it_does_not_take_says_nothing_of_others(server: NominatimServer) -> None:
    server.behave = osm.refuses(400)
    with pytest.raises(UpstreamFailed) as failed:
        await at(server.url).search(question())

    assert (failed.value.code, failed.value.retry_after_s) == ("upstream-invalid", None)


@pytest.mark.parametrize(
    ("status", "fields", "wait_s"),
    [
        (429, {}, 60),
        (429, {"Retry_After": "120"}, 120),
        (429, {"Retry_After": "1"}, 5),
        (503, {"Retry_After": "9" * 50}, 3600),
        (503, {"Retry_After": "Mon, 01 Jan 2001 00:00:00 GMT"}, 5),
        (503, {"Retry_After": "soon"}, 60),
        (403, {}, 600),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_says_no_is_left_alone_for_a_bounded_time(
    server: NominatimServer, status: int, fields: dict[str, str], wait_s: int
) -> None:
    server.behave = osm.refuses(status, **fields)
    with pytest.raises(UpstreamFailed) as failed:
        await at(server.url).search(question())

    assert (failed.value.code, failed.value.retry_after_s) == ("service-unavailable", wait_s)


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_not_followed(server: NominatimServer) -> None:
    with NominatimServer() as elsewhere:
        server.behave = osm.redirects(elsewhere.url + "/search?q=x")
        with pytest.raises(UpstreamFailed):
            await at(server.url).search(question())

        assert elsewhere.asked == []


@pytest_twisted.ensureDeferred
async def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(UpstreamFailed) as failed:
        await at(f"http://127.0.0.1:{free_ports(1)[0]}").search(question())

    assert (failed.value.code, failed.value.error) == ("upstream-unreachable", "connection_refused")


@pytest_twisted.ensureDeferred
async def test_plain_http_where_tls_is_due_is_unreachable(server: NominatimServer) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        await at(server.url.replace("http:", "https:")).search(question())

    assert failed.value.code == "upstream-unreachable"
    assert failed.value.error.startswith("tls_")
    assert server.asked == []


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_nobody_trusts_is_unreachable(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with NominatimServer(tls) as server:
        with pytest.raises(UpstreamFailed) as failed:
            await at(server.url).search(question())

        assert failed.value.error == "tls_certificate_error"
        assert server.asked == []
        assert len(await at(server.url, ca_file=str(tmp_path / "ca.pem")).search(question())) == 1


@pytest_twisted.ensureDeferred
async def test_a_question_can_be_cancelled(server: NominatimServer) -> None:
    server.behave = osm.hangs
    asking = Deferred.fromCoroutine(at(server.url).search(question()))
    asking.addTimeout(0.1, reactor, onTimeoutCancel=lambda result, _: result)
    with pytest.raises(CancelledError):
        await asking
