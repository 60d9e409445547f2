import pytest
from heads import make_head
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.forwarding import forward_headers, reply_headers
from bakerygw.core.http import Pairs

VIA = b"1.1 bakerygw"
PARENT = b"00-" + b"a" * 32 + b"-" + b"1" * 16 + b"-01"
CONTINUED = ((b"traceparent", b"00-" + b"a" * 32 + b"-" + b"2" * 16 + b"-01"),)
AUTHORITIES = ("sales:8000", "stock")

HOP_BY_HOP = [
    *("Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization"),
    *("TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings"),
]
OURS = [
    *("Host", "Content-Length", "Expect", "X-Request-ID", "traceparent", "tracestate", "Via", "Proxy"),
    *("X-User-Id", "X-User-Email", "X-User-Role", "X-Tenant-Id", "X-Subscription-Tier", "X-Subscription-Status"),
    *("X-Is-Demo", "X-Demo-Session-Id", "X-Gateway-Anything", "X-Internal-Anything", "X-Real-IP", "Forwarded"),
    *("X-Client-IP", "True-Client-IP", "Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP"),
    *("X-Host", "X-Tenant", "X-Forwarded", "X-Original-Host", "X-ProxyUser-Ip", "X-Api-Key", "X-Authenticated-User"),
    *("Remote-User", "X-Remote-User", "X-Forwarded-User", "CF-Connecting-IPv6"),
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port"),
    *("X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override"),
]


def forwarded(*headers: tuple[bytes, bytes], owed: Pairs = (), **head: object) -> Pairs:
    return forward_headers(make_head(headers=headers, peer="10.0.0.9", **head), owed, via=VIA)  # type: ignore[arg-type]


def values(pairs: Pairs, name: bytes) -> list[bytes]:
    return [value for key, value in pairs if key.lower() == name.lower()]


def test_end_to_end_headers_keep_order_case_and_duplicates() -> None:
    sent = ((b"aCCept", b"*/*"), (b"X-Thing", b"1"), (b"Accept", b"text/html"), (b"x-thing", b"\xff2"))
    assert forwarded(*sent)[:4] == sent


@pytest.mark.parametrize("name", HOP_BY_HOP + OURS)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_what_the_client_may_not_say_is_dropped(name: str, spell: object) -> None:
    field = spell(name).encode()  # type: ignore[operator]
    assert b"forged" not in [value for key, value in forwarded((field, b"forged")) if key != b"X-Forwarded-Host"]


@pytest.mark.parametrize("name", [b"X_User_Id", b"X-Tenant_Id", b"any_thing", b"_"])
def test_a_name_with_an_underscore_never_passes(name: bytes) -> None:
    assert values(forwarded((name, b"1")), name) == []


@pytest.mark.parametrize("value", [b"ApiKey k", b"apikey k", b"APIKEY  k", b"ApiKey", b"ApiKey,k", b"Bearer bkry_a_b"])
def test_an_api_key_never_passes(value: bytes) -> None:
    assert values(forwarded((b"Authorization", value)), b"Authorization") == []
    assert values(forwarded((b"Authorization", b"Bearer t"), (b"authorization", value)), b"Authorization") == []


@pytest.mark.parametrize("value", [b"Bearer t", b"Basic dTpw", b"Bearer apikey", b""])
def test_other_authorization_passes(value: bytes) -> None:
    assert values(forwarded((b"Authorization", value)), b"Authorization") == [value]


PAGE = b"https://app.bakery.example/board"


@pytest.mark.parametrize("query", [b"token=t", b"ticket=t", b"day=1&token=t", b"to%6ben=t", b"ticket", b"token=&a=1"])
def test_of_a_page_whose_query_has_a_credential_the_query_never_passes(query: bytes) -> None:
    pairs = forwarded((b"Accept", b"*/*"), (b"referer", PAGE + b"?" + query), (b"X-Thing", b"1"))
    assert pairs[:3] == ((b"Accept", b"*/*"), (b"referer", PAGE), (b"X-Thing", b"1"))
    assert values(forwarded((b"Referer", b"?" + query)), b"Referer") == []


@pytest.mark.parametrize(
    "referer", [PAGE, PAGE + b"?", PAGE + b"?day=1&tokens=2&my_token=3&x=token=4", b"", b"token=t", b"/a;token=t?b"]
)
def test_other_pages_pass_as_they_are(referer: bytes) -> None:
    assert values(forwarded((b"Referer", referer)), b"Referer") == [referer]


