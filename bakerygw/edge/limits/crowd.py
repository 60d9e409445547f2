"""How many requests of one subject are under way at the same time, and how many may be."""

from typing import Final

from bakerygw.core.heads import client_subject
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused
from bakerygw.edge.admission import Grant
from bakerygw.edge.exchange import Exchange

CONCURRENCY: Final = "concurrency"
"""The name of this limit."""
RETRY_AFTER_S: Final = 1
SUBJECTS: Final = 10_000
"""Whose empty sets are kept for their next request, which spares it a fifth of what being counted costs."""
DISCONNECTED: Final = "disconnected"
"""Why a request ended that was cut off here."""


class Crowd:
    """All exchanges that were let pass and have not ended, by whose they are: a tenant's, or without one an address's.

    Each leaves when `Conversation` has ended it, however that came about.
    """

    def __init__(self) -> None:
        self._parties: dict[str, set[Exchange]] = {}
        self._room = SUBJECTS

    def enter(self, exchange: Exchange, grant: Grant, most: int, trace: Trace) -> None:
        """Count the exchange until it ends. Raises `Refused` rate-limited if `most` are there already.

        Sessions of the demo are not counted with the tenant's other requests.
        """
        if exchange.party is not None:
            return  # it is counted
        view = grant.view
        if view is None:
            subject = "addr:" + client_subject(exchange.head.client)
        elif grant.claims is not None and grant.claims.is_demo:
            subject = "demo:" + view.tenant_id
        else:
            subject = view.tenant_id
        party = self._parties.get(subject)
        if party is None:
            if len(self._parties) >= self._room:
                self._forget()
            party = self._parties[subject] = set()
        elif len(party) >= most:
            trace.exceed(CONCURRENCY, False)
            raise _too_many(most, "address" if view is None else "tenant")
        party.add(exchange)
        exchange.party = party

    def of(self, tenant_id: str) -> int:
        """How many requests for this tenant are under way on this instance."""
        return len(self._members(tenant_id))

    def cut(self, tenant_id: str) -> int:
        """End every request for this tenant on this instance by resetting its connection; how many there were."""
        members = self._members(tenant_id)
        for exchange in members:
            exchange.channel.abort(DISCONNECTED)
        return len(members)

    def _members(self, tenant_id: str) -> list[Exchange]:
        parties = (self._parties.get(tenant_id), self._parties.get("demo:" + tenant_id))
        return [exchange for party in parties if party is not None for exchange in party]

    def _forget(self) -> None:
        """Drop those who have nothing under way; however many have, this is rare."""
        self._parties = {subject: party for subject, party in self._parties.items() if party}
        self._room = max(SUBJECTS, 2 * len(self._parties))


def _too_many(most: int, scope: str) -> Refused:
    whose = "of this tenant" if scope == "tenant" else "from your network address"
    return Refused(
        Problem(
            code="rate-limited",
            detail=f"{most} requests {whose} are under way already; let one of them end, then repeat this one.",
            members={"policy": CONCURRENCY, "scope": scope, "limit": most},
            retry_after_s=RETRY_AFTER_S,
        )
    )
