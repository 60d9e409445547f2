"""The handshake of WebSocket as values: what is offered, what may be answered, and what ends it."""

import re
from pathlib import Path

import pytest

from bakerygw.core.http import RequestHead
from bakerygw.core.problem import Refused
from bakerygw.core.websocket import (
    NotOffered,
    accept_of,
    answered_protocol,
    chosen_protocol,
    close_fault,
    handshake_of,
    without_bearer,
    without_secrets,
)
from bakerygw.realtime.training.bridge import ENDINGS
from tests.heads import make_head

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The pair of RFC 6455 section 1.3."""
GOOD = (
    (b"Upgrade", b"h2c, WebSocket"),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", KEY),
)


def head(*fields: tuple[bytes, bytes], less: bytes = b"", target: bytes = b"/api/v1/training/ws") -> RequestHead:
    kept = tuple(pair for pair in GOOD if pair[0] != less)
    return make_head(target=target, headers=(*kept, *fields))


def test_a_handshake_is_its_key_and_its_subprotocols_in_order() -> None:
    offer = handshake_of(
        head((b"Sec-WebSocket-Protocol", b"b, a"), (b"sec-websocket-protocol", b"c")), offers_upgrade=True
    )
    assert (offer.key, offer.protocols) == (KEY, ("b", "a", "c"))


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        (head(less=b"Upgrade"), 426, "websocket"),
        (head(less=b"Sec-WebSocket-Version"), 426, "version 13"),
        (head((b"Sec-WebSocket-Version", b"8"), less=b"Sec-WebSocket-Version"), 426, "version 13"),
        (head((b"Sec-WebSocket-Version", b"13")), 400, "Sec-WebSocket-Version"),
        (head(less=b"Sec-WebSocket-Key"), 400, "Sec-WebSocket-Key"),
        (head((b"Sec-WebSocket-Key", KEY)), 400, "Sec-WebSocket-Key"),
        (head((b"Sec-WebSocket-Key", b"c2hvcnQ="), less=b"Sec-WebSocket-Key"), 400, "16 random bytes"),
        (head((b"Sec-WebSocket-Key", b"!" * 24), less=b"Sec-WebSocket-Key"), 400, "base64"),
        (head((b"Sec-WebSocket-Protocol", b"a, a")), 400, "once"),
        (head((b"Sec-WebSocket-Protocol", b"a b")), 400, "name"),
        (head((b"Sec-WebSocket-Protocol", b"a,,b")), 400, "name"),
        (head((b"Sec-WebSocket-Protocol", b"")), 400, "name"),
    ],
)
def test_what_is_no_handshake_is_refused_with_what_to_send(given: RequestHead, status: int, told: str) -> None:
    with pytest.raises(Refused) as refused:
        handshake_of(given, offers_upgrade=True)
    problem = refused.value.problem
    assert (problem.status, told in problem.detail) == (status, True)
    assert ((b"Sec-WebSocket-Version", b"13") in problem.headers) == (status == 426)


def test_without_an_offer_of_the_connection_it_is_no_handshake() -> None:
    with pytest.raises(Refused) as refused:
        handshake_of(head(), offers_upgrade=False)
    assert refused.value.problem.code == "upgrade-required"


def test_the_accept_is_that_of_the_rfc() -> None:
    assert accept_of(KEY) == ACCEPT


@pytest.mark.parametrize(
    ("offered", "left"),
    [
        ((), ()),
        (("v1", "v2"), ("v1", "v2")),
        (("bearer", "a.b.c"), ()),
        (("v1", "bearer", "a.b.c", "v2"), ("v1", "v2")),
        (("v1", "bearer"), ("v1",)),
    ],
)
def test_bearer_and_its_token_are_not_for_the_service(offered: tuple[str, ...], left: tuple[str, ...]) -> None:
    assert without_bearer(offered) == left


@pytest.mark.parametrize(
    ("chosen", "offered", "answer"),
    [("v1", ("v1", "bearer", "t"), "v1"), (None, ("bearer", "t"), "bearer"), (None, ("v1",), None), (None, (), None)],
)
def test_the_services_choice_is_answered_else_bearer(
    chosen: str | None, offered: tuple[str, ...], answer: str | None
) -> None:
    assert answered_protocol(chosen, offered) == answer


@pytest.mark.parametrize(
    ("target", "left"),
    [
        (b"/p", b"/p"),
        (b"/p?", b"/p?"),
        (b"/p?a=1&&b", b"/p?a=1&&b"),
        (b"/p?token=x", b"/p"),
        (b"/p?token", b"/p"),
        (b"/p?a=%20&ticket=x&a=2&token=y", b"/p?a=%20&a=2"),
        (b"/p?%74oken=x&tokens=1&ticket.=2", b"/p?tokens=1&ticket.=2"),
        (b"/p?q=token=x", b"/p?q=token=x"),
    ],
)
def test_credentials_leave_the_query_and_all_else_stays_byte_for_byte(target: bytes, left: bytes) -> None:
    assert without_secrets(head(target=target)) == left


ANSWER = ((b"Upgrade", b"websocket"), (b"connection", b"upgrade"), (b"Sec-WebSocket-Accept", ACCEPT))


def test_a_service_may_choose_what_was_offered_or_nothing() -> None:
    assert chosen_protocol(ANSWER, KEY, ("a", "b")) is None
    assert chosen_protocol((*ANSWER, (b"Sec-WebSocket-Protocol", b"b")), KEY, ("a", "b")) == "b"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (ANSWER[1:], "another protocol"),
        (((b"Upgrade", b"h2c"), *ANSWER[1:]), "another protocol"),
        (ANSWER[:2], "Accept"),
        ((*ANSWER[:2], (b"Sec-WebSocket-Accept", KEY)), "Accept"),
        ((*ANSWER, ANSWER[2]), "Accept"),
        ((*ANSWER, (b"Sec-WebSocket-Extensions", b"permessage-deflate")), "extension"),
        ((*ANSWER, (b"Sec-WebSocket-Protocol", b"c")), "not offered"),
        ((*ANSWER, (b"Sec-WebSocket-Protocol", b"a"), (b"Sec-WebSocket-Protocol", b"b")), "not offered"),
    ],
)
def test_an_unsound_101_is_none(headers: tuple[tuple[bytes, bytes], ...], why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        chosen_protocol(headers, KEY, ("a", "b"))
    assert isinstance(raised.value, NotOffered) == (why == "not offered")


@pytest.mark.parametrize("code", [None, 1000, 1001, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4999])
def test_codes_for_the_wire(code: int | None) -> None:
    assert close_fault(code, "é".encode()) is None


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_codes_that_are_not(code: int) -> None:
    fault = close_fault(code, b"")
    assert fault is not None
    assert fault[0] == 1002


def test_a_reason_is_utf8() -> None:
    assert close_fault(1000, b"\xff") == (1007, "the reason is not UTF-8")


def test_every_ending_of_the_gateway_is_in_the_clients_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "realtime.md").read_text(encoding="utf-8")
    section = text.partition("\n## Training over WebSocket\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if re.match(r"\| 1\d\d\d \|", line)]
    told = {(int(row[0].strip("| ")), reason) for row in rows for reason in re.findall(r"`([^`]+)`", row[1])}
    assert told == {(code, reason.decode()) for code, reason in ENDINGS.values()}
