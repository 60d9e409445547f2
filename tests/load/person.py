"""Somebody who signs in and asks, as a good client does; what the roles of `locustfile.py` have in common."""

import base64
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import uuid4

import day
import gevent
from answers import Answer, Level, Wanted, complaints, levels
from gevent.lock import RLock
from locust import FastHttpUser, task
from locust.env import Environment

RESERVE: Final = 0.15
"""Share of a limit at which people slow down; what they share with others must do until all have noticed."""
REFRESH_EVERY_S: Final = 45
"""Seconds between two refreshes of a session; all accounts together stay below the limit for signing in."""
MANNERS: Final = ("rate-limited",)

log = logging.getLogger("bakery")


class NotSignedIn(Exception):
    """Signing in or refreshing failed for good; the report has the answer."""


@dataclass(kw_only=True)
class Session:
    """An account and its tokens, used by one person or by several."""

    account: day.Account
    lock: RLock = field(default_factory=RLock)
    access: str = ""
    refresh: str = ""
    ends_at: float = 0.0
    refreshed_at: float = 0.0

    @property
    def tenant_id(self) -> str | None:
        """The tenant that requests are for: the one that is named, else the token's own."""
        if self.account.tenant is not None or not self.access:
            return self.account.tenant
        payload = self.access.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["tenant_id"])

    def take(self, answer: Answer) -> None:
        """The tokens of a successful sign-in or refresh."""
        document: dict[str, Any] = answer.document
        now = time.monotonic()
        self.access, self.refresh = document["access_token"], document.get("refresh_token", "")
        self.ends_at, self.refreshed_at = now + document.get("expires_in", 900), now


class House:
    """What all people of this locust process share: the day's clock, accounts, sessions, and how often they waited."""

    def __init__(self, environment: Environment) -> None:
        options: Any = environment.parsed_options
        accounts = day.accounts_in(Path(options.accounts)) if options.accounts else day.DEMO
        sessions = [Session(account=account) for account in accounts]
        self.day_s = 60 * float(options.day_minutes)
        self.people = int(options.people)
        self.kept = day.kept_by_each(self.people)
        self.started_at = time.monotonic()
        self.waits: dict[str, float] = {}
        self.hammering = RLock()
        self.expired: str | None = None
        self.expired_at = 0.0
        self.mistyped_at = time.monotonic()
        self._turns = {
            role: cycle([session for session in sessions if role in session.account.roles])
            for role in {role for account in accounts for role in account.roles}
        }
        self._turns["careless"] = cycle(
            [session for session in sessions if not {"visitor", *day.EXTRA_ROLES} & set(session.account.roles)]
        )

    @property
    def hour(self) -> float:
        """The hour of the day that is acted."""
        return day.hour_at(time.monotonic() - self.started_at, self.day_s)

    def session(self, role: str) -> Session | None:
        """The session of the next account with this role, in turn; `None` if no account has it."""
        turns: Iterator[Session] | None = self._turns.get(role)
        return None if turns is None else next(turns)


houses: dict[Environment, House] = {}
"""The house of each locust environment; there is one, but for locust's own tests."""


