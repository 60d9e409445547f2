"""Chains of parents, and the entries of a token that they lead to."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.claims import Claims, TenantAccess
from bakerygw.core.hierarchy import MAX_STEPS, ancestors_of, covering_entry, possible_child, with_child


def entry(tenant_id, *, children=True, role="viewer"):
    return TenantAccess(
        tenant_id=tenant_id, role=role, tier=None, status=None, valid_until=None, include_children=children
    )


def claims(*entries, demo=False):
    return Claims(
        user_id="u",
        email=None,
        tenant_id="own",
        role=None,
        subscription=None,
        tenant_access=entries,
        exp=2.0,
        iat=1.0,
        nbf=None,
        is_demo=demo,
        demo_session_id=None,
        jti=None,
    )


NAMES = st.sampled_from([f"t{number}" for number in range(12)])


@given(NAMES, st.dictionaries(NAMES, NAMES | st.sampled_from(["", "no id", "x" * 65])))
def test_a_chain_is_short_leads_from_link_to_link_and_meets_nobody_twice(start, parents):
    chain = ancestors_of(start, parents.get)
    assert len(chain) <= MAX_STEPS
    assert len({start, *chain}) == len(chain) + 1
    assert all(parents[child] == parent for child, parent in zip((start, *chain), chain, strict=False))
    beyond = parents.get((start, *chain)[-1])
    assert len(chain) == MAX_STEPS or beyond in (None, "", "no id", "x" * 65, start, *chain)


@pytest.mark.parametrize(
    ("held", "path", "headers"),
    [
        (claims(entry("chain")), None, ()),
        (claims(entry("chain")), "own", ()),
        (claims(entry("chain")), "chain", ()),
        (claims(entry("chain", children=False)), "shop", ()),
        (claims(), "shop", ()),
        (claims(entry("chain"), demo=True), "shop", ()),
        (claims(entry("chain")), "shop", (b"other",)),
        (claims(entry("chain")), None, (b"shop", b"other")),
        (claims(entry("chain")), None, (b"no id",)),
        (claims(entry("chain")), None, (b"",)),
        (claims(entry("chain")), None, (b"x" * 65,)),
        (claims(entry("chain")), None, ("bäckerei".encode(),)),
        (claims(entry("chain"), entry("shop", children=False)), "shop", ()),
    ],
)
def test_no_parent_is_asked_for_where_it_could_open_nothing(held, path, headers):
    assert possible_child(held, path, headers) is None


@pytest.mark.parametrize(
    ("path", "headers"), [("shop", ()), (None, (b"shop",)), ("shop", (b"shop",)), (None, (b"shop", b"shop"))]
)
def test_a_tenant_that_is_no_entry_may_be_below_one(path, headers):
    assert possible_child(claims(entry("other", children=False), entry("chain")), path, headers) == "shop"


def test_the_entry_of_the_nearest_ancestor_counts_if_it_includes_children():
    held = claims(entry("group", role="a"), entry("chain", children=False, role="b"), entry("region", role="c"))
    assert covering_entry(held, ("region", "chain", "group")).role == "c"
    assert covering_entry(held, ("chain", "group")).role == "a"
    assert covering_entry(held, ("chain",)) is None
    assert covering_entry(held, ()) is None


def test_what_is_inherited_is_the_entry_and_goes_no_further():
    held = claims(entry("chain"))
    extended = with_child(held, "shop", held.tenant_access[0])
    assert extended == replace(
        held, tenant_access=(entry("chain"), replace(entry("shop", children=False), via="chain"))
    )
