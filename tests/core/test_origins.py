"""Which pages may act for a user who is signed in by cookie."""

import pytest

from bakerygw.core.origins import check_origin, check_socket_origin, own_origin
from bakerygw.core.problem import Refused
from tests.heads import make_head

APP = b"https://app.example"


def headers(**fields: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), text.encode()) for name, text in fields.items()]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Origin": "https://app.example"},
        {"Origin": "http://gw.example"},
        {"Origin": "http://GW.example"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_pages_of_the_gateway_itself_and_of_allowed_origins_may(fields: dict[str, str]) -> None:
    check_origin(make_head("POST", headers=headers(Host="gw.example", **fields)), {APP})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"Sec_Fetch_Site": "cross-site"}, "csrf"),
        ({"Sec_Fetch_Site": " Cross-Site "}, "csrf"),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "https://app.example"}, "csrf"),
        ({"Origin": "null"}, "origin-forbidden"),
        ({"Origin": ""}, "origin-forbidden"),
        ({"Origin": "https://gw.example"}, "origin-forbidden"),
        ({"Origin": "http://gw.example:8000"}, "origin-forbidden"),
        ({"Origin": "http://gw.example.evil.example"}, "origin-forbidden"),
        ({"Origin": "https://APP.example"}, "origin-forbidden"),
    ],
)
def test_others_may_not(fields: dict[str, str], code: str) -> None:
    with pytest.raises(Refused) as refused:
        check_origin(make_head("POST", headers=headers(Host="gw.example", **fields)), {APP})
    assert refused.value.problem.code == code


def test_the_own_origin_is_as_the_client_sees_it() -> None:
    assert own_origin(make_head(headers=headers(Host="GW.example:443"), secure=True)) == b"https://gw.example"
    assert own_origin(make_head(headers=headers(Host="gw.example:8000"))) == b"http://gw.example:8000"
    told = headers(Host="10.0.0.7", X_Forwarded_Host="app.example, gw.example")
    assert own_origin(make_head(headers=told, trusted=True, secure=True)) == b"https://gw.example"
    assert own_origin(make_head(headers=told)) == b"http://10.0.0.7"
    assert own_origin(make_head()) == b""


@pytest.mark.parametrize(
    ("origins", "allowed", "cookie", "passes"),
    [
        ((), (), False, True),
        ((), (), True, False),
        ((b"https://app.example",), (b"https://app.example",), True, True),
        ((b"http://gw.example",), (), True, True),
        ((b"https://gw.example",), (), True, False),
        ((b"https://app.example.evil",), (b"https://app.example",), False, False),
        ((b"null",), (b"null",), False, False),
        ((b"null",), (b"*",), False, False),
        ((b"https://any.example",), (b"*",), False, True),
        ((b"https://any.example",), (b"*",), True, False),
        ((b"*",), (b"*",), False, False),
        ((b"https://app.example", b"https://app.example"), (b"https://app.example",), False, False),
    ],
)
def test_which_pages_may_open_a_socket(
    origins: tuple[bytes, ...], allowed: tuple[bytes, ...], cookie: bool, passes: bool
) -> None:
    opening = make_head("GET", headers=[(b"Host", b"gw.example"), *((b"Origin", origin) for origin in origins)])
    if passes:
        check_socket_origin(opening, allowed, cookie=cookie)
        return
    with pytest.raises(Refused) as caught:
        check_socket_origin(opening, allowed, cookie=cookie)
    assert caught.value.problem.code == "origin-forbidden"
