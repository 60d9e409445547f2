"""A day of bakeries as tables: who is there, at which hour, how fast, and what they do.

Plain values without locust, so that they can be tested and changed by themselves; `locustfile.py` acts them out.
The paths are those of the demo's services. Where yours differ, change them here.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

FIRST_HOUR: Final = 3.0
LAST_HOUR: Final = 21.0
"""The day that is acted: from the first dough to the last count. At night nobody is there, so the night is left out."""

CROWD: Final = (
    (3.0, 0.25),
    (4.5, 0.35),
    (5.0, 0.50),
    (7.0, 1.00),
    (8.5, 1.00),
    (10.0, 0.60),
    (11.5, 0.65),
    (12.5, 1.00),
    (13.5, 0.95),
    (15.0, 0.45),
    (17.0, 0.60),
    (19.0, 0.65),
    (20.0, 0.45),
    (21.0, 0.25),
)
"""Hour and share of all people who are signed in then; straight lines between.

Bakers from three; the shutters go up at five; breakfast and lunch are the two peaks; the afternoon is quiet; after work
people buy bread once more; the counting is done by few.
"""

PHASES: Final = (
    (3.0, "baking"),
    (5.0, "opening"),
    (6.5, "rush"),
    (9.0, "morning"),
    (11.75, "rush"),
    (14.0, "afternoon"),
    (17.0, "evening"),
    (20.0, "closing"),
)
"""What the bakery is busy with from each hour on. Breakfast and lunch are the same to a till."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What somebody does in a phase. A pause is in real seconds, however short the day: only the hours are rushed."""

    pause_s: tuple[float, float]
    tasks: Mapping[str, int]
    """Name of a task, which is a method in `locustfile.py` -> its weight among the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One kind of people."""

    weight: int
    """People of this kind among `PEOPLE`; with more or fewer people, the same shares."""
    usual: Shift
    special: Mapping[str, Shift | None] = field(default_factory=dict)
    """Phases in which it is otherwise; `None`: off duty."""

    def shift(self, phase: str) -> Shift | None:
        """What these people do in a phase, `None` if they are off duty."""
        return self.special.get(phase, self.usual)


ROLES: Final = {
    # Tills make most of the traffic, in quick succession while there is a queue, and hardly any without one.
    "cashier": Role(
        weight=9,
        usual=Shift(pause_s=(2.0, 6.0), tasks={"sell": 10, "look_up_price": 5, "void_sale": 1, "see_terminals": 1}),
        special={
            "baking": None,
            "opening": Shift(pause_s=(1.0, 3.0), tasks={"see_terminals": 3, "look_up_price": 4, "sell": 6}),
            "rush": Shift(pause_s=(0.4, 1.6), tasks={"sell": 14, "look_up_price": 5, "void_sale": 1}),
            "closing": Shift(pause_s=(1.0, 3.0), tasks={"count_till": 5, "see_terminals": 2, "void_sale": 1}),
        },
    ),
    # Owners look, rather than write: a dashboard is a handful of reads at once, then minutes of thought.
    "owner": Role(
        weight=4,
        usual=Shift(
            pause_s=(3.0, 9.0),
            tasks={"open_dashboard": 6, "read_forecast": 3, "read_report": 3, "see_subscription": 1, "refresh": 1},
        ),
        special={
            "baking": None,
            "rush": Shift(pause_s=(6.0, 15.0), tasks={"open_dashboard": 3, "refresh": 1}),
            "closing": Shift(pause_s=(3.0, 6.0), tasks={"read_report": 6, "read_forecast": 3, "refresh": 1}),
        },
    ),
    # Bakers have flour on their hands: few calls, many of them writes, and most before dawn.
    "baker": Role(
        weight=3,
        usual=Shift(pause_s=(6.0, 15.0), tasks={"see_plan": 3, "read_recipe": 2, "start_batch": 1}),
        special={
            "baking": Shift(
                pause_s=(1.0, 4.0), tasks={"see_plan": 4, "read_recipe": 5, "start_batch": 5, "take_inventory": 2}
            ),
            "evening": None,
            "closing": Shift(pause_s=(1.0, 3.0), tasks={"take_inventory": 8, "see_plan": 1}),
        },
    ),
    # Suppliers answer their telephones in the morning.
    "purchaser": Role(
        weight=2,
        usual=Shift(pause_s=(5.0, 12.0), tasks={"see_suppliers": 3, "see_stock": 3, "see_purchases": 2}),
        special={
            "baking": None,
            "opening": None,
            "morning": Shift(
                pause_s=(2.0, 5.0),
                tasks={"see_suppliers": 3, "see_stock": 4, "see_purchases": 2, "order_goods": 4, "refresh": 1},
            ),
            "closing": None,
        },
    ),
    # A program polls around the clock and knows no rush.
    "partner": Role(weight=2, usual=Shift(pause_s=(4.0, 6.0), tasks={"poll_sales": 6, "poll_stock": 3, "health": 1})),
    # The curious come when they have time.
    "visitor": Role(
        weight=2,
        usual=Shift(pause_s=(2.0, 8.0), tasks={"look_around": 6, "try_a_sale": 3, "stray": 1, "come_again": 1}),
        special={"baking": None, "opening": None},
    ),
    # Somebody is always wrong. Each of these must be told so, with the code that lets a program mend itself.
    "careless": Role(
        weight=2,
        usual=Shift(
            pause_s=(1.0, 4.0),
            tasks={"do_wrong": 10, "work_on_hold": 3, "work_unpaid": 2, "use_old_token": 3, "mistype": 1, "hammer": 2},
        ),
    ),
}
"""All kinds of people, by name; the names are those of the `roles` of accounts."""