class Person(FastHttpUser):
    """Somebody with an account who does what `day.ROLES` says for the hour, and looks at every answer."""

    abstract = True
    role = ""
    host = "http://127.0.0.1:8000"
    insecure = False
    connection_timeout = 10.0
    network_timeout = 60.0

    def on_start(self) -> None:
        """Come to work: find an account and see that it is signed in."""
        self.house = houses[self.environment]
        self.chance = Random()
        self.made: dict[str, deque[str]] = {}
        self.at_home = True
        session = self.house.session(self.role)
        if session is None:
            log.info("no account for a %s, who stays at home", self.role)
            return
        self.session = session
        with suppress(NotSignedIn):
            self.sign_in(session)
            self.at_home = False

    def on_stop(self) -> None:
        """Leave nothing behind."""
        for path, ids in self.made.items():
            while ids:
                self.delete(path, ids.popleft())

    def wait_time(self) -> float:
        """Seconds: the pause of the hour's shift; off duty, until the next look at the clock."""
        shift = day.ROLES[self.role].shift(day.phase_at(self.house.hour))
        return 1.0 if shift is None or self.at_home else self.chance.uniform(*shift.pause_s)

    @task
    def work(self) -> None:
        """One thing out of the hour's shift."""
        shift = day.ROLES[self.role].shift(day.phase_at(self.house.hour))
        if shift is None or self.at_home:
            return
        try:
            getattr(self, day.chosen(shift, self.chance))()
        except NotSignedIn:
            self.at_home = True

    # Asking

    def ask(
        self,
        method: str,
        path: str,
        wanted: Wanted,
        *,
        name: str = "",
        headers: dict[str, str] | None = None,
        body: object = None,
    ) -> Answer:
        """Send one request and judge the answer; `name` is its row in the report."""
        request_id = str(uuid4())
        fields = {"X-Request-ID": request_id, **(headers or {})}
        with self.client.request(
            method, path, name=name or path, headers=fields, json=body, catch_response=True, allow_redirects=False
        ) as response:
            if not response.status_code:  # no answer at all, which locust reports as what it was
                return Answer(status=0, headers={}, body=b"")
            answer = Answer(
                status=response.status_code,
                headers={key.lower(): value for key, value in (response.headers or {}).items()},
                body=response.content or b"",
            )
            wrong = complaints(answer, wanted, request_id)
            if wrong:
                response.failure("; ".join(wrong))
                log.info("%s %s, request id %s: %s", method, path, request_id, "; ".join(wrong))
            else:
                response.success()
        return answer

    def call(self, method: str, path: str, *, status: int = 200, name: str = "", body: object = None) -> Answer:
        """A request of somebody who is signed in, as a good client makes it.

        It refreshes a token that is said to have expired or gone stale and repeats once, and slows down when the
        limit is nearly used up. To be refused for the limit all the same is a failure: the limit is too low for
        this day, or the day has too many people for each account.
        """
        self.renew(self.session)
        wanted = Wanted(
            statuses=(status,),
            codes=("token-expired", "token-stale"),
            grace=self.session.account.in_grace and not day.EXEMPT.match(path),
            tenant_id=self.session.tenant_id,
        )
        answer = self.ask(method, path, wanted, name=name, headers=self.identity(self.session), body=body)
        if answer.code in wanted.codes:
            self.renew(self.session, at_once=True)
            wanted = Wanted(statuses=(status,), grace=wanted.grace, tenant_id=wanted.tenant_id)
            answer = self.ask(method, path, wanted, name=name, headers=self.identity(self.session), body=body)
        self.slow_down(answer)
        return answer

    def identity(self, session: Session) -> dict[str, str]:
        """Who asks, and for which tenant."""
        fields = {"Authorization": f"Bearer {session.access}"}
        return fields if session.account.tenant is None else fields | {"X-Tenant-ID": session.account.tenant}

    def slow_down(self, answer: Answer) -> None:
        """Wait as long as the limit asks for."""
        if answer.status == 429:
            self.wait_for("Retry-After", answer.retry_after_s)
            return
        try:
            told: tuple[Level, ...] = levels(answer)
        except ValueError:
            return
        for level in told:
            if wait_s := level.wait_s(RESERVE):
                self.wait_for(level.name, wait_s)

    def wait_for(self, name: str, seconds: float) -> None:
        """Sleep, and remember it for the report; with some chance in it, so that not all wake together."""
        seconds *= self.chance.uniform(1.0, 1.5)
        self.house.waits[name] = self.house.waits.get(name, 0.0) + seconds
        gevent.sleep(seconds)

    # Signing in

    def sign_in(self, session: Session) -> None:
        """See that the session has tokens; whoever comes first signs in for all."""
        with session.lock:
            if not session.access:
                login = {"email": session.account.email, "password": session.account.password}
                session.take(self.auth("login", login))

    def renew(self, session: Session, *, at_once: bool = False) -> None:
        """Refresh the session's tokens a minute before they end, or now, unless somebody has done so just now."""
        now = time.monotonic()
        if now < session.ends_at - 60 and not at_once:
            return
        with session.lock:
            if session.refreshed_at >= now:
                return
            session.take(self.auth("refresh", {"refresh_token": session.refresh}))

    def auth(self, what: str, body: dict[str, object]) -> Answer:
        """Sign in or refresh; wait and repeat for as long as the limit by address says so."""
        path = f"/api/v1/auth/{what}"
        while True:
            answer = self.ask("POST", path, Wanted(codes=MANNERS), body=body)
            if answer.status == 200:
                return answer
            if answer.status != 429:
                log.error("%s answers %s %s: a %s stays at home", path, answer.status, answer.code, self.role)
                raise NotSignedIn
            self.wait_for(f"{path}: Retry-After", answer.retry_after_s)

    def refresh(self) -> None:
        """Come back to the desk: the program refreshes its token, but not more often than it must."""
        if time.monotonic() - self.session.refreshed_at > REFRESH_EVERY_S:
            self.renew(self.session, at_once=True)

    # Records

    def read(self, path: str, query: str = "") -> Answer:
        """Read a page of records."""
        return self.call("GET", f"{path}?{query}" if query else path, name=path)

    def create(self, path: str, record: dict[str, object]) -> str | None:
        """Write a record, and delete the oldest of one's own if there are many."""
        answer = self.call("POST", path, status=201, body=record)
        record_id = answer.document.get("id")
        if answer.status != 201 or not isinstance(record_id, str):
            return None
        ids = self.made.setdefault(path, deque())
        ids.append(record_id)
        if len(ids) > self.house.kept:
            self.delete(path, ids.popleft())
        return record_id

    def delete(self, path: str, record_id: str) -> None:
        """Delete a record of one's own."""
        self.call("DELETE", f"{path}/{record_id}", status=204, name=f"{path}/{{id}}")
