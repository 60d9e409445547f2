"""Coroutines without Deferreds: what they return, raise and have cancelled is as under `Deferred.fromCoroutine`."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from twisted.internet.defer import AlreadyCalledError, CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from bakerygw.runtime.task import Pending, Task
from tests.collector import goes_by_itself

Waiting = Pending[str] | Deferred[str]


class Diary:
    """What a coroutine that awaits one thing after the other has seen."""

    def __init__(self, *awaited: Waiting) -> None:
        self.awaited, self.seen = awaited, list[object]()
        self.failures: list[Failure] = []

    async def keep(self) -> None:
        for each in self.awaited:
            try:
                self.seen.append(await each)
            except Exception as error:
                self.seen.append(error)

    def begin(self) -> Task:
        return Task(self.keep(), self.failures.append)


kinds = pytest.mark.parametrize("kind", [Pending, Deferred])


@kinds
def test_a_coroutine_goes_on_with_the_result(kind: Callable[[], Waiting]) -> None:
    first, second = kind(), kind()
    diary = Diary(first, second)
    task = diary.begin()
    assert not task.done
    first.callback("one")
    assert (diary.seen, task.done) == (["one"], False)
    second.callback("two")
    assert (diary.seen, task.done) == (["one", "two"], True)


@kinds
def test_a_failure_is_raised_where_it_was_awaited(kind: Callable[[], Waiting]) -> None:
    waiting, error = kind(), ValueError("lost")
    diary = Diary(waiting)
    task = diary.begin()
    waiting.errback(Failure(error))
    assert (diary.seen, diary.failures, task.done) == ([error], [], True)


def test_an_exception_is_as_good_as_a_failure() -> None:
    waiting, error = Pending[str](), ValueError("lost")
    diary = Diary(waiting)
    diary.begin()
    waiting.errback(error)
    assert diary.seen == [error]


@kinds
def test_what_is_there_already_is_not_waited_for(kind: Callable[[], Waiting]) -> None:
    waiting = kind()
    waiting.callback("there")
    diary = Diary(waiting, succeed("too"))
    assert diary.begin().done
    assert diary.seen == ["there", "too"]


def test_a_deferred_that_waits_for_another_is_waited_for() -> None:
    outer, inner = Deferred[str](), Deferred[str]()
    outer.addCallback(lambda _: inner)
    diary = Diary(outer)
    diary.begin()
    outer.callback("outer")
    assert diary.seen == []
    inner.callback("inner")
    assert diary.seen == ["inner"]


@kinds
def test_cancelling_tells_whoever_works_and_raises_in_the_coroutine(kind: Callable[..., Waiting]) -> None:
    told: list[object] = []
    waiting = kind(told.append)
    diary = Diary(waiting)
    task = diary.begin()
    task.cancel()
    assert told == [waiting]
    assert [type(each) for each in diary.seen] == [CancelledError]
    assert task.done


@kinds
def test_a_result_that_comes_after_cancelling_is_dropped(kind: Callable[[], Waiting]) -> None:
    waiting = kind()
    diary = Diary(waiting)
    diary.begin().cancel()
    waiting.callback("late")
    assert [type(each) for each in diary.seen] == [CancelledError]


@kinds
def test_a_second_result_is_a_mistake(kind: Callable[[], Waiting]) -> None:
    waiting = kind()
    Diary(waiting).begin()
    waiting.callback("one")
    with pytest.raises(AlreadyCalledError):
        waiting.callback("two")


def test_a_task_that_is_done_has_nothing_to_cancel() -> None:
    waiting = Pending[str]()
    diary = Diary(waiting)
    task = diary.begin()
    waiting.callback("one")
    task.cancel()
    assert diary.seen == ["one"]


@pytest.mark.parametrize("later", [False, True])
def test_what_the_coroutine_does_not_catch_is_told(later: bool) -> None:
    waiting, failures = Pending[str](), list[Failure]()

    async def fails() -> None:
        if later:
            await waiting
        raise ValueError("mine")

    task = Task(fails(), failures.append)
    if later:
        assert failures == []
        waiting.callback("go on")
    assert [str(failure.value) for failure in failures] == ["mine"]
    assert task.done


def as_deferred(coroutine: Coroutine[Deferred[Any], Any, str]) -> Deferred[str]:
    return Deferred.fromCoroutine(coroutine)


@pytest.mark.parametrize("how", ["result", "failure", "cancelled"])
def test_twisted_drives_what_awaits_a_pending_too(how: str) -> None:
    waiting = Pending[str]()

    async def wait() -> str:
        try:
            return await waiting
        except (ValueError, CancelledError) as error:
            return type(error).__name__

    result = as_deferred(wait())
    if how == "result":
        waiting.callback("there")
    elif how == "failure":
        waiting.errback(ValueError())
    else:
        result.cancel()
    seen: list[str] = []
    result.addCallback(seen.append)
    assert seen == [{"result": "there", "failure": "ValueError", "cancelled": "CancelledError"}[how]]


def test_what_failed_before_it_was_awaited_is_told_to_whoever_awaits_it_and_to_no_log() -> None:
    failed = Pending[str]()
    failed.errback(ValueError("early"))
    diary = Diary(failed)
    assert diary.begin().done
    assert [str(error) for error in diary.seen] == ["early"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_that_has_ended_lets_go_of_whoever_was_to_be_told(fails: bool) -> None:
    class Exchange:
        def __init__(self) -> None:
            self.told: list[Failure] = []
            self.task = Task(self.work(), self.tell)

        def tell(self, failure: Failure) -> None:
            self.told.append(failure)

        async def work(self) -> None:
            if fails:
                raise ValueError

    def ended() -> Exchange:
        exchange = Exchange()
        assert exchange.task.done
        assert len(exchange.told) == fails
        exchange.told.clear()
        return exchange

    assert goes_by_itself(ended)