@pytest.mark.parametrize("name", [b"X-Userid", b"X-Forward", b"Viable", b"X-Usage", b"Hosts", b"Te2"])
def test_names_that_only_look_alike_pass(name: bytes) -> None:
    assert values(forwarded((name, b"1")), name) == [b"1"]


def test_connection_options_are_dropped_whatever_their_case_and_spread() -> None:
    pairs = forwarded((b"Connection", b"close, X-One"), (b"x-one", b"1"), (b"connection", b"X-Two ,"), (b"X-TWO", b"2"))
    assert values(pairs, b"x-one") == values(pairs, b"x-two") == []


def test_connection_cannot_take_away_what_the_gateway_adds() -> None:
    names = b"X-User-Id, X-Forwarded-For, Via, X-Forwarded-Proto, X-Request-ID"
    pairs = forwarded((b"Connection", names), (b"X-User-Id", b"forged"), owed=((b"X-User-Id", b"u1"),))
    assert values(pairs, b"X-User-Id") == [b"u1"]
    assert values(pairs, b"X-Forwarded-For") == [b"10.0.0.9"]
    assert values(pairs, b"Via") == [VIA]


def test_an_untrusted_client_has_no_say_about_its_way() -> None:
    pairs = forwarded(
        (b"Host", b"gw.example"),
        (b"X-Forwarded-For", b"1.2.3.4"),
        (b"X-Forwarded-Host", b"evil"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Via", b"1.1 evil"),
        (b"tracestate", b"a=b"),
    )
    assert pairs == (
        (b"X-Forwarded-For", b"10.0.0.9"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"gw.example"),
        (b"Via", VIA),
    )


def test_a_trusted_proxy_is_believed_and_appended_to() -> None:
    pairs = forwarded(
        (b"Host", b"inner"),
        (b"X-Forwarded-For", b"1.2.3.4"),
        (b"X-Forwarded-For", b"5.6.7.8"),
        (b"X-Forwarded-Host", b"bakery.example"),
        (b"Via", b"2 edge"),
        (b"traceparent", PARENT),
        (b"tracestate", b"a=b"),
        trusted=True,
        secure=True,
        owed=CONTINUED,
    )
    assert pairs == (
        (b"tracestate", b"a=b"),
        *CONTINUED,
        (b"X-Forwarded-For", b"1.2.3.4, 5.6.7.8, 10.0.0.9"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"bakery.example"),
        (b"Via", b"2 edge, 1.1 bakerygw"),
    )


@pytest.mark.parametrize(
    ("parents", "trusted", "kept"),
    [
        ([PARENT], True, [b"a=b"]),
        ([PARENT], False, []),
        ([], True, []),
        ([b"nonsense"], True, []),
        ([PARENT, PARENT], True, []),
        ([PARENT.replace(b"a", b"c")], True, []),
    ],
)
def test_tracestate_goes_with_the_one_trace_that_is_continued(
    parents: list[bytes], trusted: bool, kept: list[bytes]
) -> None:
    sent = [(b"traceparent", parent) for parent in parents]
    pairs = forwarded(*sent, (b"tracestate", b"a=b"), owed=CONTINUED, trusted=trusted)
    assert values(pairs, b"tracestate") == kept
    assert values(pairs, b"traceparent") == [CONTINUED[0][1]]


@pytest.mark.parametrize(
    ("told", "host"),
    [
        ([b"far.example", b"near.example:8443"], b"near.example:8443"),
        ([b"far.example, near.example"], b"near.example"),
        ([b"far.example, [::1]:80"], b"[::1]:80"),
        ([b"far.example, "], b"inner"),
        ([b"near.example/path"], b"inner"),
        ([b"a b"], b"inner"),
    ],
)
def test_the_nearest_forwarded_host_counts_if_it_is_one(told: list[bytes], host: bytes) -> None:
    sent = [(b"X-Forwarded-Host", value) for value in told]
    assert values(forwarded((b"Host", b"inner"), *sent, trusted=True), b"X-Forwarded-Host") == [host]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"a=1; b=2", [b"a=1; b=2"]),
        (b"__Host-bakery-session=s", []),
        (b"a=1; __Host-bakery-session=s; b=2;c=3", [b"a=1; b=2;c=3"]),
        (b"__Host-bakery-session=s; b=2", [b"b=2"]),
        (b"a=__Host-bakery-session", [b"a=__Host-bakery-session"]),
        (b"__Host-bakery-session2=s", [b"__Host-bakery-session2=s"]),
        (b"__Host-bakery-session =s;__Host-bakery-session=t", []),
    ],
)
def test_only_the_gateways_own_session_cookie_is_taken_out(sent: bytes, kept: list[bytes]) -> None:
    assert values(forwarded((b"Cookie", sent)), b"cookie") == kept


