"""The mirror's memory: when it may answer for Redis, and what must not stay in it."""

from math import inf

import pytest

from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import Changed
from bakerygw.stores.mirror import MAX_ASIDE, Mirror
from bakerygw.stores.mirror_table import LAST_KNOWN_S, MAX_AGE_S, TRUST_S, Found

HELD = TenantFlags(read_only=ReadOnly(reason="unpaid"))
FREE = TenantFlags()
NOW = 1000.0


def whole(**bounds):
    mirror = Mirror(**bounds)
    mirror.whole(NOW)
    return mirror


def put(mirror, *, now=NOW, ttl_s=inf, flags=None, revoked=None):
    """One read that begins and ends at once."""
    finish(
        mirror, mirror.begin(tuple(flags or ()), tuple(revoked or ()), now), ttl_s=ttl_s, flags=flags, revoked=revoked
    )


def finish(mirror, read, *, ttl_s=inf, flags=None, revoked=None):
    mirror.keep(
        read,
        {name: Found(value=its, ttl_s=ttl_s) for name, its in (flags or {}).items()},
        {name: Found(value=its, ttl_s=ttl_s) for name, its in (revoked or {}).items()},
    )
    mirror.end(read)


def flags_of(mirror, *tenants, now=NOW):
    known = mirror.held(tenants, (), now)
    return None if known is None else known[0]


def revoked_of(mirror, *digests, now=NOW):
    known = mirror.held((), digests, now)
    return None if known is None else known[1]


def test_what_was_read_is_held_absence_and_the_unreadable_included():
    mirror = whole()
    put(mirror, flags={"t": HELD, "u": FREE, "broken": None}, revoked={"a": True, "b": False})
    assert mirror.held(("t", "u", "broken"), ("a", "b"), NOW) == (
        {"t": HELD, "u": FREE, "broken": None},
        {"a": True, "b": False},
    )


def test_it_answers_all_of_a_request_or_nothing():
    mirror = whole()
    put(mirror, flags={"t": HELD}, revoked={"a": False})
    assert mirror.held(("t", "other"), ("a",), NOW) is None
    assert mirror.held(("t",), ("a", "other"), NOW) is None
    assert mirror.held(("t",), ("a",), NOW) is not None


def test_nothing_is_answered_before_redis_tells_of_changes():
    mirror = Mirror()
    put(mirror, flags={"t": HELD})
    assert flags_of(mirror, "t") is None
    mirror.whole(NOW)
    assert flags_of(mirror, "t") is None
    put(mirror, flags={"t": HELD})
    assert flags_of(mirror, "t") == {"t": HELD}


def test_what_asks_for_nothing_is_answered_without_trust_and_not_counted():
    mirror = Mirror()
    assert mirror.held((), (), NOW) == ({}, {})
    assert (mirror.hits, mirror.misses) == (0, 0)


def test_trust_ends_by_the_clock_and_is_prolonged_by_each_sign_of_life():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    put(mirror, flags={"t": HELD})
    assert mirror.trusted(NOW + TRUST_S - 0.001)
    assert flags_of(mirror, "t", now=NOW + TRUST_S - 0.001) == {"t": HELD}
    assert not mirror.trusted(NOW + TRUST_S)
    assert flags_of(mirror, "t", now=NOW + TRUST_S) is None
    mirror.confirm(epoch, NOW + 0.3)
    assert flags_of(mirror, "t", now=NOW + TRUST_S) == {"t": HELD}
    assert flags_of(mirror, "t", now=NOW + 0.3 + TRUST_S) is None


def test_an_older_sign_of_life_takes_no_trust_away():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    mirror.confirm(epoch, NOW - 5)
    assert mirror.trusted(NOW)


def test_after_a_gap_it_begins_empty():
    mirror = whole()
    put(mirror, flags={"t": HELD}, revoked={"a": False})
    mirror.broken()
    assert not mirror.trusted(NOW)
    mirror.whole(NOW)
    assert flags_of(mirror, "t") is None
    assert revoked_of(mirror, "a") is None


def test_a_sign_of_life_from_before_a_gap_makes_nothing_whole():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    mirror.broken()
    mirror.confirm(epoch, NOW)
    assert not mirror.trusted(NOW)


@pytest.mark.parametrize("name", ["subscription_changed_at", "read_only", "demo"])
def test_a_change_of_any_flag_drops_that_tenant_alone(name):
    mirror = whole()
    put(mirror, flags={"t": HELD, "t2": HELD}, revoked={"t": False})
    mirror.invalidate([f"tenant:t:{name}".encode()])
    assert flags_of(mirror, "t") is None
    assert flags_of(mirror, "t2") == {"t2": HELD}
    assert revoked_of(mirror, "t") == {"t": False}


