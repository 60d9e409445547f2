"""A realistic day of bakeries against a running gateway: `locust -f tests/load/locustfile.py`.

Who comes when, how fast and for what is in `day.py`; what an answer must look like in `answers.py`. A 4xx that is the
right refusal of something wrong is a success; a 2xx without its headers, or with another tenant's records, is none.

Without options it is for `make demo` at http://127.0.0.1:8000. Elsewhere: `LOCUST_HOST`, and `BAKERY_ACCOUNTS`, a file
of accounts. One session for each account and locust process is shared by all who use the account, as tabs of a browser
share theirs: sign-in is limited by address, and all of locust comes from one.
"""

import time
from argparse import ArgumentParser
from typing import Any, Final

import day
from answers import Answer, Wanted, levels
from locust import LoadTestShape, events
from locust.env import Environment
from person import MANNERS, REFRESH_EVERY_S, House, Person, Session, houses, log

DAY_MINUTES: Final = 10.0
LEEWAY_S: Final = 12
"""A token counts as expired only this long after its end: `JWT_LEEWAY_SECONDS` and a little."""


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Options of our own, which locust also shows in its page."""
    parser.add_argument("--day-minutes", type=float, env_var="BAKERY_DAY_MINUTES", default=DAY_MINUTES)  # type: ignore[call-arg]
    parser.add_argument("--people", type=int, env_var="BAKERY_PEOPLE", default=day.PEOPLE)  # type: ignore[call-arg]
    parser.add_argument("--accounts", env_var="BAKERY_ACCOUNTS", default="")  # type: ignore[call-arg]


@events.test_start.add_listener
def open_house(environment: Environment, **_: object) -> None:
    """Begin a day; in every worker and in the master, each with a clock of its own. Without accounts there is none."""
    try:
        houses[environment] = House(environment)
    except day.BadAccounts as error:
        log.error("%s", error)
        environment.process_exit_code = 2
        if environment.runner is not None:
            environment.runner.quit()
        return
    # People who go home first sign out and clear up.
    environment.stop_timeout = max(environment.stop_timeout or 0, 20)


@events.test_stop.add_listener
def tell_waits(environment: Environment, **_: object) -> None:
    """Say which limits people had to wait for, which is no failure but makes the day slower than it is."""
    house = houses.get(environment)
    for name, waited_s in sorted(house.waits.items()) if house is not None else ():
        log.warning("%s: people slowed down for this limit, %.0f s in all", name, waited_s)


class Day(LoadTestShape):
    """How many people are signed in, hour by hour; ends with the day."""

    def tick(self) -> tuple[int, float] | None:
        """Called by locust once a second."""
        house = houses.get(self.runner.environment) if self.runner is not None else None
        if house is None:
            return 1, 1.0
        if self.get_run_time() >= house.day_s:
            return None
        hour = day.hour_at(self.get_run_time(), house.day_s)
        # A whole crowd within a quarter of an hour of the day, whatever a day takes; locust warns of 100 and more.
        rate = house.people * 4 * (day.LAST_HOUR - day.FIRST_HOUR) / house.day_s
        return day.crowd_at(hour, house.people), min(max(1.0, rate), 99.0)


class Cashier(Person):
    """A till."""

    role = "cashier"
    weight = day.ROLES[role].weight

    def sell(self) -> None:
        """Write a sale."""
        product, price = self.chance.choice(day.PRODUCTS)
        sale = {"product": product, "quantity": self.chance.randint(1, 6), "unit_price": price, "channel": "counter"}
        self.create(day.SALES, sale)

    def look_up_price(self) -> None:
        """What is it, what is in it."""
        self.read(day.RECIPES, "limit=20")

    def void_sale(self) -> None:
        """Take back the last sale, having looked at it."""
        ids = self.made.get(day.SALES)
        if ids:
            record_id = ids.pop()
            self.call("GET", f"{day.SALES}/{record_id}", name=f"{day.SALES}/{{id}}")
            self.delete(day.SALES, record_id)

    def see_terminals(self) -> None:
        """Which tills are on, and what they took."""
        self.read(day.TERMINALS)

    def count_till(self) -> None:
        """Page through what was sold."""
        for offset in (0, 50, 100):
            self.read(day.SALES, f"limit=50&offset={offset}")


class Owner(Person):
    """Somebody at the dashboard."""

    role = "owner"
    weight = day.ROLES[role].weight

    def open_dashboard(self) -> None:
        """All its tiles, one after the other."""
        for path in day.DASHBOARD:
            self.read(path, "limit=10")

    def read_forecast(self) -> None:
        """Tomorrow, and why."""
        for path in (day.FORECASTS, day.WEATHER, day.HOLIDAYS):
            self.read(path)

    def read_report(self) -> None:
        """Long lists."""
        for path in day.REPORT:
            self.read(path, "limit=200")

    def see_subscription(self) -> None:
        """What is paid for, which must be what the token says."""
        tenant_id = self.session.tenant_id
        self.read("/api/v1/auth/me")
        self.call("GET", f"{day.TENANTS}/{tenant_id}/subscription/status", name=f"{day.TENANTS}/{{id}}/subscription")


class Baker(Person):
    """Somebody at the oven's tablet."""

    role = "baker"
    weight = day.ROLES[role].weight

    def see_plan(self) -> None:
        """What to bake next."""
        self.read(day.BATCHES)
        self.read(day.FORECASTS, "limit=10")

    def read_recipe(self) -> None:
        """One out of the list."""
        items = self.read(day.RECIPES).document.get("items")
        if isinstance(items, list) and items:
            record_id = self.chance.choice(items)["id"]
            self.call("GET", f"{day.RECIPES}/{record_id}", name=f"{day.RECIPES}/{{id}}")

    def start_batch(self) -> None:
        """Write a batch, and later that it is done."""
        product, _ = self.chance.choice(day.PRODUCTS)
        record_id = self.create(day.BATCHES, {"product": product, "planned": 120, "oven": 2, "status": "baking"})
        if record_id is not None:
            self.call("PATCH", f"{day.BATCHES}/{record_id}", name=f"{day.BATCHES}/{{id}}", body={"status": "done"})

    def take_inventory(self) -> None:
        """Count what is on the shelves."""
        self.read(day.INVENTORY)
        ingredient = self.chance.choice(day.INGREDIENTS)
        self.create(day.INVENTORY, {"ingredient": ingredient, "quantity": self.chance.randint(1, 90), "unit": "kg"})


