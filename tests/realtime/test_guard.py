"""Who may hold a stream or a socket open, and until when: time by hand, the shared state in memory."""

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from bakerygw.core.claims import Claims, TenantAccess
from bakerygw.core.hierarchy import with_child
from bakerygw.core.key_terms import KeyTerms
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.tenancy import DAY_S, ReadOnly
from bakerygw.ports import Changed
from bakerygw.realtime.held import HeldKind
from tests.realtime.guard_fakes import BORN, USER, Reader, Stage, grant_of

ENTRY = TenantAccess(
    tenant_id="t-parent", role="admin", tier=None, status=None, valid_until=None, include_children=True
)
HEIR = with_child(replace(USER, tenant_access=(ENTRY,)), "t-child", ENTRY)


def refusal(stage: Stage, user: int = 1, *, kind: HeldKind = "stream", demo: bool = False) -> Problem:
    with pytest.raises(Refused) as caught:
        stage.guard.enter(kind, grant_of(stage.someone(user, is_demo=demo)))
    return caught.value.problem


class TestBounds:
    def test_one_user_may_have_so_many_of_each_kind(self) -> None:
        stage = Stage(per_user=2)
        first = stage.open()
        stage.open()

        problem = refusal(stage)
        assert (problem.code, problem.status) == ("too-many-streams", 429)
        assert problem.members == {"scope": "user", "limit": 2}
        assert problem.retry_after_s is not None
        stage.open(kind="socket")
        stage.open(stage.someone(2))
        first.place.leave()
        first.place.leave()
        stage.open()
        assert refusal(stage).code == "too-many-streams"

    def test_one_tenant_may_have_so_many_and_its_demo_sessions_as_many_besides(self) -> None:
        stage = Stage(per_tenant=2)
        stage.open(stage.someone(1))
        stage.open(stage.someone(2))

        assert refusal(stage, 3).members == {"scope": "tenant", "limit": 2}
        stage.open(stage.someone(4, is_demo=True))
        stage.open(stage.someone(5, is_demo=True))
        assert refusal(stage, 6, demo=True).members["scope"] == "tenant"

    def test_an_instance_holds_so_many_of_each_kind(self) -> None:
        stage = Stage(in_all=2)
        readers = [stage.open(stage.someone(number)) for number in range(2)]

        problem = refusal(stage, 3)

        assert (problem.code, problem.status) == ("service-unavailable", 503)
        stage.open(stage.someone(3), kind="socket")
        readers[0].place.leave()
        stage.open(stage.someone(3))

    def test_new_ones_come_at_a_set_rate_and_the_others_are_sent_away_for_some_time_each(self) -> None:
        stage = Stage(new_per_second=100)
        for number in range(100):
            stage.open(stage.someone(number), f"t-{number % 4}")

        refusals = [refusal(stage, 1000 + number) for number in range(50)]

        assert {problem.code for problem in refusals} == {"service-unavailable"}
        waits = {problem.retry_after_s for problem in refusals}
        assert waits == set(range(2, 11))
        stage.clock.advance(0.1)
        for number in range(10):
            stage.open(stage.someone(2000 + number), f"t-{number % 4}")
        assert refusal(stage, 3000).code == "service-unavailable"

    def test_one_tenant_takes_no_more_than_half_of_the_new_ones_however_often_it_comes_and_goes(self) -> None:
        stage = Stage(new_per_second=100)
        let_in = 0
        for _ in range(10):
            with suppress(Refused):
                while True:
                    stage.open(stage.someone(1)).place.leave()
                    let_in += 1
            assert "of this tenant" in str(refusal(stage, 2).detail)
            for number in range(5):
                stage.open(stage.someone(number), "t-other")
            stage.clock.advance(0.1)

        assert 95 <= let_in <= 100  # 50 at once, and 50 in a second

    def test_the_haste_of_tenants_that_come_no_more_is_forgotten(self) -> None:
        stage = Stage(new_per_second=100)
        for number in range(1000):
            stage.open(stage.someone(number), f"t-{number}").place.leave()
            stage.clock.advance(0.02)

        assert stage.quotas.remembered("stream") <= 3

    def test_who_is_refused_takes_nobodys_place(self) -> None:
        stage = Stage(per_user=1, new_per_second=4)
        stage.open()
        for _ in range(10):
            assert refusal(stage).code == "too-many-streams"

        stage.open(stage.someone(2))


