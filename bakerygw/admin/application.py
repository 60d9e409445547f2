"""The admin port's application: bodies collected, refusals as problems, nothing logged but what was not done."""

from typing import ClassVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bakerygw.admin.site import AdminApp
from bakerygw.core.http import Reply
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.edge.body import collect
from bakerygw.edge.conversation import Conversation, standing_headers
from bakerygw.edge.exchange import Exchange

MAX_BODY_BYTES = 64 * 1024
AUDITED = frozenset({401, 403})
"""Refusals that are audit events already."""


class AdminGateway(Conversation):
    """Serves `AdminApp` on an `EdgeSite`."""

    _events: ClassVar[Logger] = Logger()

    def __init__(self, app: AdminApp, *, clock: IReactorTime) -> None:
        super().__init__(self._call, standing=lambda _, trace: standing_headers(trace), ended=self._called, clock=clock)
        self._app = app

    async def _call(self, exchange: Exchange, trace: Trace) -> Reply:
        body = await collect(exchange.body, MAX_BODY_BYTES)
        return await self._app.reply_to(exchange.head, body)

    def _called(self, outcome: Outcome) -> None:
        trace = outcome.trace
        if trace.reason is not None and outcome.status not in AUDITED:
            self._events.info(
                "admin.not_done",
                request_id=trace.request_id,
                method=trace.method,
                path=trace.path,
                client=trace.client,
                status=outcome.status,
                reason=trace.reason,
            )
