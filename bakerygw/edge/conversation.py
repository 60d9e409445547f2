"""One request from its head to its outcome: the frame that both ports put around their answers."""

import os
import re
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final
from uuid import uuid4

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.core.problem import Problem, Refused, problem_reply
from bakerygw.edge.deliver import deliver
from bakerygw.edge.exchange import Exchange
from bakerygw.runtime.task import Task

CLIENT_LEFT: Final = 499
UNREADABLE: Final = "(unreadable)"
"""The route's label for what could not be read as a request."""
# An API key has the form of a request's id, but is none: ids are logged, sent on and sent back.
_REQUEST_ID = re.compile(rb"(?!.*bkry_)[A-Za-z0-9._-]{8,128}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
NO_REFERRER: Final = ((b"Referrer-Policy", b"no-referrer"),)
"""With every answer that comes of a credential in a URL, or holds one for a URL."""
_NOSNIFF: Final = (b"X-Content-Type-Options", b"nosniff")


class Entropy:
    """Random hexadecimal digits, drawn from the kernel for a hundred requests at a time: a draw takes 2 to 7 µs."""

    def __init__(self) -> None:
        self._drawn = ""

    def digits(self) -> str:
        """Eighty, never given before."""
        if not self._drawn:
            self._drawn = os.urandom(4000).hex()
        taken, self._drawn = self._drawn[:80], self._drawn[80:]
        return taken


def identify(head: RequestHead, fresh: str) -> tuple[str, bytes]:
    """The request's id and its `traceparent`.

    The caller's `X-Request-ID` where it is of the accepted form, else a new UUID4 (RFC 9562). The caller's trace
    continued with a span of ours, or a new one (W3C Trace Context). `fresh`: eighty random digits.
    """
    request_id = _offered(head, b"x-request-id", _REQUEST_ID)
    trace = _offered(head, b"traceparent", _TRACEPARENT)
    span = fresh[32:48]
    return (
        _uuid4(fresh) if request_id is None else request_id,
        (f"00-{fresh[48:80]}-{span}-01" if trace is None else f"{trace[:36]}{span}{trace[52:]}").encode("ascii"),
    )


def _offered(head: RequestHead, name: bytes, form: re.Pattern[bytes]) -> str | None:
    """The value of a field that was sent once and in this form."""
    values = head.fields.get(name)
    if values is None or len(values) != 1 or not form.fullmatch(values[0]):
        return None
    return values[0].decode("ascii")


def _uuid4(digits: str) -> str:
    """A random UUID out of 32 hexadecimal digits, as `uuid.uuid4` would write it, in a quarter of its time."""
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def printable(path: bytes) -> str:
    """A path as text for logs and problems."""
    return path.decode("ascii", "backslashreplace")


class Conversation:
    """Serves exchanges by asking `reply_to`, and sees to it that each ends and is told of, whatever happens.

    `reply_to(exchange, trace)` may raise `Refused`; `standing(head, trace)` gives the
    header fields that every answer carries.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        reply_to: Callable[[Exchange, Trace], Awaitable[Reply]],
        *,
        standing: Callable[[RequestHead, Trace], Pairs],
        ended: Callable[[Outcome], None],
        clock: IReactorTime,
    ) -> None:
        self._reply_to, self._standing, self._ended, self._clock = reply_to, standing, ended, clock
        self._entropy = Entropy()

    def serve(self, exchange: Exchange) -> None:
        """Answer, now or later; stop working when the client leaves."""
        work = Task(self._serve(exchange), lambda failure: self._crashed(failure, exchange))
        if not work.done:
            exchange.on_lost = work.cancel

    def unreadable(self, refusal: Refused, peer: str) -> Reply:
        """The answer to what could not be read as a request."""
        head = refusal.head
        if head is None:
            trace = Trace(request_id=str(uuid4()), started=self._clock.seconds(), client=peer, route=UNREADABLE)
            standing = standing_headers(trace)
        else:
            trace = self._trace(head)
            trace.route = UNREADABLE
            standing = self._standing(head, trace)
        reply = self.refused(refusal, trace).with_headers(standing)
        self._tell(trace, reply.status, 0, len(reply.body) if isinstance(reply.body, bytes) else 0)
        return reply

    async def _serve(self, exchange: Exchange) -> None:
        trace = self._trace(exchange.head)
        status = CLIENT_LEFT
        try:
            reply = await self._answer(exchange, trace)
            status = reply.status
            cut = await deliver(exchange, reply)
            if cut is not None:
                trace.reason = trace.reason or "cut"
                trace.cause = cut
        except CancelledError:
            trace.reason = exchange.lost_by
        finally:
            party = exchange.party
            if party is not None:
                party.discard(exchange)
        self._tell(trace, status, exchange.body.received, exchange.bytes_out)

    def _trace(self, head: RequestHead) -> Trace:
        request_id, traceparent = identify(head, self._entropy.digits())
        return Trace(
            request_id=request_id,
            started=self._clock.seconds(),
            traceparent=traceparent,
            method=head.method,
            path=printable(head.path),
            client=head.client,
        )

    async def _answer(self, exchange: Exchange, trace: Trace) -> Reply:
        standing = self._standing(exchange.head, trace)
        try:
            return (await self._reply_to(exchange, trace)).with_headers(standing)
        except Refused as refusal:
            return self.refused(refusal, trace).with_headers(standing)
        except CancelledError:
            raise
        except Exception:
            self._log.failure("request.crashed", request_id=trace.request_id)
            problem = Problem(code="internal-error", detail="The gateway itself failed here; report the request_id.")
            return self.refused(Refused(problem), trace).with_headers(standing)

    def refused(self, refusal: Refused, trace: Trace) -> Reply:
        """The refusal as a reply, and as a note for the outcome."""
        problem = refusal.problem
        trace.reason = problem.code
        trace.cause = trace.cause or problem.reason or None
        reply = problem_reply(problem, instance=trace.path, request_id=trace.request_id)
        return reply.with_headers(NO_REFERRER) if trace.private else reply

    def _tell(self, trace: Trace, status: int, bytes_in: int, bytes_out: int) -> None:
        self._ended(
            Outcome(
                trace=trace,
                status=status,
                bytes_in=bytes_in,
                bytes_out=bytes_out,
                duration_s=self._clock.seconds() - trace.started,
            )
        )

    def _crashed(self, failure: Failure, exchange: Exchange) -> None:
        """The last resort: what went wrong while replying must not leave a client waiting."""
        self._log.failure("reply.crashed", failure)
        exchange.abort()


def standing_headers(trace: Trace) -> Pairs:
    """What every answer of either port carries."""
    return ((b"X-Request-ID", trace.request_id.encode("ascii")), _NOSNIFF)
