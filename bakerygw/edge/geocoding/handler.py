"""`POST /api/v1/geocode`: an address to coordinates, without ever asking the geocoder more than it allows."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.geocoding import Question, read_question
from bakerygw.core.http import Pairs, Reply
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.routing import Route
from bakerygw.edge.admission import Grant, state_unavailable
from bakerygw.edge.body import collect
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.geocoding.answers import Answers
from bakerygw.edge.geocoding.turns import NoTurn, Turns
from bakerygw.edge.policies import Policies
from bakerygw.ports import Geocoder, StoreUnavailable, UpstreamFailed

MAX_BODY_BYTES: Final = 8 * 1024
MAX_PER_TENANT: Final = 4
"""Questions of one tenant that wait at a time on an instance, so that the others have their turns too."""
ATTRIBUTION: Final = "Data © OpenStreetMap contributors, ODbL 1.0. https://osm.org/copyright"
SERVICE: Final = "nominatim"
"""The geocoder in logs and metrics."""

_HEADERS: Final = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))
_ATTRIBUTION: Final = json.dumps(ATTRIBUTION, ensure_ascii=False).encode()

_DETAILS: Final = {
    "upstream-unreachable": "The map service could not be reached; try again in {0}.",
    "upstream-timeout": "The map service took too long to answer; try again in {0}.",
    "upstream-invalid": "The map service's answer could not be understood; try again in {0}, or ask otherwise.",
    "service-unavailable": "The map service takes no questions for the time being; try again in {0}.",
}
_NO_TURN: Final = {
    "busy": "Many addresses are being looked up, one a second; try again in {0}.",
    "paused": _DETAILS["service-unavailable"],
}


@dataclass(eq=False, slots=True, kw_only=True)
class _Work:
    """One question on its way to an answer, and all who wait for it."""

    tenant_id: str
    waiting: set[Deferred[tuple[bytes, str]]] = field(default_factory=set)
    doing: Deferred[None] | None = None
    asked: bool = False
    """It is being put to the geocoder: its answer is worth having though nobody waits for it any more."""
    done: bool = False


class Geocoding:
    """The handler. Equal questions at the same time are asked once."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        geocoder: Geocoder | None,
        answers: Answers,
        turns: Turns,
        *,
        clock: IReactorTime,
        count: Callable[[str], None],
    ) -> None:
        """`geocoder`: `None` where the operator has named none. `count` is told one of `core.geocoding.OUTCOMES` for
        each request."""
        self._geocoder, self._answers, self._turns = geocoder, answers, turns
        self._clock, self._count = clock, count
        self._works: dict[str, _Work] = {}

    async def reply_to(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The places for the address in the request's body. Raises `Refused`."""
        head = exchange.head
        question = read_question(await collect(exchange.body, MAX_BODY_BYTES), head.first(b"accept-language"))
        if self._geocoder is None:
            self._count("off")
            raise self._off()
        claims, view = grant.claims, grant.view
        key = ("demo:" if claims is not None and claims.is_demo else "") + question.digest()
        trace.service = SERVICE
        began = self._clock.seconds()
        try:
            results, result = await self._find(key, question, view.tenant_id if view is not None else "")
        except UpstreamFailed as failed:
            self._count("failed")
            trace.cause = failed.cause
            raise _failed(failed) from None
        except NoTurn as none:
            self._count(none.why)
            raise _not_now("service-unavailable", _NO_TURN[none.why], none.wait_s, f"geocoder-{none.why}") from None
        except StoreUnavailable:
            self._count("unavailable")
            raise state_unavailable("geocode") from None
        finally:
            trace.upstream_s = self._clock.seconds() - began
        self._count(result)
        body = b'{"results":%b,"attribution":%b,"cached":%b}'
        cached = b"false" if result == "asked" else b"true"
        return Reply(status=200, headers=_HEADERS, body=body % (results, _ATTRIBUTION, cached))

    async def _find(self, key: str, question: Question, tenant_id: str) -> tuple[bytes, str]:
        """The results, and where they come from: local, shared or asked."""
        known = self._answers.recall(key)
        if known is not None:
            return known, "local"
        work = self._works.get(key)
        fresh = work is None
        if work is None:
            self._check_share(tenant_id)
            work = self._works[key] = _Work(tenant_id=tenant_id)
        turn: Deferred[tuple[bytes, str]] = Deferred()
        work.waiting.add(turn)
        if fresh:
            work.doing = Deferred.fromCoroutine(self._do(work, key, question))
        try:
            return await turn
        finally:
            work.waiting.discard(turn)
            if not work.waiting and not work.asked and not work.done:
                self._leave(key, work)

    def _check_share(self, tenant_id: str) -> None:
        """Refuse one tenant more than its share of the line."""
        if sum(1 for work in self._works.values() if work.tenant_id == tenant_id) >= MAX_PER_TENANT:
            raise NoTurn("busy", self._turns.wait_s())

    async def _do(self, work: _Work, key: str, question: Question) -> None:
        """Answer all who wait for this question, whatever comes of it."""
        outcome: tuple[bytes, str] | Failure
        try:
            outcome = await self._answer(work, key, question)
        except CancelledError:
            return  # nobody waits
        except Exception:
            outcome = Failure()
        work.done = True
        if self._works.get(key) is work:
            del self._works[key]
        if isinstance(outcome, Failure) and not work.waiting and not outcome.check(UpstreamFailed):
            self._log.failure("geocoding.crashed", outcome)  # with nobody left to be told
        for turn in tuple(work.waiting):
            turn.callback(outcome)

    def _leave(self, key: str, work: _Work) -> None:
        """Nobody waits for this any more: let go of its place in the line."""
        if self._works.get(key) is work:
            del self._works[key]
        if work.doing is not None:
            work.doing.cancel()

    async def _answer(self, work: _Work, key: str, question: Question) -> tuple[bytes, str]:
        found = await self._answers.look_up(key)
        if found is not None:
            return found, "shared"
        await self._turns.take()
        try:
            found = await self._answers.look_up(key)  # another instance may have asked it while this one waited
        except Exception:
            await self._turns.give_back(used=False)
            raise
        if found is not None:
            await self._turns.give_back(used=False)
            return found, "shared"
        work.asked = True
        return await self._ask(key, question), "asked"

    async def _ask(self, key: str, question: Question) -> bytes:
        """Put it to the geocoder, in this instance's turn, and keep what it says."""
        assert self._geocoder is not None  # noqa: S101  seen when the request came
        pause_s, for_all = 0.0, False
        try:
            places = await self._geocoder.search(question)
            return await self._answers.keep(key, places)  # before the next turn, which may be for the same question
        except UpstreamFailed as failed:
            pause_s, for_all = failed.retry_after_s or 0.0, failed.code == "service-unavailable"
            self._log.warn("geocoding.failed", cause=failed.cause, error=failed.error, pause_s=pause_s)
            raise
        finally:
            await self._turns.give_back(pause_s=pause_s, for_all=for_all)

    def _off(self) -> Refused:
        self._log.warn("geocoding.off", reason="NOMINATIM_USER_AGENT is not set, which the public server asks for")
        detail = "Addresses are not looked up at this gateway; ask its operators to set up geocoding."
        return Refused(Problem(code="service-unavailable", detail=detail, reason="geocoder-off"))


def _failed(failed: UpstreamFailed) -> Refused:
    status = f"bakerygw; error={failed.error}".encode("ascii")
    proxy_status = ((b"Proxy-Status", status),)  # RFC 9209
    return _not_now(failed.code, _DETAILS[failed.code], failed.retry_after_s or 1, failed.error, proxy_status)


def _not_now(code: str, detail: str, wait_s: float, reason: str, headers: Pairs = ()) -> Refused:
    """The refusal of what may work after a wait."""
    retry_s = max(1, ceil(wait_s))
    text = detail.format("1 second" if retry_s == 1 else f"{retry_s} seconds")
    return Refused(Problem(code=code, detail=text, headers=headers, retry_after_s=retry_s, reason=reason))
