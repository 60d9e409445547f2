"""How much may be held open: by a user, for a tenant, on an instance, and how many new ones in a second."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bakerygw.core.claims import Claims
from bakerygw.core.limits import tenant_subject
from bakerygw.core.problem import Problem, Refused
from bakerygw.realtime.held import HeldKind

RETRY_FROM_S: Final = 2
RETRY_UNTIL_S: Final = 10
"""Those who were turned away come back at random between these, so that they do not come together again."""
TENANT_SHARE: Final = 0.5
"""Of the new ones in a second that one tenant may have: whoever opens and closes all the time keeps nobody else out."""
ROUNDING_S: Final = 1e-6

_NAMES: Final[Mapping[HeldKind, str]] = {"stream": "alert streams", "socket": "training sockets"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many of one kind may be open at the same time on an instance."""

    per_user: int
    per_tenant: int
    in_all: int


class Quotas:
    """Counts what is open, and refuses what would be too much. An API key counts as a user of its own.

    Demo sessions are not counted with the tenant's others.
    """

    def __init__(
        self,
        quotas: Mapping[HeldKind, Quota],
        *,
        new_per_second: int,
        seconds: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """Of each kind as many new ones may come in a second, and so many at once after a quiet one.

        Half of them may be one tenant's. `seconds` is a monotonic clock, `jitter` gives chance from 0 to 1.
        """
        self._quotas, self._rate = quotas, new_per_second
        self._seconds, self._jitter = seconds, jitter
        self._counts: dict[HeldKind, dict[str, int]] = {kind: {} for kind in quotas}
        self._open: dict[HeldKind, int] = dict.fromkeys(quotas, 0)
        self._turns: dict[HeldKind, dict[str, float]] = {kind: {} for kind in quotas}
        """When what may come at once is whole again: of a tenant, and under no name in all. The latest last."""

    def count(self, kind: HeldKind) -> int:
        """How many of this kind are open."""
        return self._open[kind]

    def remembered(self, kind: HeldKind) -> int:
        """Of how many tenants it is kept that they have opened some of this kind just now."""
        return len(self._turns[kind].keys() - {""})

    def take(self, kind: HeldKind, claims: Claims, tenant_id: str) -> None:
        """Count one more. Raises `Refused`: too-many-streams, service-unavailable."""
        quota, counts, name = self._quotas[kind], self._counts[kind], _NAMES[kind]
        user, tenant = _subjects(claims, tenant_id)
        if counts.get(user, 0) >= quota.per_user:
            raise self._too_many("user", quota.per_user, f"{quota.per_user} {name} of this account are open")
        if counts.get(tenant, 0) >= quota.per_tenant:
            raise self._too_many("tenant", quota.per_tenant, f"{quota.per_tenant} {name} of this tenant are open")
        if self._open[kind] >= quota.in_all:
            raise self.not_now(f"This gateway holds as many {name} open as it may", "instance-full")
        if (crowded := self._crowded(kind, tenant)) is not None:
            raise self.not_now(f"Very many {name}{crowded} are being opened at this moment", "too-many-new")
        counts[user] = counts.get(user, 0) + 1
        counts[tenant] = counts.get(tenant, 0) + 1
        self._open[kind] += 1

    def give(self, kind: HeldKind, claims: Claims, tenant_id: str) -> None:
        """Count one less; the same that was taken."""
        counts = self._counts[kind]
        for subject in _subjects(claims, tenant_id):
            left = counts[subject] - 1
            if left:
                counts[subject] = left
            else:
                del counts[subject]
        self._open[kind] -= 1

    def not_now(self, why: str, reason: str) -> Refused:
        """The refusal of what this instance does not take at the moment."""
        retry_s = self._retry_s()
        detail = f"{why}; connect again in {retry_s} seconds."
        return Refused(Problem(code="service-unavailable", detail=detail, retry_after_s=retry_s, reason=reason))

    def _too_many(self, scope: str, limit: int, said: str) -> Refused:
        retry_s = self._retry_s()
        detail = f"{said} already on this instance; close one, or try again in {retry_s} seconds."
        members: dict[str, object] = {"scope": scope, "limit": limit}
        return Refused(
            Problem(
                code="too-many-streams", detail=detail, members=members, retry_after_s=retry_s, reason=f"{scope}-full"
            )
        )

    def _crowded(self, kind: HeldKind, tenant: str) -> str | None:
        """Whose new ones are too many in this second, in words; `None` if one more may come, which is counted.

        Buckets that are filled evenly, and hold what comes in one second.
        """
        now, turns = self._seconds(), self._turns[kind]
        in_all = max(turns.get("", now), now) + 1 / self._rate
        its = max(turns.get(tenant, now), now) + 1 / max(1.0, self._rate * TENANT_SHARE)
        most = now + 1 + ROUNDING_S
        if its > most or in_all > most:
            return " of this tenant" if its > most else ""
        for name in ("", tenant):
            turns.pop(name, None)
        turns[""], turns[tenant] = in_all, its
        while (oldest := next(iter(turns))) != tenant and turns[oldest] <= now:
            del turns[oldest]
        return None

    def _retry_s(self) -> int:
        return RETRY_FROM_S + min(
            int(self._jitter() * (RETRY_UNTIL_S - RETRY_FROM_S + 1)), RETRY_UNTIL_S - RETRY_FROM_S
        )


def _subjects(claims: Claims, tenant_id: str) -> tuple[str, str]:
    """Whose it is: a user's, and a tenant's."""
    if claims.key is not None:
        user = "key:" + claims.key.key_id
    else:
        user = ("demo:" if claims.is_demo else "user:") + claims.user_id
    return user, tenant_subject(tenant_id, demo=claims.is_demo)
