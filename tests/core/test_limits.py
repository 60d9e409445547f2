"""Token buckets: never too much, never locked out, and told truthfully."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.limits import Level, LimitRule, level_of, limit_headers, refusing, take, whole_seconds

NOW = 1_700_000_000_000_000
RULE = LimitRule(name="default", requests=3, window_s=6)

rules = st.builds(
    LimitRule,
    name=st.just("r"),
    requests=st.integers(1, 50),
    window_s=st.integers(1, 120),
    shadow=st.just(False),
)


def spend(rule: LimitRule, full_at: int, now: int) -> tuple[int, Level]:
    after, levels = take((rule,), (full_at,), now)
    return after[0], levels[0]


def test_a_full_bucket_gives_all_its_tokens_at_once_and_then_none() -> None:
    full_at, levels = 0, []
    for _ in range(4):
        full_at, level = spend(RULE, full_at, NOW)
        levels.append(level)
    assert [(level.allowed, level.remaining) for level in levels] == [(True, 2), (True, 1), (True, 0), (False, 0)]
    assert levels[0].reset_us == 2_000_000
    assert levels[3].reset_us == 6_000_000
    assert [level.retry_us for level in levels] == [0, 0, 0, 2_000_000]


def test_a_token_is_back_exactly_when_retry_says() -> None:
    full_at = NOW + RULE.capacity_us
    _, refused = spend(RULE, full_at, NOW)
    assert not spend(RULE, full_at, NOW + refused.retry_us - 1)[1].allowed
    assert spend(RULE, full_at, NOW + refused.retry_us)[1].allowed


def test_refusal_by_one_bucket_takes_no_token_from_the_others() -> None:
    other = LimitRule(name="other", requests=10, window_s=10)
    empty = NOW + RULE.capacity_us
    after, levels = take((other, RULE), (NOW + 1_000_000, empty), NOW)
    assert after == (NOW + 1_000_000, empty)
    assert (levels[0].allowed, levels[0].remaining, levels[0].reset_us, levels[0].retry_us) == (True, 9, 1_000_000, 0)
    assert not levels[1].allowed


def test_an_empty_shadow_bucket_says_so_and_stops_nobody() -> None:
    shadow = LimitRule(name="shadow", requests=1, window_s=10, shadow=True)
    empty = NOW + shadow.capacity_us
    after, levels = take((shadow, RULE), (empty, 0), NOW)
    assert after == (empty, NOW + RULE.cost_us)
    assert (levels[0].allowed, levels[1].allowed) == (False, True)
    assert refusing(levels) is None


def test_a_shadow_bucket_with_tokens_counts_only_requests_that_pass() -> None:
    shadow = LimitRule(name="shadow", requests=5, window_s=10, shadow=True)
    assert take((shadow, RULE), (0, 0), NOW)[0][0] == NOW + shadow.cost_us
    assert take((shadow, RULE), (0, NOW + RULE.capacity_us), NOW)[0][0] == 0


def test_a_clock_set_back_neither_locks_out_nor_refills() -> None:
    hour = 3_600_000_000
    full_at, level = spend(RULE, NOW + RULE.cost_us, NOW - hour)
    assert not level.allowed
    assert level.retry_us == RULE.cost_us
    assert full_at == NOW - hour + RULE.capacity_us
    assert spend(RULE, full_at, NOW - hour + level.retry_us)[1].allowed


def test_a_clock_set_back_a_little_costs_at_most_that_little() -> None:
    full_at, _ = spend(RULE, 0, NOW)
    _, level = spend(RULE, full_at, NOW - 1_000_000)
    assert (level.allowed, level.remaining) == (True, 0)


def test_looking_at_buckets_changes_none_and_refuses_nobody() -> None:
    empty, beyond = NOW + RULE.capacity_us, NOW + 10 * RULE.capacity_us
    after, levels = take((RULE, RULE, RULE), (0, empty, beyond), NOW, peek=True)
    assert after == (0, empty, beyond)
    assert [(level.allowed, level.remaining, level.retry_us) for level in levels] == [
        (True, 3, 0),
        (True, 0, 2_000_000),
        (True, 0, 2_000_000),
    ]
    assert refusing(levels) is None


def test_without_buckets_there_is_nothing_to_tell() -> None:
    assert take((), (), NOW) == ((), ())
    assert limit_headers(()) == ()


def test_the_longest_wait_is_the_refusal_told() -> None:
    slow = LimitRule(name="slow", requests=1, window_s=100)
    _, levels = take((RULE, slow), (NOW + RULE.capacity_us, NOW + slow.capacity_us), NOW)
    level = refusing(levels)
    assert level is not None
    assert level.rule.name == "slow"


@given(rule=rules, steps=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=150))
def test_no_window_passes_more_than_burst_and_refill(rule: LimitRule, steps: list[int]) -> None:
    now, full_at = NOW, 0
    passed: list[int] = []
    for step in steps:
        now += step
        full_at, level = spend(rule, full_at, now)
        if level.allowed:
            passed.append(now)
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= rule.requests + (passed[last] - begin) // rule.cost_us


@given(rule=rules, spent=st.integers(0, 50), later=st.integers(0, 10_000_000))
def test_waiting_never_leaves_fewer_tokens(rule: LimitRule, spent: int, later: int) -> None:
    full_at = NOW + min(spent, rule.requests) * rule.cost_us
    _, sooner_level = spend(rule, full_at, NOW)
    _, later_level = spend(rule, full_at, NOW + later)
    assert later_level.remaining >= sooner_level.remaining
    assert later_level.reset_us <= sooner_level.reset_us + rule.cost_us
    assert later_level.allowed or not sooner_level.allowed


@given(
    rule=rules,
    fill=st.integers(0, 10_000_000_000),
    back=st.integers(-(10**12), 10**12),
)
def test_levels_stay_in_bounds_whatever_was_stored(rule: LimitRule, fill: int, back: int) -> None:
    full_at, level = spend(rule, NOW + fill, NOW + back)
    assert 0 <= level.remaining <= rule.requests
    assert 0 <= level.reset_us <= rule.capacity_us
    assert 0 <= level.retry_us <= rule.cost_us
    assert level.allowed == (level.retry_us == 0)
    assert full_at - (NOW + back) <= rule.capacity_us


@given(rule=rules, ahead=st.integers(0, 100))
def test_a_refused_request_changes_nothing(rule: LimitRule, ahead: int) -> None:
    full_at = NOW + rule.capacity_us - min(ahead, rule.cost_us - 1)
    after, level = spend(rule, full_at, NOW)
    assert not level.allowed
    assert after == full_at


@given(
    stack=st.lists(st.builds(replace, rules, shadow=st.booleans()), min_size=1, max_size=4),
    steps=st.lists(st.integers(-20_000_000, 20_000_000), min_size=1, max_size=60),
)
def test_stacked_rules_take_all_or_none_however_the_clock_jumps_and_lock_nobody_out(
    stack: list[LimitRule], steps: list[int]
) -> None:
    now, full_ats = NOW, tuple(0 for _ in stack)
    for step in steps:
        now += step
        ahead = [min(max(at - now, 0), rule.capacity_us) for at, rule in zip(full_ats, stack, strict=True)]
        full_ats, levels = take(stack, full_ats, now)
        taken = [level.reset_us - was for level, was in zip(levels, ahead, strict=True)]
        if refusing(levels) is not None:
            assert not any(taken)
        else:
            assert all(
                cost == (rule.cost_us if level.allowed else 0)
                for cost, rule, level in zip(taken, stack, levels, strict=True)
            )
            assert all(level.allowed or level.rule.shadow for level in levels)
        assert all(at - now <= rule.capacity_us for at, rule in zip(full_ats, stack, strict=True))
    later = now + max(rule.capacity_us for rule in stack)
    assert all(level.remaining == level.rule.requests - 1 for level in take(stack, full_ats, later)[1])


def test_headers_tell_each_policy_and_the_tightest() -> None:
    auth = LimitRule(name="auth", requests=20, window_s=60)
    default = LimitRule(name="default", requests=300, window_s=60)
    levels = (level_of(default, 2_600_000, 0), level_of(auth, 11_000_001, 0))
    assert limit_headers(levels) == (
        (b"RateLimit-Policy", b'"default";q=300;w=60, "auth";q=20;w=60'),
        (b"RateLimit", b'"default";r=287;t=3, "auth";r=16;t=12'),
        (b"X-RateLimit-Limit", b"20"),
        (b"X-RateLimit-Remaining", b"16"),
        (b"X-RateLimit-Reset", b"12"),
    )


def test_headers_keep_shadow_policies_to_ourselves() -> None:
    shadow = LimitRule(name="shadow", requests=1, window_s=60, shadow=True)
    assert limit_headers((level_of(shadow, 60_000_000, 60_000_000),)) == ()
    both = limit_headers((level_of(shadow, 60_000_000, 60_000_000), level_of(RULE, 0, 0)))
    assert dict(both)[b"RateLimit"] == b'"default";r=3;t=0'
    assert dict(both)[b"X-RateLimit-Remaining"] == b"3"


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("per-user", b'"per-user"'), ('a"b\\c', b'"a\\"b\\\\c"'), ("caf\u00e9\r\n", b'"caf???"')],
)
def test_a_policy_name_stays_one_quoted_string(name: str, quoted: bytes) -> None:
    rule = LimitRule(name=name, requests=1, window_s=1)
    assert dict(limit_headers((level_of(rule, 0, 0),)))[b"RateLimit-Policy"] == quoted + b";q=1;w=1"


@pytest.mark.parametrize(("microseconds", "seconds"), [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)])
def test_seconds_are_rounded_up(microseconds: int, seconds: int) -> None:
    assert whole_seconds(microseconds) == seconds
