"""What one instance without Redis keeps goes by the reactor's clock, which nobody sets, and by no other."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from bakerygw.config.settings import load_settings
from bakerygw.core.alerts import Position, parse_alert
from bakerygw.state import SharedState, make_state
from bakerygw.stores.events import SEEN_S
from tests.deferreds import success_of
from tests.tokens.token_fakes import Told

START = Position(epoch=0, offset=0)


def ask(call: Any) -> Any:
    return success_of(Deferred.fromCoroutine(call))


def embedded() -> tuple[SharedState, Any]:
    reactor, telemetry = MemoryReactorClock(), Told()
    settings = load_settings({"JWT_JWKS_URL": "http://127.0.0.1:9/keys", "SSE_HISTORY_SECONDS": "3600"})
    return make_state(settings, reactor, telemetry, telemetry), reactor  # type: ignore[arg-type]


def test_a_history_and_its_memory_of_repeats() -> None:
    state, reactor = embedded()
    said = parse_alert("t", b"{}")
    assert [its.fresh for its in ask(state.events.append([said, said]))] == [True, False]
    reactor.advance(SEEN_S)
    assert [its.fresh for its in ask(state.events.append([said]))] == [True]

    reactor.advance(3600 - SEEN_S)
    assert len(ask(state.events.read("t", START, count=9, max_bytes=999)).events) == 1


def test_a_lease_of_a_notification() -> None:
    state, reactor = embedded()
    ask(state.events.append([parse_alert("t", b'{"channels":["email"]}')]))
    assert len(ask(state.outbox.take(1, lease_s=15)).taken) == 1
    assert ask(state.outbox.take(1, lease_s=15)).next_s == 15

    reactor.advance(15)
    assert len(ask(state.outbox.take(1, lease_s=15)).taken) == 1


def test_a_record_such_as_a_ticket() -> None:
    state, reactor = embedded()
    ask(state.records.put("ticket:x", b"sealed", ttl_s=30))
    reactor.advance(29.9)
    assert ask(state.records.get("ticket:x")) == b"sealed"

    reactor.advance(0.1)
    assert ask(state.records.get("ticket:x")) is None