class TestEndOfTheToken:
    def test_it_ends_at_exp_and_says_so_a_minute_before(self) -> None:
        stage = Stage()
        reader = stage.open()
        stage.clock.advance(839.9)
        assert reader.expiries == []

        stage.clock.advance(0.2)
        assert reader.expiries == [pytest.approx(60, abs=0.2)]
        stage.advance(59.8)
        assert reader.ended is None
        stage.advance(0.1)

        assert reader.ended == "token-expired"
        assert len(reader.expiries) == 1

    def test_who_comes_with_less_is_told_at_once(self) -> None:
        stage = Stage()
        reader = stage.open(replace(USER, exp=BORN + 10))

        assert reader.expiries == [pytest.approx(10)]

    def test_the_leeway_of_a_token_lets_nobody_in(self) -> None:
        stage = Stage()
        with pytest.raises(Refused) as caught:
            stage.guard.enter("stream", grant_of(replace(USER, exp=BORN - 1)))

        assert caught.value.problem.code == "token-expired"
        assert stage.quotas.count("stream") == 0

    def test_a_wall_clock_that_is_set_forward_ends_it_within_half_a_minute(self) -> None:
        stage = Stage()
        reader = stage.open()
        stage.skew_s = 3600

        stage.advance(30)

        assert reader.ended == "token-expired"

    def test_a_wall_clock_that_is_set_back_lets_it_live_until_exp_comes(self) -> None:
        stage = Stage()
        reader = stage.open()
        stage.clock.advance(800)
        stage.skew_s = -3600

        stage.clock.advance(200)
        assert reader.ended is None
        stage.skew_s = 0
        stage.advance(30.1)

        assert reader.ended == "token-expired"

    def test_a_token_for_ever_needs_no_timer_that_no_clock_can_hold(self) -> None:
        stage = Stage()
        reader = stage.open(replace(USER, exp=253_402_300_799.0))
        stage.advance(100, step_s=1)

        assert reader.ended is None

    def test_many_need_no_more_timers_than_one(self) -> None:
        stage = Stage()
        stage.open(stage.someone(0))
        timers = len(stage.clock.getDelayedCalls())
        for number in range(1, 500):
            stage.open(stage.someone(number))

        assert len(stage.clock.getDelayedCalls()) == timers

    def test_thousands_that_end_together_do_so_in_many_turns(self) -> None:
        stage = Stage()
        readers = [stage.open(stage.someone(number)) for number in range(1000)]
        stage.clock.advance(850)
        ended: list[int] = []

        def first_ends(_: object) -> None:
            readers[0].place.leave()
            stage.clock.callLater(0, lambda: ended.append(sum(reader.ended is not None for reader in readers)))

        readers[0].end = first_ends  # type: ignore[method-assign]
        stage.clock.advance(51)

        assert ended == [99]
        assert all(reader.ended == "token-expired" for reader in readers[1:])

    def test_those_who_come_and_go_leave_nothing_behind(self) -> None:
        stage = Stage()
        for number in range(3000):
            stage.open(stage.someone(number, exp=BORN + 1e9)).place.leave()

        assert len(stage.guard._deadlines) < 500
        assert stage.guard._by_tenant == stage.guard._by_digest == {}
        assert stage.guard.of("t-own") == {"stream": 0, "socket": 0}
        stage.advance(60, step_s=1)
        assert len(stage.clock.getDelayedCalls()) <= 1

    def test_who_has_left_holds_nothing_any_more(self) -> None:
        stage = Stage()
        place = stage.guard.enter("stream", grant_of())
        place.leave()
        reader = Reader(place)
        place.hold(reader)
        stage.guard.drain(0, lambda: None)

        assert stage.clock.getDelayedCalls() == []
        assert reader.ended is None


