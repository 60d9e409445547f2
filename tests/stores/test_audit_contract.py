"""One contract for the audit trail in Redis and in files, and what is particular to each."""

import json
import os
import resource
import time
from contextlib import contextmanager

import pytest
import pytest_twisted
from redis import Redis
from store_fakes import RecordingTelemetry, link_to
from twisted.internet.task import Clock

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.audit_file import LOOK_S, SEGMENT_BYTES, SEGMENTS, SPARE_LINES, FileAudit
from bakerygw.stores.audit_stream import KEY_PREFIX, MAX_ENTRIES, PAGE, STREAMS, RedisAudit
from tests.deferreds import success_of

DAY_S = 86_400


class Signals:
    def __init__(self):
        self.sent, self.away = [], False

    async def send(self, kind, subject):
        if self.away:
            raise StoreUnavailable("away")
        self.sent.append((kind, subject))
        return 1


def files(folder, *, now=time.time, erased=lambda _: None, clock=None, days=365):
    return FileAudit(folder / "audit.jsonl", days=days, clock=clock or Clock(), erased=erased, now=now)


async def in_redis(server, signals=None, **about):
    link = link_to(server, RecordingTelemetry(), **about)
    await link.start()
    return RedisAudit(link, signals or Signals(), days=365), link


@pytest_twisted.async_yield_fixture(params=["file", "redis"])
async def store(request, tmp_path):
    if request.param == "file":
        yield files(tmp_path / "deep" / "below")
        return
    audit, link = await in_redis(request.getfixturevalue("redis_server"))
    yield audit
    await link.stop()


async def all_of(store, ledger="events"):
    return [entry async for entry in store.entries(ledger)]


@pytest_twisted.ensureDeferred
async def test_entries_are_kept_in_order_by_ledger(store):
    assert await all_of(store) == []
    assert await store.latest("events", 5) == []
    await store.append("events", [b"1", b'"two"'])
    await store.trim("events")
    await store.append("refusals", [b"other"])
    await store.append("events", [b"\xc3\xa9"])
    assert await all_of(store) == [b"1", b'"two"', b"\xc3\xa9"]
    assert await all_of(store, "refusals") == [b"other"]
    assert await store.latest("events", 2) == [b"\xc3\xa9", b'"two"']


@pytest_twisted.ensureDeferred
async def test_many_entries_are_read_whole(store):
    number = 2 * PAGE + 3
    await store.append("events", [b"%d" % index for index in range(number)])
    assert await all_of(store) == [b"%d" % index for index in range(number)]


@pytest_twisted.ensureDeferred
async def test_a_key_is_made_once_and_stays_until_it_is_erased(store):
    assert await store.keys({}) == {}
    assert await store.key("a") is None
    assert await store.keys({"a": b"\x00\xff\n1", "b": b"2"}) == {"a": b"\x00\xff\n1", "b": b"2"}
    assert await store.keys({"a": b"other", "c": b"3"}) == {"a": b"\x00\xff\n1", "c": b"3"}
    assert await store.key("a") == b"\x00\xff\n1"
    assert await store.erase("a")
    assert not await store.erase("a")
    assert await store.key("a") is None
    assert await store.keys({"a": b"new", "b": b"other"}) == {"a": b"new", "b": b"2"}


