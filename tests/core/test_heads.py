"""A head is sound or refused: methods, framing fields, Host, and whose word about the client is believed."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.heads import MAX_LENGTH_DIGITS, TrustedProxies, bad_method, body_length, client_subject, read_head
from bakerygw.core.problem import Refused

HOST = (b"Host", b"bakery.example")
PROXIES = TrustedProxies((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))


def read(*headers, method=b"GET", target=b"/a?b", version="1.1", peer="192.0.2.1", tls=False, host=HOST):
    return read_head(
        method=method,
        target=target,
        headers=(host, *headers) if host else headers,
        version=version,
        peer=peer,
        tls=tls,
        proxies=PROXIES,
    )


def refusal(*headers, **more):
    with pytest.raises(Refused) as refused:
        read(*headers, **more)
    assert refused.value.problem.close
    return refused.value.problem


def test_a_sound_head_is_kept_as_sent():
    head = read((b"X-a", b"1"), (b"x-A", b"2"))
    assert (head.method, head.target, head.path, head.query, head.length) == ("GET", b"/a?b", b"/a", b"b", 0)
    assert head.headers == (HOST, (b"X-a", b"1"), (b"x-A", b"2"))
    assert head.fields[b"x-a"] == (b"1", b"2")
    assert (head.peer, head.client, head.trusted, head.secure) == ("192.0.2.1", "192.0.2.1", False, False)


def test_tls_is_secure():
    assert read(tls=True).secure


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"])
def test_the_seven_methods_pass(method):
    assert read(method=method).method == method.decode()


@pytest.mark.parametrize(
    ("method", "code"),
    [(b"CONNECT", "method-not-allowed"), (b"TRACE", "method-not-allowed"), (b"PURGE", "method-not-implemented")],
)
def test_other_methods_do_not(method, code):
    assert refusal(method=method).code == code


def test_asterisk_is_for_options_alone():
    assert read(method=b"OPTIONS", target=b"*").path == b"*"
    assert refusal(target=b"*").code == "bad-request"


@pytest.mark.parametrize(
    "target", [b"", b"a", b"http://a/", b"//a", b"/a/../b", b"/%2e%2e/", b"/a#", b"/\x80", b"/a b"]
)
def test_a_target_that_could_mean_another_is_refused_and_the_reason_kept(target):
    problem = refusal(target=target)
    assert problem.code == "bad-request"
    assert problem.reason


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0"])
def test_other_versions_are_refused(version):
    assert refusal(version=version).reason == "version"


@pytest.mark.parametrize(
    "host",
    [b"a", b"a.example:8080", b"A_b~c", b"127.0.0.1", b"[::1]", b"[::1]:80", b"xn--bckerei-5wa.example"],
)
def test_hosts_that_pass(host):
    assert read(host=(b"host", host)).first(b"host") == host


@pytest.mark.parametrize(
    "host",
    [b"", b"a b", b"a/b", b"u@a", b"a:x", b"a:123456", b"[::1", b"[x]", b"a\x00", b"\xe9", b"a\\b", b"a?b", b"a#b"],
)
def test_hosts_that_do_not(host):
    assert refusal(host=(b"Host", host)).reason == "host"


def test_one_host_and_only_one():
    assert refusal(host=None).reason == "host"
    assert refusal(HOST).reason == "host"
    assert refusal(host=None, version="1.0").reason == "host"


def length(version="1.1", **fields):
    return body_length({name.replace("_", "-").encode(): values for name, values in fields.items()}, version)


def test_the_length_of_a_body():
    assert length() == 0
    assert length(content_length=(b"0",)) == 0
    assert length(content_length=(b"00042",)) == 42
    assert length(transfer_encoding=(b"chunked",)) is None
    assert length(transfer_encoding=(b"CHUNKED",)) is None


@pytest.mark.parametrize(
    "values",
    [
        *((b"1", b"1"), (b"1, 1",), (b"",), (b"+1",), (b"-1",), (b"1.0",), (b"0x1",), (b" 1",), (b"\xb2",), (b"1_0",)),
        (b"1" * (MAX_LENGTH_DIGITS + 1),),
    ],
)
def test_lengths_that_are_not_one_number(values):
    with pytest.raises(Refused):
        length(content_length=values)


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"transfer_encoding": (b"chunked",)}, "1.0"),
        ({"transfer_encoding": (b"chunked",), "content_length": (b"1",)}, "1.1"),
        ({"transfer_encoding": (b"chunked", b"chunked")}, "1.1"),
        ({"transfer_encoding": (b"gzip, chunked",)}, "1.1"),
        ({"transfer_encoding": (b"identity",)}, "1.1"),
        ({"transfer_encoding": (b"",)}, "1.1"),
    ],
)
def test_codings_that_are_not_chunked_alone(fields, version):
    with pytest.raises(Refused):
        length(version, **fields)


@given(st.binary(max_size=20))
def test_a_length_is_decimal_digits_or_refused(value):
    digits = bool(value) and set(value) <= set(b"0123456789") and len(value) <= MAX_LENGTH_DIGITS
    try:
        assert length(content_length=(value,)) == int(value)
        assert digits
    except Refused:
        assert not digits


@pytest.mark.parametrize(
    ("received", "code"),
    [
        (b"BAKE / HTTP/1.1\r\n", "method-not-implemented"),
        (b"get / HTTP/1.1\r\n", "method-not-implemented"),
        (b"B", "method-not-implemented"),
        (b"\x16\x03\x01\x02", "bad-request"),
        (b"(/ HTTP/1.1", "bad-request"),
        (b"A" * 40 + b" / HTTP/1.1", "bad-request"),
        (b"", "bad-request"),
    ],
)
def test_an_unknown_method_is_told_from_another_protocol(received, code):
    problem = bad_method(received).problem
    assert (problem.code, problem.close) == (code, True)


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ((), "10.0.0.1"),
        ((b"203.0.113.7",), "203.0.113.7"),
        ((b"6.6.6.6, 203.0.113.7",), "203.0.113.7"),
        ((b"203.0.113.7, 10.0.0.2",), "203.0.113.7"),
        ((b"6.6.6.6", b"203.0.113.7 , 10.0.0.2"), "203.0.113.7"),
        ((b"10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        ((b"203.0.113.7:1234",), "203.0.113.7"),
        ((b"[2001:db8::1]:1234",), "2001:db8::1"),
        ((b"2001:db8::1",), "2001:db8::1"),
        ((b"fe80::1%eth0",), "fe80::1"),
        ((b"::ffff:203.0.113.7, ::ffff:10.0.0.2",), "203.0.113.7"),
        ((b"203.0.113.7, nonsense",), "10.0.0.1"),
        ((b"203.0.113.7, , 10.0.0.2",), "10.0.0.2"),
        ((b"\xff",), "10.0.0.1"),
        ((b"1.2.3.4.5",), "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_is_believed_and_nobody_behind_an_untrusted_hop(forwarded, client):
    headers = [(b"X-Forwarded-For", value) for value in forwarded]
    assert read(*headers, peer="10.0.0.1").client == client
    assert read(*headers, peer="192.0.2.1").client == "192.0.2.1"


@pytest.mark.parametrize(
    ("values", "secure"),
    [
        ((b"https",), True),
        ((b"HTTPS",), True),
        ((b"http",), False),
        ((b"https, http",), False),
        ((b"http", b"https"), True),
    ],
)
def test_the_nearest_proxys_word_about_tls_counts(values, secure):
    headers = [(b"X-Forwarded-Proto", value) for value in values]
    assert read(*headers, peer="10.0.0.1").secure == secure
    assert not read(*headers, peer="192.0.2.1").secure


@pytest.mark.parametrize(
    ("address", "trusted"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("fd00::1", True), ("11.0.0.1", False), ("unix", False)],
)
def test_trust_is_by_network(address, trusted):
    assert PROXIES.trusts(address) == trusted


@pytest.mark.parametrize(
    ("client", "subject"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "local"),
    ],
)
def test_who_is_limited(client, subject):
    assert client_subject(client) == subject