PEOPLE: Final = sum(role.weight for role in ROLES.values())
"""Signed in at the peaks, if nothing else is said. The demo's limits leave room for 60 or so."""

SALES: Final = "/api/v1/sales"
INVENTORY: Final = "/api/v1/inventory"
RECIPES: Final = "/api/v1/recipes"
ORDERS: Final = "/api/v1/orders"
SUPPLIERS: Final = "/api/v1/suppliers"
BATCHES: Final = "/api/v1/production/batches"
PURCHASES: Final = "/api/v1/procurement/orders"
TERMINALS: Final = "/api/v1/pos/terminals"
FORECASTS: Final = "/api/v1/forecasting/forecasts"
WEATHER: Final = "/api/v1/external/weather"
HOLIDAYS: Final = "/api/v1/external/holidays"
INSIGHTS: Final = "/api/v1/ai-insights"
NOTICES: Final = "/api/v1/notifications"
TENANTS: Final = "/api/v1/tenants"

EXEMPT: Final = re.compile(r"/api/v1/(auth|tenants/[^/]+/subscription)(/|$)")
"""Paths that ask for no subscription, so that one can pay; nothing is said of its grace there."""

DASHBOARD: Final = (SALES, ORDERS, INVENTORY, FORECASTS, NOTICES, INSIGHTS)
REPORT: Final = (SALES, PURCHASES, BATCHES)

