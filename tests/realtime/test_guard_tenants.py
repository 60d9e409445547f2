"""Whose changes end what is held open: a token's own tenant, the one that it is open for, and those above that."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from bakerygw.core.claims import TenantAccess
from bakerygw.core.hierarchy import with_child
from bakerygw.core.problem import Refused
from bakerygw.core.tenancy import ReadOnly
from bakerygw.ports import AdmissionState, Changed
from bakerygw.realtime.held import Ending
from bakerygw.stores.memory import MemoryStore
from tests.realtime.guard_fakes import BORN, USER, Reader, Stage, grant_of

PARENT, OTHER_PARENT = (
    TenantAccess(tenant_id=name, role="admin", tier=None, status=None, valid_until=None, include_children=True)
    for name in ("t-parent", "t-parent2")
)
LOOKED_AT_S = 60
"""By then all places were looked at, told of a change or not."""

Deed = Callable[[MemoryStore, str], Awaitable[object]]


async def changes_subscription(store: MemoryStore, tenant_id: str) -> None:
    await store.subscription_changed(tenant_id, BORN + 10)


async def becomes_demo(store: MemoryStore, tenant_id: str) -> None:
    await store.set_demo(tenant_id, True)


def passes(stage: Stage, *, told: bool) -> None:
    """As much time as it takes until a change that was told of, or was not, has its effect."""
    stage.advance(0.05 if told else LOOKED_AT_S, step_s=0.05 if told else 1)


def heir(stage: Stage, number: int, child: str, entry: TenantAccess) -> Reader:
    """Somebody whose entry for a tenant above opens this one."""
    claims = stage.someone(number, tenant_access=(entry,))
    return stage.open(with_child(claims, child, entry), child)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("deed", "tenant_id", "ending"),
    [
        (changes_subscription, "t-own", "token-stale"),
        (changes_subscription, "t-other", "token-stale"),
        (changes_subscription, "t-third", None),
        (changes_subscription, "t-othe", None),
        (changes_subscription, "t-other.", None),
        (changes_subscription, "T-Other", None),
        (becomes_demo, "t-other", "forbidden"),
        (becomes_demo, "t-own", None),
    ],
)
@ensureDeferred
async def test_both_the_tokens_own_tenant_and_the_one_it_is_open_for_count(
    deed: Deed, tenant_id: str, ending: Ending | None, told: bool
) -> None:
    stage = Stage()
    reader = stage.open(USER, "t-other")
    stage.state.silent = not told

    await deed(stage.state.store, tenant_id)
    passes(stage, told=told)

    assert reader.ended == ending


@pytest.mark.parametrize("told", [True, False])
@ensureDeferred
async def test_a_hold_is_told_of_the_tenant_that_it_is_open_for_alone(told: bool) -> None:
    stage = Stage()
    reader = stage.open(USER, "t-other")
    stage.state.silent = not told

    await stage.state.store.set_read_only("t-own", ReadOnly(reason="own"))
    passes(stage, told=told)
    assert reader.states == []
    await stage.state.store.set_read_only("t-other", ReadOnly(reason="other"))
    passes(stage, told=told)

    assert [flags.read_only.reason for flags in reader.states if flags.read_only] == ["other"]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("parent", [None, "t-parent2", "t-parent3", "t-child2"])
@ensureDeferred
async def test_a_tenant_that_is_moved_is_closed_to_those_above_it_before_and_to_nobody_else(
    parent: str | None, told: bool
) -> None:
    stage = Stage()
    hierarchy = stage.state.hierarchy
    await hierarchy.set_parent("t-child", "t-parent")
    await hierarchy.set_parent("t-child2", "t-parent2")
    moved, sibling = heir(stage, 1, "t-child", PARENT), heir(stage, 2, "t-child2", OTHER_PARENT)
    owner = stage.open(stage.someone(3, tenant_id="t-child"))
    by_name = stage.open(stage.someone(4), "t-child")
    passes(stage, told=False)
    assert [it.ended for it in (moved, sibling, owner, by_name)] == [None] * 4

    await hierarchy.set_parent("t-child", parent)
    if told:
        stage.state.told(Changed(parents=("t-child",)))
    passes(stage, told=told)

    assert [it.ended for it in (moved, sibling, owner, by_name)] == ["forbidden", None, None, None]


@ensureDeferred
async def test_one_that_is_moved_further_below_stays_open() -> None:
    stage = Stage()
    hierarchy = stage.state.hierarchy
    await hierarchy.set_parent("t-child", "t-parent")
    await hierarchy.set_parent("t-middle", "t-parent")
    reader = heir(stage, 1, "t-child", PARENT)

    await hierarchy.set_parent("t-child", "t-middle")
    stage.state.told(Changed(parents=("t-child",)))
    passes(stage, told=True)

    assert reader.ended is None


def test_places_are_counted_for_the_tenant_that_they_are_for() -> None:
    stage = Stage(per_tenant=1)
    stage.open(stage.someone(1), "t-other")
    stage.open(stage.someone(2))

    with pytest.raises(Refused) as caught:
        stage.guard.enter("stream", grant_of(stage.someone(3, tenant_id="t-third"), "t-other"))
    assert caught.value.problem.members["scope"] == "tenant"


def test_operators_disconnect_the_tenant_that_it_is_for_whoever_opened_it() -> None:
    stage = Stage()
    abroad = stage.open(replace(USER, digest="digest-2"), "t-other")
    near = [stage.open(stage.someone(number, tenant_id=name)) for number, name in enumerate(("t-othe", "T-OTHER"), 3)]

    assert stage.guard.cut("t-own") == 0
    assert (abroad.ended, stage.guard.cut("t-other")) == (None, 1)
    assert abroad.ended == "disconnected"
    assert [it.ended for it in near] == [None, None]


@ensureDeferred
async def test_a_look_that_breaks_is_reported_and_those_after_it_see(logged_failures: list[Any]) -> None:
    stage = Stage()
    reader = stage.open()
    admit = stage.state.admit

    async def broken(_: object) -> AdmissionState:
        raise ValueError("broken")

    stage.state.admit = broken  # type: ignore[method-assign]
    await stage.state.store.revoke("digest-1", BORN + 900)
    passes(stage, told=True)
    assert (reader.ended, len(logged_failures)) == (None, 1)
    logged_failures.clear()
    stage.state.admit = admit  # type: ignore[method-assign]
    passes(stage, told=False)

    assert reader.ended == "token-revoked"


@ensureDeferred
async def test_ones_own_tenant_stays_open_though_it_is_part_of_another_no_more() -> None:
    stage = Stage()
    entry = replace(PARENT, tenant_id="t-own", via="t-parent")
    reader = stage.open(stage.someone(1, tenant_access=(PARENT, entry)))

    stage.state.told(Changed(parents=("t-own",)))
    stage.advance(LOOKED_AT_S, step_s=1)

    assert reader.ended is None


@ensureDeferred
async def test_nothing_is_left_of_who_came_by_an_inherited_entry() -> None:
    stage = Stage()
    await stage.state.hierarchy.set_parent("t-child", "t-parent")
    reader = heir(stage, 1, "t-child", PARENT)
    assert len(stage.guard._inherited) == 1
    reader.place.leave()
    assert stage.guard._inherited == {}
