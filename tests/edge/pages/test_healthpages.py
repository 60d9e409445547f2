import json
from collections.abc import Mapping

import pytest

from bakerygw.core.http import Reply
from bakerygw.core.problem import Refused
from bakerygw.core.times import iso_time
from bakerygw.edge.pages.common import json_reply
from bakerygw.edge.pages.health import HealthPages
from bakerygw.ports import ServiceHealth
from tests.heads import make_head

NOW = 1_700_000_000.25
UP = ServiceHealth(status="healthy", latency_ms=3.14159, since=NOW - 60, checked_at=NOW - 1, detail="")
DOWN = ServiceHealth(
    status="unhealthy", latency_ms=None, since=NOW - 5, checked_at=NOW, detail="connection refused by 10.1.2.3:8000"
)


class Cached:
    def __init__(self, **seen: ServiceHealth) -> None:
        self.seen = seen

    def services(self) -> Mapping[str, ServiceHealth]:
        return self.seen


class Link:
    def __init__(self, status: str = "connected") -> None:
        self.status = status


def make_pages(*, link="connected", names=None, breakers=(), **seen):
    return HealthPages(
        health=Cached(**seen),
        link=Link(link),
        services=list(seen) if names is None else names,
        breaker=lambda name: dict(breakers).get(name, "closed"),
        version="1.2.3",
        now=lambda: NOW,
    )


def document(reply: Reply) -> dict:
    assert isinstance(reply.body, bytes)
    return json.loads(reply.body)


def test_public_health_has_the_promised_members_and_path_names():
    reply = make_pages(auth=UP, ai_insights=UP).public()
    assert reply.status == 200
    assert document(reply) == {
        "status": "healthy",
        "version": "1.2.3",
        "services": {"auth": "healthy", "ai-insights": "healthy"},
        "redis": "connected",
        "timestamp": "2023-11-14T22:13:20.250Z",
    }
    assert dict(reply.headers) == {b"Content-Type": b"application/json", b"Cache-Control": b"no-store"}


@pytest.mark.parametrize(
    ("seen", "link", "status"),
    [
        ({"auth": UP}, "embedded", "healthy"),
        ({}, "connected", "healthy"),
        ({"auth": UP}, "disconnected", "degraded"),
        ({"auth": UP, "sales": DOWN}, "connected", "degraded"),
        ({"auth": DOWN, "sales": DOWN}, "connected", "unhealthy"),
    ],
)
def test_overall_status_is_the_sum_of_services_and_redis_and_always_answers_200(seen, link, status):
    for reply in (make_pages(link=link, **seen).public(), make_pages(link=link, **seen).detailed()):
        assert (reply.status, document(reply)["status"], document(reply)["redis"]) == (200, status, link)


def test_a_service_not_probed_yet_is_unknown_and_one_without_url_is_left_out():
    told = document(make_pages(names=["sales"], auth=UP).public())
    assert told["services"] == {"sales": "unknown"}
    assert told["status"] == "degraded"


def test_details_tell_latency_since_when_and_breaker_and_nothing_internal():
    reply = make_pages(auth=UP, ai_insights=DOWN, breakers={"ai_insights": "open"}).detailed()
    assert document(reply)["services"] == {
        "auth": {"status": "healthy", "latency_ms": 3.14, "since": "2023-11-14T22:12:20.250Z", "breaker": "closed"},
        "ai-insights": {
            "status": "unhealthy",
            "latency_ms": None,
            "since": "2023-11-14T22:13:15.250Z",
            "breaker": "open",
        },
    }
    assert b"10.1.2.3" not in reply.body


def test_pages_are_read_anew_from_the_cache_each_time():
    seen = Cached(auth=UP)
    pages = HealthPages(
        health=seen, link=Link(), services=["auth"], breaker=lambda _: "closed", version="1", now=lambda: NOW
    )
    before = document(pages.public())["services"]
    seen.seen = {"auth": DOWN}
    assert (before, document(pages.public())["services"]) == ({"auth": "healthy"}, {"auth": "unhealthy"})


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_path_has_its_page(method):
    pages = make_pages(auth=UP)
    assert pages.reply_to(make_head(method, b"/health?x=1")) == pages.public()
    assert pages.reply_to(make_head(method, b"/api/v1/health")) == pages.detailed()


def test_other_methods_are_refused_with_allow():
    with pytest.raises(Refused) as refused:
        make_pages().reply_to(make_head("POST", b"/health"))
    assert refused.value.problem.code == "method-not-allowed"
    assert refused.value.problem.headers == ((b"Allow", b"GET, HEAD"),)


def test_other_paths_are_not_found():
    with pytest.raises(Refused) as refused:
        make_pages().reply_to(make_head("GET", b"/health/x"))
    assert refused.value.problem.code == "not-found"


def test_json_replies_are_sorted_and_spell_out_values_and_sets():
    assert json_reply({"b": UP, "a": frozenset({"y", "x"})}).body.startswith(b'{"a": ["x", "y"], "b": {"checked_at"')
    with pytest.raises(TypeError):
        json_reply(object())


def test_no_time_is_no_text():
    assert iso_time(None) is None