def test_a_revocation_drops_that_token_alone():
    mirror = whole()
    put(mirror, flags={"a": HELD}, revoked={"a": False, "b": False})
    mirror.invalidate([b"bakerygw:revoked:a"])
    assert revoked_of(mirror, "a") is None
    assert revoked_of(mirror, "b") == {"b": False}
    assert flags_of(mirror, "a") == {"a": HELD}


def test_keys_of_others_change_nothing():
    mirror = whole()
    put(mirror, flags={"t": HELD}, revoked={"a": False})
    mirror.invalidate(
        [b"tenant:t:parent", b"tenant:t", b"tenant:", b"", b"tenant:\xff:demo", b"bakerygw:revoked:", b"x:t:demo"]
    )
    assert mirror.held(("t",), ("a",), NOW) is not None


@pytest.mark.parametrize("payload", [None, b"published by somebody", [None], [b"tenant:t:demo", 7], 7])
def test_a_flush_and_whatever_is_no_list_of_keys_drop_everything_and_keep_the_trust(payload):
    mirror = whole()
    put(mirror, flags={"t": HELD, "u": HELD}, revoked={"a": False})
    under_way = mirror.begin(("v",), ("b",), NOW)
    mirror.invalidate(payload)
    finish(mirror, under_way, flags={"v": FREE}, revoked={"b": False})
    assert [flags_of(mirror, name) for name in "tuv"] == [None] * 3
    assert [revoked_of(mirror, name) for name in "ab"] == [None] * 2
    assert mirror.last_known(("t",), ("a",), NOW) == ({"t": None}, {"a": None})
    assert mirror.trusted(NOW)


def test_a_value_that_changed_while_it_was_read_is_not_kept():
    mirror = whole()
    read = mirror.begin(("t", "u"), ("a", "b"), NOW)
    mirror.invalidate([b"tenant:t:demo", b"bakerygw:revoked:a"])
    finish(mirror, read, flags={"t": FREE, "u": FREE}, revoked={"a": False, "b": False})
    assert flags_of(mirror, "t") is None
    assert flags_of(mirror, "u") == {"u": FREE}
    assert revoked_of(mirror, "a") is None
    assert revoked_of(mirror, "b") == {"b": False}


def test_a_read_that_began_after_the_change_is_kept_and_the_one_before_it_spoils_nothing():
    mirror = whole()
    before = mirror.begin(("t",), (), NOW)
    mirror.invalidate([b"tenant:t:demo"])
    after = mirror.begin(("t",), (), NOW)
    finish(mirror, before, flags={"t": FREE})
    finish(mirror, after, flags={"t": HELD})
    assert flags_of(mirror, "t") == {"t": HELD}


def test_a_read_that_overtakes_an_older_one_of_the_same_tenant_waits_for_it():
    mirror = whole()
    older, newer = mirror.begin(("t",), (), NOW), mirror.begin(("t",), (), NOW)
    finish(mirror, newer, flags={"t": HELD})
    assert flags_of(mirror, "t") is None
    finish(mirror, older, flags={"t": HELD})
    assert flags_of(mirror, "t") == {"t": HELD}


def test_endless_overlapping_reads_of_a_tenant_do_not_keep_it_out():
    mirror = whole()
    reads = [mirror.begin(("t",), (), NOW)]
    for _ in range(3):
        reads.append(mirror.begin(("t",), (), NOW))
        finish(mirror, reads.pop(0), flags={"t": HELD})
    assert flags_of(mirror, "t") == {"t": HELD}


def test_a_read_without_an_answer_stands_in_nobodys_way():
    mirror = whole()
    mirror.end(mirror.begin(("t",), ("a",), NOW))
    put(mirror, flags={"t": HELD}, revoked={"a": False})
    assert mirror.held(("t",), ("a",), NOW) is not None


@pytest.mark.parametrize("gap", ["broken", "whole"])
def test_a_read_that_began_before_a_gap_is_not_kept(gap):
    mirror = whole()
    read = mirror.begin(("t",), ("a",), NOW)
    if gap == "broken":
        mirror.broken()
    mirror.whole(NOW)
    finish(mirror, read, flags={"t": HELD}, revoked={"a": False})
    assert mirror.held(("t",), (), NOW) is None
    assert mirror.held((), ("a",), NOW) is None