class Purchaser(Person):
    """Somebody who buys flour, perhaps for two bakeries."""

    role = "purchaser"
    weight = day.ROLES[role].weight

    def see_suppliers(self) -> None:
        """Who has what."""
        self.read(day.SUPPLIERS)

    def see_stock(self) -> None:
        """What runs out."""
        self.read(day.INVENTORY, "limit=100")

    def see_purchases(self) -> None:
        """What is on its way."""
        self.read(day.PURCHASES)

    def order_goods(self) -> None:
        """Write an order."""
        ingredient = self.chance.choice(day.INGREDIENTS)
        self.create(day.PURCHASES, {"ingredient": ingredient, "quantity": 50, "unit": "kg", "status": "sent"})


class Partner(Person):
    """A third party's program that polls."""

    role = "partner"
    weight = day.ROLES[role].weight

    def poll_sales(self) -> None:
        """What was sold since."""
        self.read(day.SALES, "limit=200")

    def poll_stock(self) -> None:
        """What there is."""
        self.read(day.INVENTORY, "limit=200")

    def health(self) -> None:
        """Whether it is worth asking: public, and not limited."""
        for path in ("/health", "/api/v1/health"):
            self.ask("GET", path, Wanted(limited=False))


class Visitor(Person):
    """Somebody who tries the demo, in a session of their own."""

    role = "visitor"
    weight = day.ROLES[role].weight

    def sign_in(self, session: Session) -> None:
        """Sign in anew: no two visitors share a session."""
        self.session = Session(account=session.account)
        super().sign_in(self.session)

    def look_around(self) -> None:
        """What there is to see."""
        for path in (day.SALES, day.INVENTORY):
            self.read(path, "limit=20")

    def try_a_sale(self) -> None:
        """It must be there afterwards."""
        record_id = self.create(day.SALES, {"product": "Baguette", "quantity": 1})
        if record_id is not None:
            self.call("GET", f"{day.SALES}/{record_id}", name=f"{day.SALES}/{{id}}")

    def stray(self) -> None:
        """A demo session stays in the demo."""
        fields = self.identity(self.session) | {"X-Tenant-ID": day.NOBODYS}
        self.ask(
            "GET", day.SALES, Wanted(statuses=(), codes=("demo-isolation",)), name="403 demo-isolation", headers=fields
        )

    def come_again(self) -> None:
        """Sign out and in, but not at once: signing in is limited."""
        if time.monotonic() - self.session.refreshed_at > REFRESH_EVERY_S:
            self.leave()
            self.sign_in(self.session)

    def leave(self) -> None:
        """Delete what one has made, which nobody else can see, and sign out."""
        super().on_stop()
        self.call("POST", "/api/v1/auth/logout", status=204, body={"refresh_token": self.session.refresh})

    def on_stop(self) -> None:
        """Sign out."""
        if not self.at_home:
            self.leave()