class TestRedis:
    @pytest_twisted.ensureDeferred
    async def test_what_is_too_old_goes_and_all_goes_in_the_end(self, redis_server):
        audit, link = await in_redis(redis_server)
        with Redis(port=redis_server.port) as redis:
            for days in (400, 366, 364):
                redis.xadd("bakerygw:audit", {"e": str(days)}, id=f"{int((time.time() - days * DAY_S) * 1000)}-1")
            await audit.append("events", [b"new"])
            await audit.trim("events")
            await audit.trim("refusals")
            assert await all_of(audit) == [b"364", b"new"]
            await audit.keys({"a": b"1"})
            assert 364 * DAY_S < redis.ttl("bakerygw:audit") <= 365 * DAY_S
            assert redis.ttl(KEY_PREFIX + "a") > redis.ttl("bakerygw:audit")
        await link.stop()

    @pytest_twisted.ensureDeferred
    async def test_however_much_is_too_old_goes_in_one_go(self, redis_server):
        audit, link = await in_redis(redis_server)
        with Redis(port=redis_server.port) as redis, redis.pipeline() as many:
            for number in range(2 * PAGE + 3):
                many.xadd("bakerygw:audit", {"e": "old"}, id=f"1-{number + 1}")
            many.execute()
        await audit.append("events", [b"new"])
        await audit.trim("events")
        assert await all_of(audit) == [b"new"]
        await link.stop()

    @pytest_twisted.ensureDeferred
    async def test_a_ledger_is_bounded(self, redis_server, monkeypatch):
        monkeypatch.setitem(MAX_ENTRIES, "events", 100)
        audit, link = await in_redis(redis_server)
        for _ in range(10):
            await audit.append("events", [b"x"] * 200)
        assert len(await all_of(audit)) < 400
        await link.stop()

    @pytest_twisted.ensureDeferred
    async def test_an_erasure_is_told_to_all_and_holds_if_that_fails(self, redis_server):
        signals = Signals()
        audit, link = await in_redis(redis_server, signals)
        await audit.keys({"a": b"1", "b": b"2"})
        assert await audit.erase("a")
        assert signals.sent == [("erased", "a")]
        signals.away = True
        assert await audit.erase("b")
        assert await audit.key("b") is None
        await link.stop()

    @pytest_twisted.ensureDeferred
    async def test_what_others_put_into_our_keys_is_left_out(self, redis_server):
        audit, link = await in_redis(redis_server)
        with Redis(port=redis_server.port) as redis:
            redis.sadd(KEY_PREFIX + "set", "x")
            redis.set(KEY_PREFIX + "empty", "")
            redis.xadd("bakerygw:audit", {"other": "x"})
            redis.xadd("bakerygw:audit", {"e": "x", "more": "y"})
            redis.set(STREAMS["refusals"], "no stream")
        await audit.append("events", [b"ours"])
        assert await audit.keys({"set": b"1", "empty": b"2", "good": b"3"}) == {"good": b"3"}
        assert await all_of(audit) == [b"ours"]
        assert await audit.latest("events", 9) == [b"ours"]
        with pytest.raises(StoreUnavailable):
            await audit.append("refusals", [b"x"])
        with pytest.raises(StoreUnavailable):
            await audit.key("set")
        await link.stop()

    @pytest_twisted.ensureDeferred
    async def test_without_redis_every_call_says_so(self, redis_server):
        audit, link = await in_redis(redis_server)
        await link.stop()
        for call in (audit.append("events", [b"x"]), audit.keys({"a": b"1"}), audit.erase("a"), all_of(audit)):
            with pytest.raises(StoreUnavailable):
                await call


def run(coroutine):
    from twisted.internet.defer import Deferred  # noqa: PLC0415

    return success_of(Deferred.fromCoroutine(coroutine))