def test_what_expires_is_not_used_beyond_its_expiry_counted_from_the_question():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    read = mirror.begin(("t",), ("a",), NOW + 0.1)
    finish(mirror, read, ttl_s=0.5, flags={"t": HELD}, revoked={"a": True})
    mirror.confirm(epoch, NOW + 0.5)
    assert mirror.held(("t",), ("a",), NOW + 0.599) == ({"t": HELD}, {"a": True})
    assert flags_of(mirror, "t", now=NOW + 0.6) is None
    assert revoked_of(mirror, "a", now=NOW + 0.6) is None
    assert mirror.last_known(("t",), ("a",), NOW + 0.6) == ({"t": None}, {"a": None})


def test_nothing_is_taken_for_true_for_longer_than_a_minute_without_being_read_again():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    put(mirror, flags={"t": HELD}, revoked={"a": False})
    last = NOW + MAX_AGE_S
    mirror.confirm(epoch, last)
    assert mirror.held(("t",), ("a",), last - 0.001) == ({"t": HELD}, {"a": False})
    assert (flags_of(mirror, "t", now=last), revoked_of(mirror, "a", now=last)) == (None, None)
    put(mirror, now=last, flags={"t": FREE}, revoked={"a": True})
    assert mirror.held(("t",), ("a",), last) == ({"t": FREE}, {"a": True})


def test_what_has_to_be_read_again_is_last_known_until_it_is():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    put(mirror, flags={"t": HELD}, revoked={"a": True})
    mirror.confirm(epoch, NOW + MAX_AGE_S)
    assert mirror.held(("t",), ("a",), NOW + MAX_AGE_S) is None
    assert mirror.last_known(("t",), ("a",), NOW + MAX_AGE_S + LAST_KNOWN_S) == ({"t": HELD}, {"a": True})


def test_what_a_read_was_not_begun_for_is_not_kept():
    mirror = whole()
    finish(mirror, mirror.begin((), (), NOW), flags={"t": HELD}, revoked={"a": False})
    assert mirror.last_known(("t",), ("a",), NOW) == ({"t": None}, {"a": None})


def glance(mirror, *names, at=NOW, flags=HELD, revoked=False, ttl_s=inf):
    """A read for somebody who is not verified."""
    read = mirror.begin(names, names, at, verified=False)
    finish(mirror, read, ttl_s=ttl_s, flags=dict.fromkeys(names, flags), revoked=dict.fromkeys(names, revoked))


def test_what_was_read_for_the_unverified_is_last_known_and_not_taken_for_true():
    mirror = whole()
    glance(mirror, "t")
    assert (flags_of(mirror, "t"), revoked_of(mirror, "t")) == (None, None)
    assert mirror.last_known(("t",), ("t",), NOW + LAST_KNOWN_S) == ({"t": HELD}, {"t": False})
    assert mirror.last_known(("t",), ("t",), NOW + LAST_KNOWN_S + 0.1) == ({"t": None}, {"t": None})


def test_what_was_read_for_the_unverified_is_bounded_and_pushes_nothing_else_out():
    mirror = whole(max_tenants=2, max_tokens=2)
    put(mirror, flags={"t": HELD, "u": HELD}, revoked={"a": True, "b": True})
    glance(mirror, *(f"x{number}" for number in range(MAX_ASIDE + 1)))
    assert mirror.held(("t", "u"), ("a", "b"), NOW) == ({"t": HELD, "u": HELD}, {"a": True, "b": True})
    assert mirror.last_known(("x0", "x1"), ("x0", "x1"), NOW) == ({"x0": None, "x1": HELD}, {"x0": None, "x1": False})


@pytest.mark.parametrize("payload", [[b"tenant:t:demo", b"bakerygw:revoked:t"], None])
def test_what_has_changed_since_it_was_read_for_the_unverified_is_not_last_known(payload):
    mirror = whole()
    glance(mirror, "t")
    under_way = mirror.begin(("t",), ("t",), NOW, verified=False)
    mirror.invalidate(payload)
    finish(mirror, under_way, flags={"t": HELD}, revoked={"t": False})
    assert mirror.last_known(("t",), ("t",), NOW) == ({"t": None}, {"t": None})


@pytest.mark.parametrize("later", [-1, 1])
def test_the_newest_of_what_was_read_for_either_is_last_known(later):
    mirror = Mirror()
    put(mirror, flags={"t": FREE}, revoked={"t": None})
    glance(mirror, "t", at=NOW + later)
    expected = ({"t": HELD}, {"t": False}) if later > 0 else ({"t": FREE}, {"t": None})
    assert mirror.last_known(("t",), ("t",), NOW + 1) == expected