class Careless(Person):
    """People and programs that do what they should not, and must be told so."""

    role = "careless"
    weight = day.ROLES[role].weight

    def refused(
        self, code: str, method: str, path: str, headers: dict[str, str], *, limited: bool = True, **more: Any
    ) -> Answer:
        """Do something wrong. What is not yet known counts by address, so the limit may come first."""
        wanted = Wanted(statuses=(), codes=(code, *MANNERS), limited=limited)
        answer = self.ask(method, path, wanted, headers=headers, **more)
        if answer.status == 429:
            self.wait_for("the careless: Retry-After", answer.retry_after_s)
        return answer

    def do_wrong(self) -> None:
        """One of the deeds that need no account of their own."""
        deed = self.chance.choice(day.DEEDS)
        headers = {}
        if deed.token != "none":
            altered = "AAAAA" if deed.token == "forged" else self.session.access[-5:]
            headers["Authorization"] = f"Bearer {self.session.access[:-5]}{altered}"
        if deed.tenant is not None:
            headers["X-Tenant-ID"] = deed.tenant
        name = f"{deed.status} {deed.code}: {deed.name}"
        self.refused(deed.code, deed.method, deed.path, headers, name=name, limited=deed.limited)

    def work_on_hold(self) -> None:
        """Read, which works, and write, which does not, in a tenant that is read-only."""
        session = self.house.session("on-hold")
        if session is not None:
            self.sign_in(session)
            self.renew(session)
            headers, sale = self.identity(session), {"product": "Baguette", "quantity": 1}
            self.ask("GET", day.SALES, Wanted(tenant_id=session.tenant_id), headers=headers)
            self.refused("tenant-read-only", "POST", day.SALES, headers, name="403 tenant-read-only", body=sale)

    def work_unpaid(self) -> None:
        """Work without having paid; only what leads to paying is open."""
        session = self.house.session("unpaid")
        if session is not None:
            self.sign_in(session)
            self.renew(session)
            headers = self.identity(session)
            self.refused("subscription-expired", "GET", day.SALES, headers, name="402 subscription-expired")
            path = f"{day.TENANTS}/{session.tenant_id}/subscription"
            self.ask("GET", path, Wanted(codes=MANNERS), name=f"{day.TENANTS}/{{id}}/subscription", headers=headers)

    def use_old_token(self) -> None:
        """Use a token that has expired. The demo gives a short one to whoever asks; where nobody does, leave it."""
        house = self.house
        if house.expired is None:
            account = self.session.account
            login: dict[str, object] = {"email": account.email, "password": account.password, "expires_in": 1}
            house.expired, house.expired_at = "", 0.0
            document: dict[str, Any] = self.auth("login", login).document
            if document.get("expires_in", 900) <= LEEWAY_S:
                house.expired = document["access_token"]
                house.expired_at = time.monotonic() + document["expires_in"] + LEEWAY_S
        elif house.expired and time.monotonic() > house.expired_at:
            headers = {"Authorization": f"Bearer {house.expired}"}
            self.refused("token-expired", "GET", day.SALES, headers, name="401 token-expired")

    def mistype(self) -> None:
        """A wrong password. The service says so, and the gateway passes it on."""
        house = self.house
        if time.monotonic() - house.mistyped_at > REFRESH_EVERY_S:
            house.mistyped_at = time.monotonic()
            body = {"email": self.session.account.email, "password": "wrong"}
            wanted = Wanted(statuses=(401,), codes=MANNERS)
            self.ask("POST", "/api/v1/auth/login", wanted, name="401 by the service: wrong password", body=body)

    def hammer(self) -> None:
        """Ask without a pause until the limit is used up, and once more after the time that it tells.

        With the account that is refused anyway, so that nobody else's limit is spent.
        """
        session = self.house.session("unpaid")
        if session is None or not self.house.hammering.acquire(blocking=False):
            return
        try:
            self.sign_in(session)
            self.renew(session)
            headers = self.identity(session)
            for _ in range(day.HAMMER_AT_MOST):
                if not self.strike(headers):
                    self.strike(headers)
                    return
        finally:
            self.house.hammering.release()

    def strike(self, headers: dict[str, str]) -> bool:
        """One blow; whether to go on: not after a 429, and not towards a limit that is out of reach."""
        name = "402, then 429: hammering"
        answer = self.refused("subscription-expired", "GET", day.ORDERS, headers, name=name)
        return answer.status == 402 and max(level.quota for level in levels(answer)) <= day.HAMMER_AT_MOST