class TestChanges:
    @ensureDeferred
    async def test_a_revoked_credential_ends_what_it_has_opened(self) -> None:
        stage = Stage()
        reader, other = stage.open(), stage.open(stage.someone(2))

        await stage.state.store.revoke("digest-1", BORN + 900)
        stage.clock.advance(0)

        assert (reader.ended, other.ended) == ("token-revoked", None)

    @ensureDeferred
    async def test_a_changed_subscription_is_told_and_ends_what_older_tokens_have_opened(self) -> None:
        stage = Stage()
        older, newer = stage.open(), stage.open(stage.someone(2, iat=BORN + 50))

        await stage.state.store.subscription_changed("t-own", BORN + 10)
        stage.clock.advance(0)

        assert (older.ended, newer.ended) == ("token-stale", None)
        assert [len(reader.states) for reader in (older, newer)] == [1, 1]
        assert newer.states[0].changed_at == BORN + 10

    @ensureDeferred
    async def test_so_does_that_of_the_tokens_own_tenant_without_a_word_to_another(self) -> None:
        stage = Stage()
        reader = stage.open(USER, "t-other")

        await stage.state.store.subscription_changed("t-own", BORN + 10)
        stage.clock.advance(0)

        assert reader.ended == "token-stale"
        assert reader.states == []

    @ensureDeferred
    async def test_a_tenant_that_becomes_demo_is_closed_to_ordinary_tokens(self) -> None:
        stage = Stage()
        reader, demo = stage.open(), stage.open(stage.someone(2, is_demo=True))

        await stage.state.store.set_demo("t-own", True)
        stage.clock.advance(0)

        assert (reader.ended, demo.ended) == ("forbidden", None)

    @ensureDeferred
    async def test_a_hold_that_is_set_and_lifted_is_told_once_each(self) -> None:
        stage = Stage()
        reader, other = stage.open(), stage.open(stage.someone(2), "t-other")

        await stage.state.store.set_read_only("t-own", ReadOnly(reason="stock-taking"))
        stage.advance(120, step_s=1)
        await stage.state.store.clear_read_only("t-own")
        stage.advance(120, step_s=1)

        held, lifted = reader.states
        assert held.read_only is not None
        assert held.read_only.reason == "stock-taking"
        assert lifted.read_only is None
        assert other.states == []
        assert reader.ended is None

    @ensureDeferred
    async def test_who_opens_while_on_hold_is_told_at_once(self) -> None:
        stage = Stage()
        await stage.state.store.set_read_only("t-own", ReadOnly())

        assert len(stage.open().states) == 1

    @ensureDeferred
    async def test_who_comes_back_after_the_hold_is_told_once_that_it_is_over(self) -> None:
        stage = Stage()
        fresh, returned = stage.open(), stage.open(stage.someone(2), returning=True)
        stage.advance(120, step_s=1)

        assert fresh.states == []
        (state,) = returned.states
        assert state.read_only is None

    @ensureDeferred
    async def test_what_was_revoked_between_admission_and_hold_ends(self) -> None:
        stage = Stage()
        place = stage.guard.enter("stream", grant_of())
        await stage.state.store.revoke("digest-1", BORN + 900)
        stage.clock.advance(1)
        reader = Reader(place)
        place.hold(reader)
        assert reader.ended is None
        stage.clock.advance(0)

        assert reader.ended == "token-revoked"

    @ensureDeferred
    async def test_only_those_concerned_are_asked_for_in_one_batch(self) -> None:
        stage = Stage()
        for number in range(5):
            stage.open(stage.someone(number))
        stage.open(stage.someone(9), "t-far")
        stage.state.asked.clear()

        await stage.state.store.revoke("digest-3", BORN + 900)
        await stage.state.store.revoke("digest-4", BORN + 900)
        stage.clock.advance(0)

        assert [ask.digests for ask in stage.state.asked if ask.digests] == [("digest-3", "digest-4")]
        assert all(ask.verified and not ask.buckets for ask in stage.state.asked)

    @ensureDeferred
    async def test_nothing_ends_while_the_shared_state_is_away(self) -> None:
        stage = Stage()
        await stage.state.hierarchy.set_parent("t-child", "t-parent")
        reader, heir = stage.open(), stage.open(replace(HEIR, digest="digest-2"), "t-child")
        stage.trusted, stage.state.away = False, True
        stage.state.told(None)

        stage.advance(120, step_s=0.25)
        assert (reader.ended, heir.ended) == (None, None)
        assert reader.states == []
        await stage.state.store.revoke("digest-1", BORN + 900)
        stage.state.away = False
        stage.advance(5, step_s=0.25)

        assert reader.ended == "token-revoked"

    @pytest.mark.parametrize(("trusted", "within_s"), [(True, 60), (False, 5)])
    @ensureDeferred
    async def test_a_change_that_is_not_told_is_found_by_looking(self, trusted: bool, within_s: float) -> None:
        stage = Stage()
        stage.trusted, stage.state.silent = trusted, True
        readers = [stage.open(stage.someone(number)) for number in range(50)]
        for number in range(50):
            await stage.state.store.revoke(f"digest-{number}", BORN + 900)
        assert all(reader.ended is None for reader in readers)

        stage.advance(within_s, step_s=0.25)

        assert [reader.ended for reader in readers] == ["token-revoked"] * 50

    @ensureDeferred
    async def test_what_may_have_been_missed_is_looked_for_soon(self) -> None:
        stage = Stage()
        stage.state.silent = True
        reader = stage.open()
        await stage.state.store.revoke("digest-1", BORN + 900)
        stage.state.told(None)

        stage.advance(5, step_s=0.25)

        assert reader.ended == "token-revoked"

    def test_a_round_is_spread_evenly(self) -> None:
        stage = Stage()
        for number in range(1000):
            stage.open(stage.someone(number))
        stage.state.asked.clear()

        stage.advance(50, step_s=1)

        sizes = [len(ask.digests) for ask in stage.state.asked if ask.digests]
        assert sum(sizes) >= 1000
        assert max(sizes) <= 30

    @ensureDeferred
    async def test_one_that_fails_does_not_keep_others_open(self, logged_failures: list[Any]) -> None:
        stage = Stage()
        reader, other = stage.open(), stage.open(stage.someone(2))

        def broken(_: object) -> None:
            raise ValueError("broken")

        reader.tenant_state = broken  # type: ignore[method-assign]
        await stage.state.store.set_read_only("t-own", ReadOnly())
        await stage.state.store.revoke("digest-2", BORN + 900)
        stage.clock.advance(0)
        await stage.state.store.revoke("digest-1", BORN + 900)
        stage.clock.advance(0)

        assert (reader.ended, other.ended) == ("token-revoked", "token-revoked")
        assert [failure.getErrorMessage() for failure in logged_failures] == ["broken"]
        logged_failures.clear()