def test_a_newer_value_that_has_expired_does_not_bring_back_an_older_one():
    mirror = Mirror()
    put(mirror, flags={"t": FREE}, revoked={"t": False})
    glance(mirror, "t", at=NOW + 1, ttl_s=1.0)
    assert mirror.last_known(("t",), ("t",), NOW + 2) == ({"t": None}, {"t": None})


def test_reads_for_either_do_not_stand_in_each_others_way():
    mirror = whole()
    first = mirror.begin(("t",), ("t",), NOW, verified=False)
    put(mirror, flags={"t": HELD}, revoked={"t": True})
    assert mirror.held(("t",), ("t",), NOW) == ({"t": HELD}, {"t": True})
    finish(mirror, first, flags={"t": HELD}, revoked={"t": True})
    assert mirror.last_known(("t",), ("t",), NOW) == ({"t": HELD}, {"t": True})


def test_last_known_is_what_was_true_within_a_minute():
    mirror = Mirror()
    put(mirror, flags={"t": HELD}, revoked={"a": True, "b": False})
    later = NOW + LAST_KNOWN_S
    assert mirror.last_known(("t", "never"), ("a", "b", "never"), later) == (
        {"t": HELD, "never": None},
        {"a": True, "b": False, "never": None},
    )
    assert mirror.last_known(("t",), ("b",), later + 0.1) == ({"t": None}, {"b": None})


def test_what_is_known_to_have_changed_is_not_last_known():
    mirror = whole()
    put(mirror, flags={"t": FREE}, revoked={"a": False})
    mirror.invalidate([b"tenant:t:read_only", b"bakerygw:revoked:a"])
    mirror.broken()
    assert mirror.last_known(("t",), ("a",), NOW) == ({"t": None}, {"a": None})


def test_last_known_survives_gaps_and_counts_from_the_last_confirmed_moment():
    mirror = Mirror()
    epoch = mirror.whole(NOW)
    put(mirror, flags={"t": HELD})
    mirror.confirm(epoch, NOW + 500)
    for _ in range(3):
        mirror.broken()
        mirror.whole(NOW + 510)
    assert mirror.last_known(("t",), (), NOW + 500 + LAST_KNOWN_S) == ({"t": HELD}, {})
    assert mirror.last_known(("t",), (), NOW + 500.1 + LAST_KNOWN_S) == ({"t": None}, {})


def test_the_least_recently_used_go_first():
    mirror = whole(max_tenants=2, max_tokens=2)
    put(mirror, flags={"t1": HELD, "t2": HELD}, revoked={"a": False, "b": False})
    assert mirror.held(("t1",), ("a",), NOW) is not None
    put(mirror, flags={"t3": HELD}, revoked={"c": False})
    assert [flags_of(mirror, name) is not None for name in ("t1", "t2", "t3")] == [True, False, True]
    assert [revoked_of(mirror, name) is not None for name in "abc"] == [True, False, True]


def test_an_own_revocation_holds_at_once_and_whatever_redis_says():
    mirror = whole()
    put(mirror, revoked={"a": False})
    mirror.revoke("a", NOW + 60)
    assert revoked_of(mirror, "a") == {"a": True}
    mirror.invalidate(None)
    put(mirror, revoked={"a": False})
    assert revoked_of(mirror, "a") == {"a": True}
    mirror.broken()
    assert mirror.last_known((), ("a",), NOW + 59) == ({}, {"a": True})


def test_an_own_revocation_ends_at_its_time():
    mirror = whole()
    mirror.revoke("a", NOW + 0.2)
    put(mirror, revoked={"a": False})
    assert revoked_of(mirror, "a", now=NOW + 0.19) == {"a": True}
    assert revoked_of(mirror, "a", now=NOW + 0.2) is None
    put(mirror, now=NOW + 0.2, revoked={"a": False})
    assert revoked_of(mirror, "a", now=NOW + 0.2) == {"a": False}


def test_an_own_revocation_holds_against_a_read_that_was_under_way():
    mirror = whole()
    read = mirror.begin((), ("a",), NOW)
    mirror.revoke("a", NOW + 60)
    finish(mirror, read, revoked={"a": False})
    assert revoked_of(mirror, "a") == {"a": True}


