"""How many connections there may be, and that each one's deadlines are kept."""

from ipaddress import ip_network

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from tests.edge.edge_fakes import OK, App, Client, give, make_site, request


def connect(site, host: str):
    if host == "unix":
        return site.buildProtocol(UNIXAddress("/run/x"))
    return site.buildProtocol((IPv6Address if ":" in host else IPv4Address)("TCP", host, 4711))


def test_connections_over_the_total_are_closed_at_once():
    site = make_site(App(), Clock(), max_connections=2)
    first, _ = connect(site, "192.0.2.1"), connect(site, "192.0.2.2")
    assert connect(site, "192.0.2.3") is None
    assert site.refused_connections == 1
    site.forget(first)
    assert connect(site, "192.0.2.3") is not None


@pytest.mark.parametrize(
    ("first", "second", "counted_together"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", False),
        ("unix", "unix", False),
    ],
)
def test_connections_over_a_clients_share_are_closed_but_proxies_are_not_counted(first, second, counted_together):
    site = make_site(App(), Clock(), trusted=(ip_network("10.0.0.0/8"),), max_per_client=1)
    assert connect(site, first) is not None
    assert (connect(site, second) is None) == counted_together


def test_refused_connections_are_counted_by_their_bound_and_logged_once_a_minute(logged):
    clock, counted = Clock(), []
    site = make_site(App(), clock, max_connections=2, max_per_client=1, on_refused=counted.append)
    connect(site, "192.0.2.1")
    for _ in range(3):
        assert connect(site, "192.0.2.1") is None
    connect(site, "192.0.2.2")
    assert connect(site, "192.0.2.3") is None
    assert counted == ["client"] * 3 + ["all"]
    told = [(line["limit"], line["max"], line["client"], line["refused"]) for line in logged("connections.refused")]
    assert told == [("client", 1, "192.0.2.1", 1), ("all", 2, "192.0.2.3", 1)]
    clock.advance(60)
    for _ in range(4):
        assert connect(site, "192.0.2.4") is None
    told = [(line["limit"], line["client"], line["refused"]) for line in logged("connections.refused")[2:]]
    assert told == [("all", "192.0.2.4", 1)]
    clock.advance(60)
    assert connect(site, "192.0.2.5") is None
    assert logged("connections.refused")[-1]["refused"] == 4


def test_a_connection_that_ends_is_counted_once():
    site = make_site(App(), Clock(), max_per_client=1)
    channel = connect(site, "192.0.2.1")
    site.forget(channel)
    site.forget(channel)
    assert connect(site, "192.0.2.1") is not None
    assert connect(site, "192.0.2.1") is None


def test_the_number_of_connections_is_told():
    told = []
    site = make_site(App(lambda _: None), Clock(), on_connections=told.append, max_connections=9, max_per_client=7)
    client, other = Client(site=site), Client(site=site, peer="192.0.2.9")
    client.send(request())
    assert site.connections() == {
        "open": 2,
        "busy": 1,
        "refused": 0,
        "max": 9,
        "max_per_client": 7,
        "clients": [{"client": "192.0.2.1", "connections": 1}, {"client": "192.0.2.9", "connections": 1}],
    }
    client.leave()
    other.leave()
    assert told == [1, 2, 1, 0]


def test_deadlines_are_kept_from_the_start_until_the_last_connection_ends():
    clock = Clock()
    site = make_site(App(), clock)
    site.doStart()
    client = Client(site=site)
    for _ in range(21):
        clock.advance(0.5)
    assert client.wire.closed
    site.doStop()
    assert clock.getDelayedCalls() != []
    client.leave()
    assert clock.getDelayedCalls() == []


def test_a_site_without_connections_stops_at_once():
    clock = Clock()
    site = make_site(App(), clock)
    site.doStart()
    site.doStop()
    assert clock.getDelayedCalls() == []


def test_one_broken_connection_does_not_stop_the_others_deadlines(logged_failures):
    clock = Clock()
    site = make_site(App(), clock)
    site.doStart()
    broken, sound = Client(site=site), Client(site=site)

    def fail(now: float) -> None:
        raise ZeroDivisionError

    broken.channel.sweep = fail
    for _ in range(21):
        clock.advance(0.5)
    assert broken.wire.aborted
    assert sound.wire.closed
    assert logged_failures
    logged_failures.clear()


def test_the_peer_and_its_proxy_are_told_apart():
    app = App()
    site = make_site(app, Clock(), trusted=(ip_network("10.0.0.0/8"),))
    forwarded = request(b"GET", b"/", b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-Proto: https")
    for peer in ("10.0.0.1", "192.0.2.1", "unix"):
        Client(app, site=site, peer=peer).send(forwarded)
    seen = [(e.head.peer, e.head.client, e.head.trusted, e.head.secure) for e in app.exchanges]
    assert seen == [
        ("10.0.0.1", "203.0.113.7", True, True),
        ("192.0.2.1", "192.0.2.1", False, False),
        ("unknown", "203.0.113.7", True, True),
    ]


def test_shutdown_of_a_site_lets_replies_be_finished():
    client = Client(App(lambda _: None)).send(request())
    client.site.shutdown()
    give(client.app.exchanges[0], OK)
    assert client.only().status == 200
    assert client.wire.closed