@contextmanager
def full_beyond(max_bytes):
    """As on a full disk, a write to a file gets what fits into so many bytes of it, and the next one an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def entry(now, text=""):
    when = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(now))
    return json.dumps({"when": when, "text": text}).encode()


class TestFiles:
    def test_they_are_for_their_owner_alone(self, tmp_path):
        audit = files(tmp_path / "new")
        run(audit.append("events", [b"1"]))
        run(audit.keys({"a": b"1"}))
        run(audit.erase("a"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
        assert modes == {"audit.jsonl": 0o600, "audit.jsonl.keys": 0o600, "audit.jsonl.keys.lock": 0o600}
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700

    def test_another_process_that_erases_a_key_is_noticed(self, tmp_path):
        clock, erased = Clock(), []
        ours, other = files(tmp_path, clock=clock, erased=erased.append), files(tmp_path)
        ours.open()
        run(ours.keys({"a": b"1", "b": b"2"}))
        assert run(other.erase("a"))
        clock.advance(LOOK_S)
        assert erased == ["a"]
        assert run(ours.keys({"a": b"new", "b": b"new"})) == {"a": b"new", "b": b"2"}
        assert run(other.key("a")) == b"new"
        ours.close()
        assert clock.getDelayedCalls() == []

    def test_keys_live_on_when_the_process_does_not(self, tmp_path):
        run(files(tmp_path).keys({"a": b"1"}))
        assert run(files(tmp_path).keys({"a": b"2"})) == {"a": b"1"}

    def test_a_key_that_is_used_stays_and_one_that_is_not_goes(self, tmp_path):
        now = [1_700_000_000.0]
        for _ in range(40):
            run(files(tmp_path, now=lambda: now[0], days=30).keys({"used": b"1"}))
            now[0] += DAY_S
        audit = files(tmp_path, now=lambda: now[0], days=30)
        run(audit.keys({"idle": b"2"}))
        now[0] += 32 * DAY_S
        late = files(tmp_path, now=lambda: now[0], days=30)
        assert run(late.key("used")) is None
        assert run(late.key("idle")) is None
        assert run(audit.keys({"used": b"3"}))["used"] in (b"1", b"3")

    def test_the_file_of_keys_is_written_anew_before_it_grows_large(self, tmp_path):
        now = [1_700_000_000.0]
        audit = files(tmp_path, now=lambda: now[0])
        for _ in range(30):
            run(audit.keys({str(number): b"1" for number in range(100)}))
            now[0] += DAY_S
        lines = (tmp_path / "audit.jsonl.keys").read_bytes().count(b"\n")
        assert 100 <= lines <= 1300
        assert run(files(tmp_path, now=lambda: now[0]).keys({"7": b"2"})) == {"7": b"1"}

    def test_a_torn_or_foreign_line_spoils_no_other(self, tmp_path):
        audit = files(tmp_path)
        run(audit.keys({"a": b"1"}))
        with (tmp_path / "audit.jsonl.keys").open("ab") as file:
            file.write(b'garbage\n["x"]\n{}\n["b", "MQ=="')
        assert run(files(tmp_path).key("a")) == b"1"
        run(audit.append("events", [b"1"]))
        with (tmp_path / "audit.jsonl").open("ab") as file:
            file.write(b"torn")
        assert run(all_of(audit)) == [b"1"]

    def test_what_comes_after_a_torn_line_is_whole(self, tmp_path):
        for name in ("audit.jsonl", "audit.jsonl.keys"):
            (tmp_path / name).write_bytes(b'["a", "MQ')
        audit = files(tmp_path)
        run(audit.keys({"b": b"2"}))
        run(audit.append("events", [b"1"]))
        assert run(files(tmp_path).key("b")) == b"2"
        assert b"1" in run(all_of(audit))

    def test_a_large_file_begins_anew_and_the_oldest_goes(self, tmp_path):
        audit = files(tmp_path)
        big = SEGMENT_BYTES["refusals"] // 2 + 1
        for number in range(2 * (SEGMENTS + 3)):
            run(audit.append("refusals", [entry(time.time(), str(number)).ljust(big)]))
        kept = [json.loads(line)["text"] for line in run(all_of(audit, "refusals"))]
        assert kept == [str(number) for number in range(22)][-len(kept) :]
        assert len(kept) == 2 * (SEGMENTS + 1)
        run(audit.append("refusals", [b"last"]))
        assert run(audit.latest("refusals", 9)) == [b"last"]

    def test_what_is_too_old_goes(self, tmp_path):
        now = [time.time()]
        audit = files(tmp_path, now=lambda: now[0], days=8)
        for _ in range(4):
            run(audit.append("events", [entry(now[0])]))
            now[0] += DAY_S
        assert len(list(tmp_path.glob("audit.jsonl*"))) == 4
        now[0] += 9 * DAY_S
        run(audit.trim("events"))
        run(audit.trim("refusals"))
        assert list(tmp_path.glob("audit.jsonl*")) == []

    def test_where_nothing_can_be_written_every_call_says_so(self, tmp_path):
        (tmp_path / "file").write_text("")
        audit = files(tmp_path / "file")
        for call in (audit.append("events", [b"x"]), audit.keys({"a": b"1"}), audit.erase("a")):
            with pytest.raises(StoreUnavailable):
                run(call)

    def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_whole_lines_and_every_entry_once(self, tmp_path):
        audit = files(tmp_path)
        run(audit.append("events", [b"first"]))
        with full_beyond(len(b"first\nsecond\nthi")):
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=rf"{tmp_path}/audit\.jsonl: File too large"):
                    run(audit.append("events", [b"second", b"third"]))
                assert (tmp_path / "audit.jsonl").read_bytes() == b"first\n"
            assert run(audit.latest("events", 9)) == [b"first"]
        run(audit.append("events", [b"second", b"third"]))
        assert run(all_of(audit)) == [b"first", b"second", b"third"]

    def test_a_key_that_a_full_disk_did_not_take_is_not_used(self, tmp_path):
        audit = files(tmp_path)
        run(audit.keys({"a": b"1"}))
        with full_beyond((tmp_path / "audit.jsonl.keys").stat().st_size + 5):
            with pytest.raises(StoreUnavailable):
                run(audit.keys({"b": b"2"}))
            assert run(audit.keys({"a": b"3"})) == {"a": b"1"}
        assert run(audit.keys({"b": b"4"})) == {"b": b"4"}
        assert run(files(tmp_path).keys({"a": b"5", "b": b"5"})) == {"a": b"1", "b": b"4"}

    def test_an_erasure_for_which_there_is_no_room_changes_nothing_and_says_so(self, tmp_path):
        audit = files(tmp_path)
        run(audit.keys({"a": b"1", "b": b"2"}))
        with full_beyond(10), pytest.raises(StoreUnavailable):
            run(audit.erase("a"))
        assert run(audit.keys({"a": b"3"})) == {"a": b"1"}
        assert run(audit.erase("a"))
        assert run(audit.key("a")) is None

    def test_keys_are_had_also_where_their_file_cannot_be_written_anew(self, tmp_path):
        now = [1_700_000_000.0]
        audit = files(tmp_path, now=lambda: now[0])
        for _ in range(SPARE_LINES // 100 + 2):
            run(audit.keys({str(number): b"1" for number in range(100)}))
            now[0] += DAY_S
        (tmp_path / "audit.jsonl.keys.new").mkdir()
        for _ in range(4):
            now[0] += DAY_S
            assert len(run(audit.keys({str(number): b"2" for number in range(100)}))) == 100
        assert run(audit.keys({"new": b"3"})) == {"new": b"3"}

    def test_what_could_not_be_read_again_is_refused_without_a_look_into_it(self, tmp_path):
        os.mkfifo(tmp_path / "audit.jsonl")
        held = os.open(tmp_path / "audit.jsonl", os.O_RDWR)
        os.write(held, b"one\ntwo\n")  # so that a look would find something, and would not wait
        audit = files(tmp_path)
        for call in (audit.append("events", [b"x"]), audit.latest("events", 1), all_of(audit)):
            with pytest.raises(StoreUnavailable, match=r"audit\.jsonl: is not a regular file"):
                run(call)
        assert os.read(held, 99) == b"one\ntwo\n"
        os.close(held)

    def test_a_link_in_its_place_is_not_followed(self, tmp_path):
        (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailable):
            run(files(tmp_path).append("events", [b"x"]))
        assert not (tmp_path / "elsewhere").exists()


def test_who_erases_as_another_user_leaves_the_keys_to_their_owner(tmp_path):
    made = files(tmp_path)
    run(made.keys({"a": b"1" * 32, "b": b"2" * 32}))
    keys = tmp_path / "audit.jsonl.keys"
    owner = (12345, 12345) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(keys, *owner)
    assert run(files(tmp_path).erase("a"))
    assert (keys.stat().st_uid, keys.stat().st_gid) == owner
    assert run(made.keys({"b": b"3" * 32})) == {"b": b"2" * 32}