@pytest.mark.parametrize("lost", ["flushed", "gone"])
@pytest.mark.parametrize("verified", [True, False])
def test_a_token_that_was_found_revoked_stays_so_whatever_redis_loses(lost, verified):
    mirror = whole()
    finish(mirror, mirror.begin((), ("a",), NOW, verified=verified), ttl_s=300, revoked={"a": True})
    if lost == "flushed":
        mirror.invalidate(None)
    else:
        mirror.broken()
        mirror.confirm(mirror.whole(NOW), NOW)
    put(mirror, revoked={"a": False})
    assert revoked_of(mirror, "a") == {"a": True}
    assert mirror.last_known((), ("a",), NOW + 299) == ({}, {"a": True})
    assert mirror.last_known((), ("a",), NOW + 300) == ({}, {"a": None})


def test_what_was_taken_for_good_is_revoked_once_anybody_has_found_that():
    mirror = whole()
    put(mirror, revoked={"a": False})
    glance(mirror, "a", revoked=True)
    assert revoked_of(mirror, "a") == {"a": True}


def test_a_revocation_that_somebody_takes_back_is_in_force_no_longer():
    mirror = whole()
    late = mirror.begin((), ("a",), NOW, verified=False)
    put(mirror, revoked={"a": True})
    mirror.invalidate([b"bakerygw:revoked:a"])
    finish(mirror, late, revoked={"a": True})
    put(mirror, revoked={"a": False})
    assert revoked_of(mirror, "a") == {"a": False}


def test_of_ones_own_the_end_is_ones_own_too():
    mirror = whole()
    mirror.revoke("a", NOW + 60)
    finish(mirror, mirror.begin((), ("a",), NOW), ttl_s=1, revoked={"a": True})
    mirror.invalidate([b"bakerygw:revoked:a"])
    assert mirror.revoked_here("a", NOW + 59)


@pytest.mark.parametrize("made", ["here", "found"])
def test_revocations_are_bounded_and_the_oldest_go_first(made):
    mirror = whole(max_kept=3)
    for number in range(5):
        if made == "here":
            mirror.revoke(str(number), NOW + 60)
        else:
            glance(mirror, str(number), revoked=True)
    assert [mirror.revoked_here(str(number), NOW) for number in range(5)] == [False, False, True, True, True]


def test_of_tokens_that_redis_tells_of_somebody_hears():
    mirror, heard = whole(), []
    mirror.on_revocation(heard.append)
    mirror.invalidate([b"tenant:t:demo", b"bakerygw:revoked:a", b"bakerygw:revoked:b"])
    mirror.invalidate([b"tenant:t:demo"])
    mirror.invalidate(None)
    assert heard == [("a", "b")]


def test_hits_and_misses_are_counted_by_request():
    mirror = whole()
    mirror.held(("t",), ("a",), NOW)
    put(mirror, flags={"t": HELD}, revoked={"a": False})
    mirror.held(("t",), ("a",), NOW)
    mirror.held(("t",), ("a",), NOW)
    mirror.broken()
    mirror.held(("t",), ("a",), NOW)
    assert (mirror.hits, mirror.misses) == (2, 2)


def test_whoever_watches_is_told_what_changes_before_anything_is_read_again():
    mirror, told = whole(), []
    put(mirror, flags={"t": HELD})
    mirror.on_change(lambda changed: told.append((changed, flags_of(mirror, "t"))))
    mirror.invalidate([b"tenant:t:read_only", b"tenant:c:parent", b"bakerygw:revoked:d", b"bakerygw:limits:l", b"x"])
    assert told == [(Changed(tenants=("t", "l"), digests=("d",), parents=("c",)), None)]


@pytest.mark.parametrize("keys", [None, b"tenant:t:demo", [b"tenant:t:demo", 1]])
def test_whoever_watches_is_told_that_anything_may_have_changed(keys):
    mirror, told = whole(), []
    mirror.on_change(told.append)
    mirror.invalidate(keys)
    mirror.broken()
    assert told == [None, None]


def test_keys_of_others_are_told_to_nobody():
    mirror, told = whole(), []
    mirror.on_change(told.append)
    mirror.invalidate([b"tenant:t:other", b"alerts:tenant:t", b"bakerygw:limit:{x}"])
    mirror.invalidate([])
    assert told == []


def test_a_revocation_of_ones_own_is_told_at_once():
    mirror, told = whole(), []
    mirror.on_change(told.append)
    mirror.revoke("d", NOW + 60)
    assert told == [Changed(digests=("d",))]