TOKEN = st.text("abcdefgXYZ019-_.!~", min_size=1, max_size=12).map(str.encode)
NAMES = st.one_of(TOKEN, st.sampled_from([name.encode() for name in HOP_BY_HOP + OURS]))
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=12)), max_size=20)


@given(FIELDS, st.booleans())
def test_the_result_is_the_clients_fields_in_order_then_the_gateways(
    fields: list[tuple[bytes, bytes]], trusted: bool
) -> None:
    owed = ((b"X-User-Id", b"u1"), (b"X-Request-ID", b"r1"))
    pairs = forward_headers(make_head(headers=fields, trusted=trusted), owed, via=VIA)
    at = pairs.index(owed[0])
    rest = iter(fields)
    assert all(pair in rest for pair in pairs[:at]), "a subsequence of what was sent"
    assert pairs[at : at + 2] == owed
    banned = {name.lower().encode() for name in HOP_BY_HOP + OURS} - {b"tracestate"}
    assert not [name for name, _ in pairs[:at] if name.lower() in banned or b"_" in name]
    assert [name for name, _ in pairs[at + 2 :] if name == b"Via"] == [b"Via"]


@given(
    st.lists(
        st.tuples(TOKEN.filter(lambda name: b"_" not in name).map(lambda name: b"Q" + name), st.binary(max_size=9))
    )
)
def test_every_other_field_arrives_as_sent(fields: list[tuple[bytes, bytes]]) -> None:
    assert forward_headers(make_head(headers=fields), (), via=VIA)[: len(fields)] == tuple(fields)


@pytest.mark.parametrize(
    "name",
    [
        *HOP_BY_HOP,
        "Server",
        "X-Powered-By",
        "X-Internal-Node",
        "Content-Length",
        "Access-Control-Allow-Origin",
        "RateLimit",
        "RateLimit-Policy",
        "X-RateLimit-Remaining",
        "X-Request-ID",
        "X-Content-Type-Options",
        "Strict-Transport-Security",
        "X-Subscription-Grace",
    ],
)
def test_what_a_service_may_not_tell_the_client_is_dropped(name: str) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert reply_headers(((spelling.encode(), b"1"),), authorities=()) == ()


def test_other_response_headers_pass_as_they_are_cookies_one_by_one() -> None:
    sent = (
        (b"Vary", b"Accept"),
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2, c"),
        (b"ETag", b'"x"'),
        (b"Proxy-Status", b"svc; error=x"),
    )
    assert reply_headers(sent, authorities=AUTHORITIES) == sent


def test_response_connection_options_are_dropped() -> None:
    sent = ((b"X-Hop", b"1"), (b"Connection", b"x-hop"), (b"X-Stay", b"2"))
    assert reply_headers(sent, authorities=()) == ((b"X-Stay", b"2"),)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"http://sales:8000/a?b#c", b"/a?b#c"),
        (b"HTTP://SALES:8000/a", b"/a"),
        (b"//sales:8000/a", b"/a"),
        (b"http://user@sales:8000/a", b"/a"),
        (b"http://sales:8000", b"/"),
        (b"http://sales:8000?q", b"/?q"),
        (b"http://stock:80/a", b"/a"),
        (b"https://stock:443/a", b"/a"),
        (b"http://sales:8000//evil.example/a", b"/.//evil.example/a"),
        (b"http://sales:8000/\\evil.example/a", b"/./\\evil.example/a"),
        (b"/already/relative", b"/already/relative"),
        (b"/a?next=http://sales:8000/b", b"/a?next=http://sales:8000/b"),
        (b"http://sales:8001/a", b"http://sales:8001/a"),
        (b"http://sales:8000.evil.example/a", b"http://sales:8000.evil.example/a"),
        (b"https://pay.example/a", b"https://pay.example/a"),
        (b"http://\xff/a", b"http://\xff/a"),
    ],
)
def test_a_location_on_the_service_itself_becomes_relative(sent: bytes, shown: bytes) -> None:
    for name in (b"Location", b"Content-Location"):
        assert reply_headers(((name, sent),), authorities=AUTHORITIES) == ((name, shown),)
