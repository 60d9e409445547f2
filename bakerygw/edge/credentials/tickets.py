"""Tickets: what a page fetches with its access token, and puts into the URL of one stream or socket in its stead."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any, Final, Protocol, get_args

from bakerygw.core.http import Reply, RequestHead
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Refused, refuse
from bakerygw.core.routing import Route
from bakerygw.core.values import value
from bakerygw.edge.admission import Caller, Grant, state_unavailable
from bakerygw.edge.conversation import NO_REFERRER
from bakerygw.edge.credentials.streams import with_tenant
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.pages.common import json_reply
from bakerygw.edge.policies import Policies
from bakerygw.ports import Records, Scheme, StoreUnavailable

TICKET_S: Final = 30
"""How long a ticket is good, unless it is used before."""
SKEW_S: Final = 30.0
"""So far the clocks of two instances may differ. The shared state forgets a ticket by its own clock; this is for one
that somebody has put back there."""
TICKET_BYTES: Final = 32

_FORM: Final = re.compile(rb"[A-Za-z0-9_-]{43}")


class Sealer(Protocol):
    """Keeps a text secret under a key that comes of an id; see `ports.SessionSealer`."""

    def seal(self, session_id: bytes, text: bytes) -> bytes:
        """`text`, unreadable and unchangeable without the id."""

    def opened(self, session_id: bytes, sealed: bytes) -> bytes | None:
        """The text; `None` for whatever was not sealed under this id."""


@value
class Deposit:
    """What a ticket stands for."""

    scheme: Scheme
    secret: bytes
    tenant_id: str
    until: float


class Tickets:
    """Makes tickets and takes them back, each once on whatever instance.

    Behind a ticket lies the credential that it was fetched with, which is judged again when the ticket is used: so a
    ticket opens nothing that the credential would not open then. The shared state has it sealed under a key that
    comes of the ticket, and the ticket only as its SHA-256: nothing there is of use to anybody. `now` is Unix seconds.
    """

    def __init__(self, records: Records, sealer: Sealer, now: Callable[[], float]) -> None:
        self._records, self._sealer, self._now = records, sealer, now

    async def reply_to(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """201 with a new ticket for the caller and its effective tenant; a body is not looked at.

        Raises `Refused` state-unavailable.
        """
        caller, view = grant.caller, grant.view
        if caller is None or caller.scheme is None or view is None:
            raise refuse("internal-error", "This route needs a token and a tenant; report the request_id.")
        ticket = token_urlsafe(TICKET_BYTES).encode("ascii")
        deposit = Deposit(
            scheme=caller.scheme, secret=caller.secret, tenant_id=view.tenant_id, until=self._now() + TICKET_S + SKEW_S
        )
        try:
            await self._records.put(_key(ticket), self._sealer.seal(ticket, _written(deposit)), ttl_s=TICKET_S)
        except StoreUnavailable:
            raise state_unavailable("ticket") from None
        return json_reply({"ticket": ticket.decode("ascii"), "expires_in": TICKET_S}, status=201, headers=NO_REFERRER)

    async def redeemed(self, caller: Caller, head: RequestHead, policies: Policies) -> tuple[Caller, RequestHead]:
        """Who has fetched the ticket that this caller presents, and the head with the ticket's tenant named in it.

        The credential is yet to be verified. Raises `Refused`: token-invalid for a ticket that is unknown, has ended
        or was used; state-unavailable.
        """
        ticket = caller.secret
        if _FORM.fullmatch(ticket) is None:
            raise _refused("ticket-form")
        try:
            sealed = await self._records.get(_key(ticket))
            if sealed is None or not await self._records.replace(_key(ticket), sealed, None, ttl_s=None):
                raise _refused("ticket-unknown")
        except StoreUnavailable:
            raise state_unavailable("ticket") from None
        text = self._sealer.opened(ticket, sealed)
        deposit = _read(text) if text is not None else None
        if deposit is None or self._now() >= deposit.until or deposit.scheme not in policies.credentials:
            raise _refused("ticket-sealed-otherwise")
        found = Caller(scheme=deposit.scheme, secret=deposit.secret, known=None, said=None)
        return found, with_tenant(head, deposit.tenant_id.encode("ascii"))


def _key(ticket: bytes) -> str:
    return "ticket:" + sha256(ticket).hexdigest()


def _written(deposit: Deposit) -> bytes:
    document = {
        "scheme": deposit.scheme,
        "secret": b64encode(deposit.secret).decode("ascii"),
        "tenant": deposit.tenant_id,
        "until": deposit.until,
    }
    return json.dumps(document).encode("ascii")


def _read(text: bytes) -> Deposit | None:
    """What was sealed here, maybe by another version of the gateway."""
    try:
        document: Mapping[str, Any] = json.loads(text)
        scheme = document["scheme"]
        if scheme not in get_args(Scheme):
            return None
        secret = b64decode(document["secret"], validate=True)
        return Deposit(scheme=scheme, secret=secret, tenant_id=document["tenant"], until=float(document["until"]))
    except (ValueError, KeyError, TypeError):
        return None


def _refused(reason: str) -> Refused:
    detail = "This ticket was used, has ended or never was; fetch a new one: POST /api/v1/alerts/ticket."
    return refuse("token-invalid", detail, reason=reason)