PRODUCTS: Final = (("Baguette", 1.2), ("Croissant", 1.5), ("Sourdough loaf", 4.2), ("Lemon tart", 3.9))
INGREDIENTS: Final = ("Wheat flour T55", "Butter 82 %", "Fresh yeast", "Free-range eggs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something wrong that is refused whoever does it."""

    name: str
    path: str
    status: int
    code: str
    """Of the problem that must come back."""
    method: str = "GET"
    token: str = "good"
    """`good`, `none` or `forged`."""
    tenant: str | None = None
    """`X-Tenant-ID`."""
    limited: bool = True
    """Whether it is counted, so that the answer has the limit's headers. What cannot be understood is not."""


NOBODYS: Final = "3b0f1f5e-0000-4000-8000-00000000feed"
"""A tenant that does not exist; like one that does, it is not the caller's."""

DEEDS: Final = (
    Deed(name="no token", path=SALES, token="none", status=401, code="token-missing"),
    Deed(name="forged token", path=SALES, token="forged", status=401, code="token-invalid"),
    Deed(name="another tenant", path=SALES, tenant=NOBODYS, status=403, code="tenant-forbidden"),
    Deed(name="two tenants", path=f"{TENANTS}/{NOBODYS}", tenant="another", status=400, code="tenant-ambiguous"),
    Deed(name="malformed tenant", path=SALES, tenant="a b", status=400, code="bad-request"),
    Deed(name="no such route", path="/api/v1/cakes", status=404, code="not-found"),
    Deed(name="path in disguise", path=f"{SALES}/..%2fauth%2fme", status=400, code="bad-request", limited=False),
    Deed(name="doubled slash", path="/api/v1//sales", status=400, code="bad-request", limited=False),
    Deed(name="wrong method", method="DELETE", path="/api/v1/auth/login", status=405, code="method-not-allowed"),
)

HAMMER_AT_MOST: Final = 600
"""Requests in one go. Where the limit is higher, nobody tries to reach it."""

KEPT: Final = 1000
"""Records that all people together leave in the services until the end of the day. The demo takes 2,000 of a kind."""


def hour_at(elapsed_s: float, day_s: float) -> float:
    """The hour of the day after so many real seconds of a day that takes `day_s`; at most `LAST_HOUR`."""
    return min(FIRST_HOUR + (LAST_HOUR - FIRST_HOUR) * elapsed_s / day_s, LAST_HOUR)


def crowd_at(hour: float, people: int) -> int:
    """How many of `people` are signed in, at least one."""
    for (before, low), (after, high) in pairwise(CROWD):
        if before <= hour <= after:
            share = low + (high - low) * (hour - before) / (after - before)
            return max(1, round(people * share))
    return 1


def kept_by_each(people: int) -> int:
    """Records that one person leaves until the end: the oldest is deleted for each further one, the rest on leaving."""
    return max(2, KEPT // people)


def phase_at(hour: float) -> str:
    """What the bakery is busy with at that hour."""
    return next((name for since, name in reversed(PHASES) if since <= hour), PHASES[0][1])


def chosen(shift: Shift, chance: Random) -> str:
    """One of the shift's tasks, by weight."""
    return chance.choices(tuple(shift.tasks), tuple(shift.tasks.values()))[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody who can sign in, and what as."""

    email: str
    password: str
    roles: tuple[str, ...]
    tenant: str | None = None
    """Sent as `X-Tenant-ID`: a tenant of `tenant_access` that is not the token's own."""
    in_grace: bool = False
    """The subscription has ended, but answers still come, with `X-Subscription-Grace`."""


EXTRA_ROLES: Final = ("on-hold", "unpaid")
"""Accounts that the careless use: of a tenant that is read-only, and of one whose grace is over."""
OPTIONAL: Final = frozenset({"visitor", "partner", *EXTRA_ROLES})
"""Roles that may be left without an account; what they would do is then left out. `careless` takes any."""
_FIELDS: Final = frozenset({"email", "password", "roles", "tenant", "in_grace"})


class BadAccounts(ValueError):
    """The accounts file cannot be used; the text says why."""


def accounts_from(document: Mapping[str, object]) -> tuple[Account, ...]:
    """Accounts of a parsed file: `account`, a list of tables, and a `password` for those without one.

    Raises `BadAccounts` for unknown fields and roles, and for a role that nobody has.
    """
    tables, shared = document.get("account"), document.get("password")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadAccounts("needs one [[account]] for each account")
    accounts = tuple(_account(table, shared) for table in tables)
    missing = set(ROLES) - {"careless"} - OPTIONAL - {role for account in accounts for role in account.roles}
    if missing:
        raise BadAccounts(f"no account has the role {', '.join(sorted(missing))}")
    return accounts


def _account(table: dict[str, object], shared: object) -> Account:
    email, password, roles = table.get("email"), table.get("password", shared), table.get("roles")
    if not isinstance(email, str) or not isinstance(password, str):
        raise BadAccounts("each account needs email and password")
    if unknown := set(table) - _FIELDS:
        raise BadAccounts(f"{email}: unknown field {', '.join(sorted(unknown))}")
    known = {*ROLES, *EXTRA_ROLES} - {"careless"}
    if not isinstance(roles, list) or not roles or not known.issuperset(roles):
        raise BadAccounts(f"{email}: roles must be a list of {', '.join(sorted(known))}")
    tenant = table.get("tenant")
    return Account(
        email=email,
        password=password,
        roles=tuple(roles),
        tenant=tenant if isinstance(tenant, str) else None,
        in_grace=table.get("in_grace") is True,
    )


def accounts_in(path: Path) -> tuple[Account, ...]:
    """Accounts of a TOML or, by its name, JSON file. Raises `BadAccounts`, naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
        return accounts_from(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except (OSError, ValueError) as error:
        raise BadAccounts(f"{path}: {error}") from None


# The demo's people have fewer jobs than a real bakery; several wear two hats, and their tills share their limits.
DEMO: Final = accounts_from(
    {
        "password": "croissant",
        "account": [
            {"email": "ana@espiga.example", "roles": ["owner", "cashier"]},
            {"email": "luis@espiga.example", "roles": ["baker", "cashier"]},
            {"email": "claire@martin.example", "roles": ["owner", "cashier", "partner"]},
            {"email": "jordi@martin.example", "roles": ["purchaser", "cashier"]},
            {
                "email": "jordi@martin.example",
                "roles": ["purchaser"],
                "tenant": "9a526927-fa81-54d6-927b-f11176b9dbd7",
            },
            {"email": "nuria@puig.example", "roles": ["owner", "baker", "cashier", "partner"], "in_grace": True},
            {"email": "otto@vogel.example", "roles": ["unpaid"]},
            {"email": "gina@rossi.example", "roles": ["on-hold"]},
            {"email": "visitor@demo.example", "roles": ["visitor"]},
        ],
    }
)
"""The accounts of `make demo`."""
