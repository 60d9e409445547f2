"""The demo's notification service takes each alert once."""

import pytest
from demo_calls import NOW, answer_of

from bakerygw.demo.notifications import KEPT, MAX_KEYS, with_alerts
from bakerygw.demo.web import Answer, Service

ALERTS = "/api/v1/notifications/alerts"
ALERT = {"alert_id": "a-1", "severity": "critical", "message": "Oven 2 is cold", "channels": ["email"]}


@pytest.fixture
def service() -> Service:
    return with_alerts(lambda call: Answer(body="the rest"), lambda: NOW)


def test_an_alert_is_accepted_and_shown_to_its_bakery_alone(service: Service) -> None:
    made = answer_of(service, "POST", ALERTS, ALERT, X_Tenant_Id="t-1", Idempotency_Key="k-1")
    shown = answer_of(service, "GET", ALERTS, X_Tenant_Id="t-1")
    assert (made.status, made.body["message"], made.body["channels"]) == (201, "Oven 2 is cold", ["email"])
    assert shown.body == {"items": [made.body], "total": 1}
    assert answer_of(service, "GET", ALERTS, X_Tenant_Id="t-2").body["items"] == []
    assert answer_of(service, "GET", ALERTS).body["items"] == []


def test_a_repeated_key_sends_nothing_and_gets_the_first_answer(service: Service) -> None:
    first, again, other = (
        answer_of(service, "POST", ALERTS, ALERT, X_Tenant_Id="t-1", Idempotency_Key=key) for key in ("k", "k", "l")
    )
    assert (again.status, again.body["id"]) == (201, first.body["id"])
    assert other.body["id"] != first.body["id"]
    assert answer_of(service, "GET", ALERTS, X_Tenant_Id="t-1").body["total"] == 2


def test_what_is_remembered_is_bounded(service: Service) -> None:
    for number in range(MAX_KEYS + 1):
        answer_of(service, "POST", ALERTS, ALERT, X_Tenant_Id="t-1", Idempotency_Key=str(number))
    shown = answer_of(service, "GET", ALERTS, X_Tenant_Id="t-1").body["items"]
    oldest = answer_of(service, "POST", ALERTS, ALERT, X_Tenant_Id="t-1", Idempotency_Key="0")
    newest = answer_of(service, "POST", ALERTS, ALERT, X_Tenant_Id="t-1", Idempotency_Key=str(MAX_KEYS))
    assert len(shown) == KEPT
    assert newest.body["id"] == shown[0]["id"]
    assert oldest.body["id"] not in {item["id"] for item in shown}


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [("POST", b"no", 400), ("POST", {}, 400), ("POST", {"message": 1}, 400), ("DELETE", None, 405)],
)
def test_what_is_no_alert_is_refused(service: Service, method: str, body: object, status: int) -> None:
    assert answer_of(service, method, ALERTS, body).status == status


def test_everything_else_goes_to_the_records(service: Service) -> None:
    assert answer_of(service, "GET", "/api/v1/notifications").body == "the rest"
