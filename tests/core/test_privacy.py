import pytest

from bakerygw.core.privacy import truncated


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:7:8:9::1", "2001:db8:7::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:db8:7::/48", "2001:db8:7::/48"),
        ("192.0.2.77/32", "192.0.2.0/24"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_an_address_becomes_its_network(address, network):
    assert truncated(address) == network
    assert truncated(network) == network


@pytest.mark.parametrize(
    "odd", ["192.0.2.77:5000", "ana@x.example", "192.0.2", "a/b", "2001:db8:::1", "1.2.3.4, 5.6.7.8"]
)
def test_what_may_hide_an_address_is_left_out(odd):
    assert truncated(odd) == ""