class TestSubscriptions:
    KEY = replace(
        USER,
        iat=253_402_300_799.0,
        exp=253_402_300_799.0,
        key=KeyTerms(key_id="k", paths=None, methods=None, networks=None, limit=None),
    )

    @pytest.mark.parametrize("claims", [replace(USER, exp=BORN + 1e6), KEY], ids=["token", "key"])
    def test_it_ends_with_the_grace_of_the_subscription_that_it_was_opened_under(self, claims: Claims) -> None:
        stage = Stage()
        reader = stage.open(claims, valid_until=BORN + 100 - 7 * DAY_S)
        stage.advance(99)
        assert reader.ended is None

        stage.advance(1.1)

        assert reader.ended == "token-stale"
        assert reader.expiries == []

    def test_where_a_route_asks_for_none_it_stays(self) -> None:
        stage = Stage()
        reader = stage.open(valid_until=BORN - 8 * DAY_S)
        stage.advance(100)

        assert reader.ended is None

    def test_the_end_of_the_token_comes_first_where_it_is_earlier(self) -> None:
        stage = Stage()
        reader = stage.open(replace(USER, exp=BORN + 90), valid_until=BORN + 100 - 7 * DAY_S)

        stage.advance(101)

        assert (reader.ended, len(reader.expiries)) == ("token-expired", 1)

    @ensureDeferred
    async def test_an_api_key_has_to_come_again_when_the_subscription_has_changed_since_it_came(self) -> None:
        stage = Stage()
        await stage.state.store.subscription_changed("t-own", BORN - 5)
        reader = stage.open(self.KEY)
        stage.advance(5)
        assert reader.ended is None

        await stage.state.store.subscription_changed("t-own", BORN + 5)
        stage.clock.advance(0)

        assert reader.ended == "token-stale"


