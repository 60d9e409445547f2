"""The demo's auth service: what its tokens say, and how sessions are kept and end."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from demo_calls import NOW, answer_of

from bakerygw.core.claims import claims_from, strict_object
from bakerygw.core.facts import read_email, read_subscription
from bakerygw.demo.accounts import DAY_S, PASSWORD, demo_directory
from bakerygw.demo.auth import ACCESS_TTL_S, REFRESH_TTL_S, AuthService, Issuer
from bakerygw.demo.tenants import TenantService


@dataclass
class Bench:
    """The service, with a clock set by hand."""

    now: float = NOW

    def __post_init__(self) -> None:
        self.directory = demo_directory(lambda: NOW)
        self.service: Callable[..., Any] = AuthService(self.directory, ISSUER, lambda: self.now)

    def post(self, name: str, body: Any, **headers: str) -> Any:
        return answer_of(self.service, "POST", f"/api/v1/auth/{name}", body, **headers)

    def login(self, email: str = "ana@espiga.example", password: str = PASSWORD) -> Any:
        return self.post("login", {"email": email, "password": password})


ISSUER = Issuer(lambda: NOW)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def claims_of(answer: Any) -> dict[str, Any]:
    return dict(
        jwt.decode(
            answer.body["access_token"],
            ISSUER.public_pem,
            algorithms=["RS256"],
            issuer="bakery-auth",
            options={"verify_exp": False, "verify_iat": False},
        )
    )


def test_a_token_states_who_where_and_what_is_paid_for(bench: Bench) -> None:
    answer = bench.login()
    claims = claims_of(answer)
    ana = bench.directory.accounts[0]
    assert answer.status == 200
    assert (answer.body["token_type"], answer.body["expires_in"]) == ("bearer", ACCESS_TTL_S)
    assert claims == {
        "user_id": ana.user_id,
        "email": "ana@espiga.example",
        "tenant_id": ana.tenant_id,
        "tenant_role": "owner",
        "subscription": {"tier": "professional", "status": "active", "valid_until": "2026-04-11T15:06:40Z"},
        "tenant_access": [],
        "exp": int(NOW) + ACCESS_TTL_S,
        "iat": int(NOW),
        "iss": "bakery-auth",
        "jti": claims["jti"],
    }


def test_a_shorter_token_may_be_asked_for(bench: Bench) -> None:
    answer = bench.post("login", {"email": "ana@espiga.example", "password": PASSWORD, "expires_in": 5})

    assert (answer.status, answer.body["expires_in"]) == (200, 5)
    assert claims_of(answer)["exp"] == int(NOW) + 5


@pytest.mark.parametrize("wanted", [0, -1, ACCESS_TTL_S + 1, 1.5, True, "5", None])
def test_a_token_of_another_lifetime_is_refused(bench: Bench, wanted: object) -> None:
    answer = bench.post("login", {"email": "ana@espiga.example", "password": PASSWORD, "expires_in": wanted})

    assert answer.status == 400
    assert "expires_in" in answer.body["detail"]


def test_each_token_has_a_jti_of_its_own(bench: Bench) -> None:
    assert claims_of(bench.login())["jti"] != claims_of(bench.login())["jti"]


@pytest.mark.parametrize("account", demo_directory(lambda: NOW).accounts, ids=lambda account: str(account.email))
def test_the_token_of_every_account_is_one_that_the_gateway_reads(bench: Bench, account: Any) -> None:
    token = bench.login(account.email).body["access_token"]
    payload = jwt.utils.base64url_decode(token.split(".")[1])
    claims = claims_from(strict_object(payload))
    assert (claims.user_id, claims.tenant_id) == (account.user_id, account.tenant_id)
    assert claims.is_demo is (account.email == "visitor@demo.example")


def test_subscriptions_are_current_in_grace_and_long_expired(bench: Bench) -> None:
    def days_left(email: str) -> float:
        payload = jwt.utils.base64url_decode(bench.login(email).body["access_token"].split(".")[1])
        until = claims_from(strict_object(payload))
        assert until.subscription is not None
        assert until.subscription.valid_until is not None
        return (until.subscription.valid_until - NOW) / DAY_S

    assert days_left("ana@espiga.example") > 100
    assert -7 < days_left("nuria@puig.example") < 0
    assert days_left("otto@vogel.example") < -7


def test_access_to_further_tenants_is_in_the_token_with_role_and_plan(bench: Bench) -> None:
    espiga, demo = claims_of(bench.login("jordi@martin.example"))["tenant_access"]
    tenants = bench.directory.tenants
    assert (tenants[espiga["id"]].name, espiga["role"], espiga["tier"]) == (
        "Panadería La Espiga",
        "admin",
        "professional",
    )
    assert tenants[demo["id"]].demo


def test_an_old_token_leaves_out_what_the_services_answer(bench: Bench) -> None:
    claims = claims_of(bench.login("rosa@espiga.example"))
    assert not {"subscription", "email"} & claims.keys()
    who = {"X_User_Id": claims["user_id"], "X_Tenant_Id": claims["tenant_id"]}
    tenants = TenantService(bench.directory, lambda: NOW)
    status = answer_of(tenants, "GET", f"/api/v1/tenants/{claims['tenant_id']}/subscription/status", **who)
    assert read_subscription(json.dumps(status.body).encode()).tier == "professional"
    me = answer_of(bench.service, "GET", "/api/v1/auth/me", **who)
    assert read_email(json.dumps(me.body).encode(), claims["user_id"]) == "rosa@espiga.example"


def test_a_demo_account_gets_a_session_that_a_refresh_keeps(bench: Bench) -> None:
    first, other = bench.login("visitor@demo.example"), bench.login("visitor@demo.example")
    refreshed = bench.post("refresh", {"refresh_token": first.body["refresh_token"]})
    assert claims_of(first)["is_demo"] is True
    assert claims_of(first)["demo_session_id"] == claims_of(refreshed)["demo_session_id"]
    assert claims_of(first)["demo_session_id"] != claims_of(other)["demo_session_id"]


@pytest.mark.parametrize(
    ("email", "password"), [("ana@espiga.example", "wrong"), ("nobody@espiga.example", PASSWORD), ("x@y.example", "é")]
)
def test_a_wrong_pair_is_401(bench: Bench, email: str, password: str) -> None:
    assert bench.login(email, password).status == 401


def test_an_unknown_address_with_an_empty_password_does_not_sign_in(bench: Bench) -> None:
    assert bench.login("nobody@espiga.example", "").status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"email":1,"password":"x"}', b'{"email":"ana@espiga.example"}'])
def test_a_malformed_login_is_400(bench: Bench, body: bytes) -> None:
    assert bench.post("login", body).status == 400


def test_the_address_is_read_without_regard_to_case(bench: Bench) -> None:
    assert bench.login("Ana@Espiga.Example").status == 200


def test_a_refresh_gives_a_new_pair_and_spends_the_old_token(bench: Bench) -> None:
    first = bench.login().body["refresh_token"]
    second = bench.post("refresh", {"refresh_token": first})
    assert second.status == 200
    assert second.body["refresh_token"] != first
    assert claims_of(second)["email"] == "ana@espiga.example"
    assert bench.post("refresh", {"refresh_token": first}).status == 401


def test_the_second_use_of_a_refresh_token_ends_its_session_and_no_other(bench: Bench) -> None:
    first, other = bench.login().body["refresh_token"], bench.login().body["refresh_token"]
    second = bench.post("refresh", {"refresh_token": first}).body["refresh_token"]
    bench.post("refresh", {"refresh_token": first})
    assert bench.post("refresh", {"refresh_token": second}).status == 401
    assert bench.post("refresh", {"refresh_token": other}).status == 200


def test_a_refresh_token_ends_after_its_time(bench: Bench) -> None:
    token = bench.login().body["refresh_token"]
    bench.now = NOW + REFRESH_TTL_S
    assert bench.post("refresh", {"refresh_token": token}).status == 401


def test_logout_ends_the_named_session_of_the_caller_alone(bench: Bench) -> None:
    ana = bench.directory.accounts[0].user_id
    mine, kept = bench.login().body["refresh_token"], bench.login().body["refresh_token"]
    hers = bench.login("claire@martin.example").body["refresh_token"]
    assert bench.post("logout", {"refresh_token": mine}, X_User_Id=ana).status == 204
    assert bench.post("logout", {"refresh_token": hers}, X_User_Id=ana).status == 204
    assert bench.post("refresh", {"refresh_token": mine}).status == 401
    assert bench.post("refresh", {"refresh_token": kept}).status == 200
    assert bench.post("refresh", {"refresh_token": hers}).status == 200


def test_logout_without_a_token_ends_all_sessions_of_the_caller(bench: Bench) -> None:
    mine = bench.login().body["refresh_token"]
    bench.post("logout", None, X_User_Id=bench.directory.accounts[0].user_id)
    assert bench.post("refresh", {"refresh_token": mine}).status == 401


def test_logout_and_me_need_an_identity(bench: Bench) -> None:
    assert bench.post("logout", None).status == 401
    assert answer_of(bench.service, "GET", "/api/v1/auth/me").status == 401


def test_me_is_the_caller_without_the_password(bench: Bench) -> None:
    answer = answer_of(bench.service, "GET", "/api/v1/auth/me", X_User_Id=bench.directory.accounts[0].user_id)
    assert answer.body["email"] == "ana@espiga.example"
    assert PASSWORD not in str(answer.body)


def test_whoever_registers_owns_a_new_bakery_on_trial_and_can_sign_in(bench: Bench) -> None:
    body = {"email": "New@oven.example", "password": "longenough", "bakery_name": "New Oven"}
    answer = bench.post("register", body)
    claims = claims_of(answer)
    assert answer.status == 201
    assert (claims["tenant_role"], claims["subscription"]["status"]) == ("owner", "trialing")
    assert bench.directory.tenants[claims["tenant_id"]].name == "New Oven"
    assert claims_of(bench.login("new@oven.example", "longenough"))["user_id"] == claims["user_id"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"email": "ana@espiga.example"}, 409),
        ({"email": "no-address"}, 400),
        ({"email": "a@b.example\r\nX: y"}, 400),
        ({"password": "short"}, 400),
        ({"bakery_name": 7}, 400),
    ],
)
def test_a_registration_that_cannot_be_is_refused(bench: Bench, change: dict[str, Any], status: int) -> None:
    body = {"email": "new@oven.example", "password": "longenough"} | change
    assert bench.post("register", body).status == status


def test_a_paid_subscription_is_in_the_next_token(bench: Bench) -> None:
    tenants = TenantService(bench.directory, lambda: NOW)
    otto = next(account for account in bench.directory.accounts if account.email == "otto@vogel.example")
    path = f"/api/v1/tenants/{otto.tenant_id}/subscription"
    answer_of(tenants, "PUT", path, {"tier": "enterprise"}, X_Tenant_Id=otto.tenant_id)
    claims = claims_of(bench.login("otto@vogel.example"))
    assert claims["subscription"] == {"tier": "enterprise", "status": "active", "valid_until": "2025-07-15T15:06:40Z"}


def test_other_methods_and_paths_are_405_and_404(bench: Bench) -> None:
    refused = answer_of(bench.service, "GET", "/api/v1/auth/login")
    assert (refused.status, refused.headers) == (405, (("Allow", "POST"),))
    assert answer_of(bench.service, "POST", "/api/v1/auth/login/more").status == 404
    assert answer_of(bench.service, "POST", "/login").status == 404
