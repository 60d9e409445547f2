"""What an API key may do."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from bakerygw.core.key_terms import KeyTerms, check_terms
from bakerygw.core.problem import Refused
from bakerygw.core.routing import Route
from tests.heads import make_head

ROUTE = Route(prefix="/api/v1/pos", template="/api/v1/pos/**", kind="proxy", service="pos")
ANY = KeyTerms(key_id="k", paths=None, methods=None, networks=None, limit=None)


def refusal(terms, method="GET", target=b"/api/v1/pos", route=ROUTE, client="192.0.2.7"):
    with pytest.raises(Refused) as refused:
        check_terms(terms, make_head(method, target, client=client), route)
    assert refused.value.problem.code == "tenant-forbidden"
    return refused.value.problem


def passes(terms, method="GET", target=b"/api/v1/pos", client="192.0.2.7"):
    check_terms(terms, make_head(method, target, client=client), ROUTE)


def test_a_key_without_bounds_goes_everywhere_from_anywhere():
    for client in ("192.0.2.7", "2001:db8::1", "unknown"):
        passes(ANY, "DELETE", b"/api/v1/sales/1", client)


@pytest.mark.parametrize("path", [b"/api/v1/pos", b"/api/v1/pos/", b"/api/v1/pos/till/1", b"/api/v1/sales/7/x"])
def test_a_key_for_paths_opens_them_and_all_below(path):
    passes(replace(ANY, paths=(b"/api/v1/pos", b"/api/v1/sales/7")), target=path)


@pytest.mark.parametrize(
    "path",
    [
        b"/api/v1/pos2",
        b"/api/v1/po",
        b"/api/v1/sales",
        b"/api/v1/sales/77",
        b"/API/v1/pos",
        b"/api/v1/%70os",
        b"/api/v1/pos;x=1/till",
        b"/api/v1/sales?/api/v1/pos",
        b"/",
    ],
)
def test_a_key_for_paths_opens_no_other_however_spelt_and_says_which(path):
    problem = refusal(replace(ANY, paths=(b"/api/v1/pos", b"/api/v1/sales/7")), target=path)
    assert "only for /api/v1/pos, /api/v1/sales/7" in problem.detail
    assert problem.members == {"allowed_routes": ["/api/v1/pos", "/api/v1/sales/7"]}


def test_a_key_for_methods_says_which():
    terms = replace(ANY, methods=frozenset({"POST", "GET"}))
    passes(terms, "POST")
    problem = refusal(terms, "DELETE")
    assert "may only GET, POST" in problem.detail
    assert problem.members == {"allowed_methods": ["GET", "POST"]}


@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8:0:1::7"])
def test_a_key_for_addresses_may_be_used_from_them(client):
    passes(replace(ANY, networks=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))), client=client)


@pytest.mark.parametrize("client", ["192.0.3.7", "2001:db9::1", "::ffff:192.0.3.7", "unknown", "::192.0.2.7"])
def test_from_elsewhere_a_key_is_refused_and_tells_nothing_of_itself(client):
    terms = replace(
        ANY, networks=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")), paths=(b"/x",), methods=frozenset("y")
    )
    problem = refusal(terms, client=client)
    assert client in problem.detail
    assert "192.0.2.0" not in problem.detail
    assert problem.members == {}


def test_no_key_does_what_is_critical():
    route = replace(ROUTE, critical=frozenset({"DELETE"}))
    passes(ANY)
    assert "sign in with an account" in refusal(ANY, "DELETE", route=route).detail


def test_no_key_signs_out():
    assert "revoke" in refusal(ANY, "POST", route=replace(ROUTE, action="logout")).detail