class TestSigningKeys:
    def test_a_key_that_is_taken_away_ends_what_its_tokens_have_opened_and_nothing_else(self) -> None:
        stage = Stage()
        stage.signers = {b"old", b"new"}
        old = stage.open(stage.someone(1, signer=b"old"))
        abroad = stage.open(stage.someone(2, signer=b"old"), "t-other", kind="socket")
        others = [stage.open(stage.someone(3, signer=b"new")), stage.open(stage.someone(4))]

        stage.signers = {b"new"}
        stage.guard.keys_changed()

        assert [old.ended, abroad.ended] == ["token-invalid"] * 2
        stage.advance(120, step_s=1)
        assert [reader.ended for reader in others] == [None] * 2

    def test_while_nobody_knows_the_keys_nothing_ends_and_nobody_is_refused(self) -> None:
        stage = Stage()
        stage.signers = {b"old"}
        reader = stage.open(stage.someone(1, signer=b"old"))
        stage.signers = None
        stage.guard.keys_changed()

        assert reader.ended is None
        assert stage.open(stage.someone(2, signer=b"old")).ended is None

    def test_a_token_that_was_checked_before_its_key_was_taken_away_opens_nothing(self) -> None:
        stage = Stage()
        stage.signers = {b"new"}
        with pytest.raises(Refused) as caught:
            stage.guard.enter("stream", grant_of(stage.someone(1, signer=b"old")))

        assert (caught.value.problem.code, caught.value.problem.reason) == ("token-invalid", "key-withdrawn")
        assert stage.quotas.count("stream") == 0

    def test_what_was_let_in_and_is_held_later_ends_as_soon_as_it_is(self) -> None:
        stage = Stage()
        stage.signers = {b"old"}
        place = stage.guard.enter("stream", grant_of(stage.someone(1, signer=b"old")))
        stage.signers = {b"new"}
        stage.guard.keys_changed()
        reader = Reader(place)
        place.hold(reader)
        stage.clock.advance(0)

        assert reader.ended == "token-invalid"

    def test_thousands_that_one_key_has_opened_end_in_many_turns(self) -> None:
        stage = Stage()
        stage.signers = {b"old"}
        readers = [stage.open(stage.someone(number, signer=b"old")) for number in range(250)]
        stage.signers = {b"new"}
        stage.guard.keys_changed()

        assert sum(reader.ended is not None for reader in readers) == 100
        stage.clock.advance(0)
        assert all(reader.ended == "token-invalid" for reader in readers)


class TestInheritedAccess:
    @pytest.mark.parametrize("told", [True, False])
    @ensureDeferred
    async def test_it_ends_with_what_it_came_from(self, told: bool) -> None:
        stage = Stage()
        await stage.state.hierarchy.set_parent("t-child", "t-middle")
        await stage.state.hierarchy.set_parent("t-middle", "t-parent")
        heir, own = stage.open(HEIR, "t-child"), stage.open(stage.someone(2))
        stage.advance(120, step_s=1)
        assert heir.ended is None

        await stage.state.hierarchy.set_parent("t-middle", None)
        if told:
            stage.state.told(Changed(parents=("t-middle",)))
        stage.advance(0.05 if told else 60, step_s=0.05 if told else 1)

        assert (heir.ended, own.ended) == ("forbidden", None)


