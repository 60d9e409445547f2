"""Token buckets as pure arithmetic in whole microseconds, and the headers that tell of them.

A bucket is held as one integer, the moment at which it will be full again (the generic cell rate algorithm):
`full_at` in microseconds, with anything up to the present meaning a full bucket. A token moves that moment one
`cost_us` further into the future; a bucket of `requests` tokens is empty when it lies `capacity_us` ahead.
The script `stores/admission.lua` does the same sums inside Redis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bakerygw.core.http import Pairs
from bakerygw.core.values import value

By = Literal["user", "tenant", "address"]
"""Whose requests are counted together."""

MAX_REQUESTS: Final = 1_000_000
MAX_WINDOW_S: Final = 86_400
TENANT_RULE: Final = "tenant"
"""The name of the rule that a tenant is under for a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRule:
    """A token bucket: `requests` at once, refilled evenly over `window_s` seconds."""

    name: str
    """The policy's name in the `RateLimit` headers and in metrics."""
    requests: int
    window_s: int
    shadow: bool = False
    """Count and log, never refuse."""
    by: By = "user"
    """For `user`: the client address where it is not certain yet who asks."""
    until: float | None = None
    """Unix seconds at which the rule ends; `None`: it stays."""

    @property
    def cost_us(self) -> int:
        """Microseconds in which one token comes back, rounded up."""
        return -(-self.window_s * 1_000_000 // self.requests)

    @property
    def capacity_us(self) -> int:
        """Microseconds in which an empty bucket becomes full."""
        return self.requests * self.cost_us


@value
class Bucket:
    """One subject under one rule."""

    key: str
    """Bounded and printable; the same subject has the same key on all instances."""
    rule: LimitRule


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimit:
    """A rule over all requests for one tenant, for a time."""

    rule: LimitRule
    """Its name is TENANT_RULE, and its end is known."""
    reason: str | None = None
    since: str | None = None
    """ISO 8601."""
    by: str | None = None
    """Who has set it."""


def tenant_rule(requests: int, window_s: int, *, shadow: bool, until: float) -> LimitRule:
    """The rule that a tenant is under until a moment in Unix seconds."""
    return LimitRule(name=TENANT_RULE, requests=requests, window_s=window_s, shadow=shadow, by="tenant", until=until)


def tenant_subject(tenant_id: str, *, demo: bool) -> str:
    """The name under which a tenant is limited; demo sessions share none with others, whatever tenant they are of."""
    return f"demo-tenant:{tenant_id}" if demo else f"tenant:{tenant_id}"


def tenant_key(tenant_id: str, *, demo: bool) -> str:
    """The key of the bucket of a tenant's limit for a time."""
    return f"{TENANT_RULE}:{tenant_subject(tenant_id, demo=demo)}"


@value
class Level:
    """How a bucket stands after it was asked for one token, or looked at."""

    rule: LimitRule
    allowed: bool
    remaining: int
    reset_us: int
    """Microseconds until the bucket is full again."""
    retry_us: int
    """Microseconds until one token is there; 0: one was."""


def level_of(rule: LimitRule, reset_us: int, retry_us: int, peek: bool = False) -> Level:
    """The level of a bucket that is full in `reset_us` and has a token in `retry_us` (0: it had one).

    With `peek` no token was asked for, so nothing is refused.
    """
    cost_us = rule.cost_us
    return Level(
        rule=rule,
        allowed=peek or retry_us == 0,
        remaining=(rule.requests * cost_us - reset_us) // cost_us,
        reset_us=reset_us,
        retry_us=retry_us,
    )


def take(
    rules: Sequence[LimitRule], full_ats: Sequence[int], now_us: int, *, peek: bool = False
) -> tuple[tuple[int, ...], tuple[Level, ...]]:
    """Ask each bucket for one token; returns their new `full_at` values and their levels, in order.

    Tokens are taken from all, or, if any rule that is no shadow refuses, from none: a refused request costs
    nothing. An empty shadow bucket is not allowed in its own level and stops nobody. A `full_at` further ahead
    than an empty bucket's can only come from a clock that was set back (or from a larger rule) and becomes that
    of an empty bucket, so it neither locks out nor refills at once. Equal values mean there is nothing to store.
    With `peek` buckets are looked at, and nothing changes.
    """
    asked: list[tuple[LimitRule, int, int, int]] = []
    passes = True
    for rule, stored in zip(rules, full_ats, strict=True):
        cost_us = rule.cost_us
        capacity_us = rule.requests * cost_us
        ahead_us = min(max(stored - now_us, 0), capacity_us)
        lack_us = max(ahead_us + cost_us - capacity_us, 0)
        if lack_us and not rule.shadow:
            passes = False
        asked.append((rule, cost_us, ahead_us, lack_us))
    after: list[int] = []
    levels: list[Level] = []
    for stored, (rule, cost_us, ahead_us, lack_us) in zip(full_ats, asked, strict=True):
        left_us = ahead_us + cost_us if passes and not lack_us and not peek else ahead_us
        changed = not peek and (left_us != ahead_us or now_us + left_us < stored)
        after.append(now_us + left_us if changed else stored)
        levels.append(level_of(rule, left_us, lack_us, peek))
    return tuple(after), tuple(levels)


def refusing(levels: Sequence[Level]) -> Level | None:
    """The level that refuses the request, the one with the longest wait if several do; `None` if all let it pass."""
    empty = [level for level in levels if not level.allowed and not level.rule.shadow]
    return max(empty, key=lambda level: level.retry_us) if empty else None


def whole_seconds(microseconds: int) -> int:
    """Seconds, rounded up: nobody is told to come back too early."""
    return -(-microseconds // 1_000_000)


def limit_headers(levels: Sequence[Level]) -> Pairs:
    """The header fields that tell a client of its limits; empty without a limit that could refuse.

    `RateLimit-Policy` and `RateLimit` follow the IETF draft draft-ietf-httpapi-ratelimit-headers, with `t` as the
    seconds until the bucket is full; `X-RateLimit-*` tell of the policy with the fewest tokens left. Shadow
    policies are no concern of the client's.
    """
    shown = [level for level in levels if not level.rule.shadow]
    if not shown:
        return ()
    policies: list[str] = []
    states: list[str] = []
    for level in shown:
        rule = level.rule
        name = _quoted(rule.name)
        policies.append(f"{name};q={rule.requests};w={rule.window_s}")
        states.append(f"{name};r={level.remaining};t={whole_seconds(level.reset_us)}")
    tightest = min(shown, key=lambda level: level.remaining) if len(shown) > 1 else shown[0]
    return (
        (b"RateLimit-Policy", ", ".join(policies).encode("ascii")),
        (b"RateLimit", ", ".join(states).encode("ascii")),
        (b"X-RateLimit-Limit", b"%d" % tightest.rule.requests),
        (b"X-RateLimit-Remaining", b"%d" % tightest.remaining),
        (b"X-RateLimit-Reset", b"%d" % whole_seconds(tightest.reset_us)),
    )


def _quoted(name: str) -> str:
    """A structured-field string (RFC 9651 §3.3.3): printable ASCII, with `"` and `\\` escaped."""
    if name.isascii() and name.isidentifier():
        return f'"{name}"'
    printable = "".join(char if " " <= char <= "~" else "?" for char in name)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
