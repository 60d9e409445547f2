"""The limits of a routes file: those of single routes, and those stacked upon all."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from bakerygw.core.limits import MAX_REQUESTS, MAX_WINDOW_S, TENANT_RULE, By, LimitRule
from bakerygw.core.routing import Route
from bakerygw.core.stacks import LimitPolicy, holds_below

RESERVED: Final = frozenset({"default", "auth", "key", TENANT_RULE, "concurrency"})
"""Names of limits that the gateway has by itself."""
MAX_POLICIES: Final = 10
"""Each that applies is one more bucket for the request."""

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


class FileLimit(BaseModel):
    """A rule as a file gives it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)]
    window_seconds: Annotated[int, Field(ge=1, le=MAX_WINDOW_S)]
    shadow: bool = False

    def rule(self, name: str, by: By = "user") -> LimitRule:
        """The rule, under this name."""
        return LimitRule(name=name, requests=self.requests, window_s=self.window_seconds, shadow=self.shadow, by=by)


class FilePolicy(FileLimit):
    """One `[[limit]]`."""

    name: str
    by: Literal["user", "tenant", "address"]
    tier: Literal["starter", "professional", "enterprise"] | None = None
    prefix: str | None = None


def limit_policies(
    entries: Sequence[FilePolicy], routes: Collection[Route]
) -> tuple[tuple[LimitPolicy, ...], list[str]]:
    """The policies of these entries over this route table, and everything that is wrong with them."""
    problems = [] if len(entries) <= MAX_POLICIES else [f"limit: got {len(entries)} entries; at most {MAX_POLICIES}"]
    policies, names = [], set[str]()
    for index, entry in enumerate(entries):
        problems += [f"limit[{index}].{line}" for line in _problems(entry, names, routes)]
        names.add(entry.name)
        policies.append(LimitPolicy(rule=entry.rule(entry.name, entry.by), tier=entry.tier, prefix=entry.prefix))
    return tuple(policies), problems


def _problems(entry: FilePolicy, seen: Collection[str], routes: Collection[Route]) -> Iterator[str]:
    if _NAME.fullmatch(entry.name) is None:
        yield f"name: got {entry.name!r:.80}; a small letter, then at most 31 small letters, digits and -"
    elif entry.name in RESERVED:
        yield f"name: got {entry.name!r}; the gateway has a limit of this name by itself"
    elif entry.name in seen:
        yield f"name: got {entry.name!r}; an earlier entry has the same name"
    known = entry.prefix != "" and any(holds_below(entry.prefix, route.prefix) for route in routes)
    if entry.prefix is not None and not known:
        yield f"prefix: got {entry.prefix!r:.80}; no route is at or below this path, add a [[route]] for it"
