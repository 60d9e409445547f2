import os
from collections.abc import Awaitable
from typing import get_args

import pytest
import structlog
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.realtime.held import Ending
from bakerygw.telemetry.logs import LogWriter, RequestLog, configure_logging
from bakerygw.telemetry.metrics import Metrics
from bakerygw.telemetry.requests import RequestTelemetry
from bakerygw.telemetry.subjects import name_of
from bakerygw.telemetry.tenant_notes import ENDINGS, MAX_NOTES, MAX_TENANTS, TenantNotes
from tests.deferreds import success_of
from tests.telemetry.audit_fakes import outcome


def told(work: Awaitable[object]):
    return success_of(Deferred.fromCoroutine(work))


async def as_they_are(user_ids):
    return {user_id: user_id for user_id in user_ids}


def notes(shown=as_they_are):
    return TenantNotes(lambda: "now", shown=shown, redact=lambda text: text.replace("s3cret", "***"))


def test_refusals_are_told_newest_first():
    its = notes()
    its.ended(outcome())
    its.ended(outcome(429, reason="rate-limited", request_id="second"))
    assert told(its.refusals("bakery-1")) == [
        {
            "when": "now", "status": status, "code": code, "method": "GET", "route": "/api/v1/sales/**",
            "user": "ana", "request_id": request_id,
        }
        for status, code, request_id in ((429, "rate-limited", "second"), (403, "tenant-forbidden", "req-12345678"))
    ]  # fmt: skip
    assert told(its.errors("bakery-1")) == []
    assert told(its.refusals("bakery-2")) == []


@pytest.mark.parametrize(
    ("status", "reason", "where"),
    [
        (500, None, "errors"),
        (503, "state-unavailable", "errors"),
        (200, "cut", "errors"),
        (404, "not-found", "refusals"),
        (404, None, None),
        (499, "client-left", None),
        (200, None, None),
    ],
)
def test_errors_of_services_and_of_the_gateway_are_told_apart_from_refusals(status, reason, where):
    its = notes()
    its.ended(outcome(status, reason=reason, service="sales", cause="s3cret host"))
    found = {"errors": told(its.errors("bakery-1")), "refusals": told(its.refusals("bakery-1"))}
    assert [name for name, entries in found.items() if entries] == ([where] if where else [])
    if where == "errors":
        assert (found[where][0]["service"], found[where][0]["cause"]) == ("sales", "*** host")


@pytest.mark.parametrize(
    ("route", "reason", "noted"),
    [
        ("/api/v1/alerts/stream", "client-left", 0),
        ("/api/v1/alerts/stream", "draining", 0),
        ("/api/v1/alerts/stream", "slow", 1),
        ("/api/v1/sales/**", "client-left", 1),
    ],
)
def test_the_usual_end_of_a_stream_is_no_error(route, reason, noted):
    its = notes()
    ended = outcome(200, reason=reason)
    ended.trace.route = route
    its.ended(ended)
    assert len(told(its.errors("bakery-1"))) == noted


@pytest.mark.parametrize("why", get_args(Ending))
def test_every_end_that_the_gateway_gives_a_stream_is_usual(why):
    assert why in ENDINGS


def test_users_are_shown_as_they_may_be_when_they_are_asked_for():
    async def shown(user_ids):
        return {"ana": "pseudonym"}

    its = notes(shown)
    its.ended(outcome())
    its.ended(outcome(user_id="eva"))
    its.ended(outcome(user_id=None))
    assert [note["user"] for note in told(its.refusals("bakery-1"))] == [None, None, "pseudonym"]
    assert [note["user"] for note in told(its.refusals("bakery-1"))] == [None, None, "pseudonym"]


def test_nobodys_refusals_are_not_kept():
    its = notes()
    its.ended(outcome(401, tenant_id=None))
    assert len(its._tenants) == 0


def test_notes_and_tenants_are_bounded():
    its = notes()
    for number in range(MAX_NOTES + 5):
        its.ended(outcome(request_id=str(number)))
    assert [note["request_id"] for note in told(its.refusals("bakery-1"))][::19] == ["24", "5"]
    for number in range(MAX_TENANTS):
        its.ended(outcome(tenant_id=f"other-{number}"))
    assert told(its.refusals("bakery-1")) == []
    assert len(told(its.refusals("other-0"))) == 1


def test_an_erased_user_is_in_no_note():
    its = notes()
    its.ended(outcome())
    its.ended(outcome(502, user_id="ana"))
    its.ended(outcome(user_id="eva"))
    its.forget(name_of("ana"))
    assert [note["user"] for note in told(its.refusals("bakery-1"))] == ["eva", None]
    assert [note["user"] for note in told(its.errors("bakery-1"))] == [None]


@pytest.mark.parametrize(
    ("status", "reason", "counts"), [(200, None, 0), (304, None, 0), (404, None, 1), (200, "cut", 1)]
)
def test_only_what_was_refused_or_went_wrong_is_looked_at(status, reason, counts):
    seen = []
    with open(os.devnull, "wb") as nowhere:
        writer = LogWriter(nowhere.fileno(), Clock())
    log = RequestLog(configure_logging(writer))
    RequestTelemetry(log, Metrics(CollectorRegistry()), unwell=seen.append).ended(outcome(status, reason=reason))
    writer.close()
    structlog.reset_defaults()
    assert len(seen) == counts