class TestOperators:
    def test_cut_ends_all_of_a_tenant_and_nothing_else(self) -> None:
        stage = Stage()
        mine = [stage.open(stage.someone(1)), stage.open(stage.someone(2, is_demo=True), kind="socket")]
        abroad = stage.open(stage.someone(3), "t-other")
        assert stage.guard.of("t-own") == {"stream": 1, "socket": 1}

        assert stage.guard.cut("t-own") == 2

        assert [reader.ended for reader in mine] == ["disconnected"] * 2
        assert abroad.ended is None
        assert stage.guard.of("t-other") == {"stream": 1, "socket": 0}
        assert stage.guard.cut("t-own") == 0

    def test_what_is_cut_before_anybody_holds_it_ends_as_soon_as_somebody_does(self) -> None:
        stage = Stage()
        place = stage.guard.enter("socket", grant_of())
        assert stage.guard.cut("t-own") == 1
        reader = Reader(place)

        place.hold(reader)
        assert reader.ended is None
        stage.clock.advance(0)

        assert reader.ended == "disconnected"

    def test_who_lingers_counts_and_is_told_once(self) -> None:
        stage = Stage(per_user=1)
        reader = stage.open(replace(USER, exp=BORN + 9000), lingers=True)

        assert [stage.guard.cut("t-own"), stage.guard.cut("t-own")] == [1, 0]
        stage.advance(1000, step_s=1)

        with pytest.raises(Refused):
            stage.guard.enter("stream", grant_of(replace(USER, exp=BORN + 9000)))
        reader.place.leave()
        stage.guard.enter("stream", grant_of(replace(USER, exp=BORN + 9000)))


class TestRounds:
    @ensureDeferred
    async def test_they_go_on_for_who_comes_after_a_time_without_anybody(self) -> None:
        stage = Stage()
        stage.open().place.leave()
        stage.advance(120, step_s=1)
        reader = stage.open(stage.someone(2))
        stage.state.silent = True
        await stage.state.store.revoke("digest-2", BORN + 900)
        stage.advance(60, step_s=1)

        assert reader.ended == "token-revoked"

    def test_they_are_short_once_where_something_may_have_been_missed(self) -> None:
        stage = Stage()
        for number in range(50):
            stage.open(stage.someone(number))
        asks = []
        for told in (False, True):
            if told:
                stage.state.told(None)
                stage.advance(10)
            stage.state.asked.clear()
            stage.advance(20)
            asks.append(len(stage.state.asked))

        assert asks[1] <= asks[0] + 2


class TestDrain:
    def test_all_are_told_spread_over_the_window_and_nobody_comes_in(self) -> None:
        stage = Stage()
        stage.clock.advance(100)
        readers = [stage.open(stage.someone(number), lingers=True) for number in range(100)]
        done: list[float] = []
        stage.guard.drain(10, lambda: done.append(stage.clock.seconds()))

        told = []
        for _ in range(11):
            told.append(sum(reader.ended == "draining" for reader in readers))
            stage.advance(1)

        assert told[0] < 5
        assert all(5 <= later - before <= 25 for before, later in pairwise(told[:9]))
        assert told[-1] == 100
        assert len(done) == 1
        problem = refusal(stage, 999)
        assert (problem.code, problem.reason) == ("service-unavailable", "draining")

    def test_the_order_is_chance(self) -> None:
        stage = Stage()
        readers = [stage.open(stage.someone(number)) for number in range(100)]
        stage.guard.drain(10, lambda: None)
        stage.advance(3)

        told = [number for number, reader in enumerate(readers) if reader.ended]

        assert told != list(range(len(told)))
        assert told != list(range(100 - len(told), 100))

    def test_a_few_need_not_wait_for_the_whole_window(self) -> None:
        stage = Stage()
        stage.open()
        done: list[None] = []
        stage.guard.drain(24, lambda: done.append(None))
        stage.advance(0.6)

        assert done == [None]

    def test_a_second_drain_without_a_window_tells_the_rest_at_once(self) -> None:
        stage = Stage()
        readers = [stage.open(stage.someone(number)) for number in range(50)]
        done: list[str] = []
        stage.guard.drain(20, lambda: done.append("first"))
        stage.guard.drain(0, lambda: done.append("second"))

        assert [reader.ended for reader in readers] == ["draining"] * 50
        assert done == ["first", "second"]
        stage.advance(60, step_s=1)
        assert len(done) == 2

    def test_with_nobody_it_is_done_at_once(self) -> None:
        done: list[None] = []
        Stage().guard.drain(20, lambda: done.append(None))

        assert done == [None]
