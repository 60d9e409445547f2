"""The order in which the gateway starts, reloads and stops: time by hand, ports in memory, parts that take notes."""

import errno
import gc
import os
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import structlog
from minting import Issuer
from OpenSSL import crypto
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from bakerygw import is_compiled
from bakerygw.config.routes import ConfigError
from bakerygw.config.settings import Settings, load_settings
from bakerygw.config.token_file import TOKEN_FILE
from bakerygw.lifecycle import FIRST_CONTACT_S, GatewayService, House
from bakerygw.telemetry.logs import LogWriter, configure_logging

PUBLIC_PEM = Issuer().public_pem


def settings_with(**values: str) -> Settings:
    defaults = {"JWT_PUBLIC_KEY": PUBLIC_PEM, "ADMIN_TOKEN": "secret", "HOST": "127.0.0.1"}
    return load_settings({**defaults, **{name.upper(): value for name, value in values.items()}})


class Reactor(MemoryReactorClock):  # type: ignore[misc]
    """Notes what is asked of it; a port in `taken` cannot be had."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.notes, self.taken, self.why = notes, set[int](), errno.EADDRINUSE
        self.after_shutdown: list[Callable[[], None]] = []

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        if port in self.taken:
            raise CannotListenError(interface, port, OSError(self.why, os.strerror(self.why)))
        self.notes.append(f"listen {port}")
        listening = super().listenTCP(port, factory, backlog, interface)
        listening.stopListening = lambda: self.notes.append(f"stop listening {port}")
        return listening

    def listenUNIX(self, address: str, *args: Any, **options: Any) -> IListeningPort:
        if not Path(address).parent.is_dir():  # as the real one's lock file finds
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address)
        return super().listenUNIX(address, *args, **options)

    def addSystemEventTrigger(self, phase: str, event: str, act: Callable[[], None], *_: object) -> None:
        assert (phase, event) == ("after", "shutdown")
        self.after_shutdown.append(act)

    def stop(self) -> None:
        self.notes.append("stop reactor")

    def callFromThread(self, act: Callable[[], None]) -> None:
        self.callLater(0, act)


@dataclass
class Site:
    """A site with so many replies under way."""

    name: str
    notes: list[str]
    busy: int = 0

    def shutdown(self) -> None:
        self.notes.append(f"{self.name} finishes")

    def abort(self) -> None:
        self.notes.append(f"{self.name} aborts")


class Parts:
    """A `House` that only notes."""

    def __init__(self, notes: list[str], settings: Settings) -> None:
        self.notes, self.settings = notes, settings
        self.public_site, self.admin_site = Site("public", notes), Site("admin", notes)
        self.store_status = "embedded"
        self.contact: Deferred[None] = succeed(None)
        self.unfit: Exception | None = None
        self.busy = False
        self.storing = False
        """What it heard last is not stored yet."""
        self.windows: list[float] = []
        """How long streams were given to be told, each time."""

    def open(self) -> "Deferred[None]":
        self.notes.append("open")
        return self.contact

    def drain_streams(self, window_s: float) -> "Deferred[None]":
        self.windows.append(window_s)
        return succeed(None)

    def stop_hearing(self) -> "Deferred[None]":
        self.notes.append("stop hearing")
        self.busy = self.storing
        return succeed(None)

    def close_services(self) -> None:
        self.notes.append("close services")

    def close_state(self) -> "Deferred[None]":
        self.notes.append("close state")
        return succeed(None)

    def swap(self, settings: Settings) -> None:
        if self.unfit is not None:
            raise self.unfit
        self.settings = settings


class Life:
    """A gateway service with all that surrounds it."""

    def __init__(self, folder: Path, **values: str) -> None:
        self.notes: list[str] = []
        self.reactor = Reactor(self.notes)
        self.path = folder / "log"
        with self.path.open("wb") as file:
            self.writer = LogWriter(file.fileno(), Clock())
        self.logs = configure_logging(self.writer, level="INFO")
        self.next: Settings | Exception = settings_with(**values)
        self.parts = Parts(self.notes, self.next)
        self.tokens: list[str] = []
        self.service = GatewayService(
            self.next, self.reactor, self.logs, build=self._build, demo=None, read_settings=self._read
        )

    def _build(self, _: GatewayService, settings: Settings, token: str) -> House:
        self.tokens.append(token)
        return cast("House", self.parts)

    def _read(self) -> Settings:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def start(self) -> "Life":
        self.service.startService()
        for act, args, kwargs in self.reactor.whenRunningHooks:
            act(*args, **kwargs)
        return self

    def advance(self, seconds: float) -> None:
        self.reactor.pump([0.05] * round(seconds / 0.05))

    def said(self, event: str) -> list[dict[str, Any]]:
        self.writer.flush_now()
        lines = map(orjson.loads, self.path.read_bytes().splitlines())
        return [line for line in lines if line["event"] == event]

    def is_over(self) -> bool:
        return bool(self.said("gateway.stopped"))


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Makes lives; the process's signals, collector and logging are afterwards as before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    made: list[Life] = []

    def make(**values: str) -> Life:
        made.append(Life(tmp_path, **values))
        return made[-1]

    yield make
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    for each in made:
        each.writer.close()
    gc.unfreeze()
    structlog.reset_defaults()


Make = Callable[..., Life]


class TestStarting:
    def test_building_opens_nothing(self, life: Make) -> None:
        born = life()

        assert born.notes == []
        assert born.service.state == "starting"

    def test_background_then_admin_port_then_public_port(self, life: Make) -> None:
        born = life(port="8001", admin_port="9001").start()

        assert born.notes == ["open", "listen 9001", "listen 8001"]
        assert born.service.state == "running"
        started = born.said("gateway.started")[0]
        assert (started["redis"], started["compiled"]) == ("embedded", is_compiled())

    def test_a_silent_redis_delays_the_start_by_a_bounded_time(self, life: Make) -> None:
        born = life()
        born.parts.contact = Deferred()
        born.start()

        born.advance(FIRST_CONTACT_S - 0.1)
        assert (born.notes, born.service.state) == (["open"], "starting")
        born.advance(0.2)
        assert born.service.state == "running"
        born.parts.contact.callback(None)  # late, and no harm

    def test_a_busy_port_is_told_in_one_line_and_ends_everything(self, life: Make) -> None:
        born = life(port="8001", drain_grace_seconds="30")
        born.reactor.taken.add(8001)
        born.start()
        born.advance(0.2)

        (line,) = born.said("listen.failed")
        assert (line["address"], line["error"]) == ("127.0.0.1:8001", "[Errno 98] Address already in use")
        assert born.is_over()
        assert "stop reactor" in born.notes
        assert len(born.reactor.after_shutdown) == 1
        assert born.service.state == "draining"

    @pytest.mark.parametrize(
        ("why", "word"),
        [
            (errno.EADDRINUSE, "Another process"),
            (errno.EADDRNOTAVAIL, "no such address"),
            (errno.EACCES, "privileges"),
            (errno.ENOBUFS, "Look at"),
        ],
    )
    def test_and_its_help_goes_by_the_reason(self, life: Make, why: int, word: str) -> None:
        born = life(port="8001")
        born.reactor.taken.add(8001)
        born.reactor.why = why
        born.start()
        born.advance(6)

        (line,) = born.said("listen.failed")
        assert word in line["help"]
        assert "exception" not in line

    @pytest.mark.parametrize("kind", ["systemd", "unix"])
    def test_an_endpoint_that_cannot_be_had_is_told_without_a_stack(
        self, life: Make, tmp_path: Path, kind: str
    ) -> None:
        folder = tmp_path / "sockets"
        folder.mkdir()
        born = life(listen="systemd:domain=INET:index=7" if kind == "systemd" else f"unix:{folder}/s")
        folder.rmdir()
        born.start()
        born.advance(6)

        (line,) = born.said("listen.failed")
        assert line["address"].startswith(kind)
        assert line["help"]
        assert "exception" not in line

    def test_a_good_life_ends_with_no_failing_status(self, life: Make) -> None:
        born = life(drain_grace_seconds="0").start()
        born.service.drain()

        assert born.is_over()
        assert born.reactor.after_shutdown == []

    def test_a_stop_while_it_starts_opens_no_port(self, life: Make) -> None:
        born = life()
        born.parts.contact = Deferred()
        born.start()

        born.service.drain()
        born.advance(5)

        assert [note for note in born.notes if note.startswith("listen")] == []
        assert born.is_over()
        born.parts.contact.callback(None)


class TestAdminToken:
    def test_the_one_given_is_used_and_no_file_made(
        self, life: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

        assert life(admin_token="given-token").tokens == ["given-token"]
        assert not (tmp_path / TOKEN_FILE).exists()

    def test_one_is_made_for_this_user_alone_and_removed_at_the_end(
        self, life: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        file = tmp_path / TOKEN_FILE
        file.write_text("left by an earlier run")
        file.chmod(0o644)

        born = life(admin_token="", drain_grace_seconds="0")
        assert file.read_text() == "left by an earlier run"
        born.start()

        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
        assert [file.read_text().strip()] == born.tokens
        assert len(born.tokens[0]) >= 32
        assert born.said("gateway.started")[0]["admin_token_file"] == str(file)
        assert born.tokens[0] not in born.path.read_text()
        assert born.logs.redactor.text(f"seen {born.tokens[0]}") == "seen ***"
        born.service.drain()
        assert list(tmp_path.glob("*token*")) == []

    @pytest.mark.parametrize("taken", [8001, 9001])
    def test_a_start_without_ports_leaves_the_file_of_another_gateway_alone(
        self, life: Make, tmp_path: Path, *, monkeypatch: pytest.MonkeyPatch, taken: int
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        file = tmp_path / TOKEN_FILE
        file.write_text("of another gateway")

        born = life(admin_token="", port="8001", admin_port="9001")
        born.reactor.taken.add(taken)
        born.start()
        born.advance(2)

        assert born.is_over()
        assert file.read_text() == "of another gateway"

    def test_a_file_that_another_gateway_has_replaced_stays(
        self, life: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        born = life(admin_token="", drain_grace_seconds="0").start()
        (tmp_path / TOKEN_FILE).write_text("of another gateway")

        born.service.drain()

        assert born.is_over()
        assert (tmp_path / TOKEN_FILE).read_text() == "of another gateway"

    def test_a_folder_that_cannot_be_written_to_ends_the_start_in_one_line(
        self, life: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "runtime"
        folder.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        born = life(admin_token="")
        folder.rmdir()

        born.start()
        born.advance(2)

        (line,) = born.said("start.failed")
        assert str(folder) in line["error"]
        assert "exception" not in line
        assert len(born.reactor.after_shutdown) == 1


class TestStopping:
    def test_grace_then_no_more_clients_then_services_then_redis_and_operators_last(self, life: Make) -> None:
        born = life(port="8001", admin_port="9001", drain_grace_seconds="5").start()
        born.notes.clear()

        born.service.drain()
        assert born.service.state == "draining"
        born.advance(4.9)
        assert born.notes == ["stop reactor"]  # which waits for stopService
        born.advance(0.2)

        assert born.notes[1:] == [
            "stop listening 8001",
            "public finishes",
            "stop hearing",
            "close services",
            "close state",
            "stop listening 9001",
            "admin finishes",
        ]
        assert born.is_over()

    def test_requests_under_way_are_waited_for(self, life: Make) -> None:
        born = life(drain_grace_seconds="0", drain_timeout_seconds="30").start()
        born.parts.public_site.busy = 1
        born.service.drain()
        born.advance(10)
        assert "close services" not in born.notes

        born.parts.public_site.busy = 0
        born.advance(0.1)

        assert born.is_over()
        assert "public aborts" not in born.notes
        assert born.said("drain.cut") == []

    def test_and_cut_at_the_timeout(self, life: Make) -> None:
        born = life(drain_grace_seconds="0", drain_timeout_seconds="3").start()
        born.parts.public_site.busy = 2
        born.service.drain()
        born.advance(2.9)
        assert "public aborts" not in born.notes

        born.advance(0.2)

        assert "public aborts" in born.notes
        assert born.said("drain.cut")[0]["requests"] == 2
        assert born.is_over()

    def test_what_is_on_its_way_to_a_service_is_waited_for_within_the_same_time(self, life: Make) -> None:
        born = life(drain_grace_seconds="0", drain_timeout_seconds="3").start()
        born.parts.busy, born.parts.public_site.busy = True, 1
        born.service.drain()
        born.advance(2)
        born.parts.public_site.busy = 0
        born.advance(0.9)
        assert "close services" not in born.notes

        born.advance(0.2)

        assert born.is_over()

    def test_and_no_longer_than_it_takes(self, life: Make) -> None:
        born = life(drain_grace_seconds="0", drain_timeout_seconds="30").start()
        born.parts.busy = True
        born.service.drain()
        born.advance(1)
        assert not born.is_over()

        born.parts.busy = False
        born.advance(0.1)

        assert born.is_over()

    def test_what_was_heard_last_is_stored_within_the_same_time_once_nothing_more_is_heard(self, life: Make) -> None:
        born = life(drain_grace_seconds="0", drain_timeout_seconds="3").start()
        born.parts.busy = born.parts.storing = True
        born.service.drain()
        born.advance(2)
        assert "stop hearing" not in born.notes  # while alerts are sent on, others may still be heard
        born.parts.busy = False
        born.advance(0.1)
        assert "stop hearing" in born.notes
        born.advance(0.8)
        assert "close services" not in born.notes

        born.advance(0.2)

        assert born.is_over()

    def test_streams_are_told_over_a_part_of_the_time_once_nothing_is_accepted(self, life: Make) -> None:
        born = life(port="8001", drain_grace_seconds="5", drain_timeout_seconds="30").start()
        born.parts.public_site.busy = 1
        born.service.drain()
        born.advance(4.9)
        assert born.parts.windows == []

        born.advance(0.2)

        assert "stop listening 8001" in born.notes
        assert born.parts.windows == [24.0]

    def test_a_second_call_has_the_rest_of_them_told_at_once(self, life: Make) -> None:
        born = life(drain_grace_seconds="0", drain_timeout_seconds="30").start()
        born.parts.public_site.busy = 1
        born.service.drain()
        born.advance(1)

        born.service.drain()
        born.advance(0.06)
        assert born.parts.windows == [24.0, 0.0]
        assert "public aborts" not in born.notes  # what was written for them is being sent
        born.advance(0.1)

        assert "public aborts" in born.notes

    @pytest.mark.parametrize("busy", [0, 1])
    def test_a_second_call_does_not_wait(self, life: Make, busy: int) -> None:
        born = life(drain_grace_seconds="30", drain_timeout_seconds="30").start()
        born.parts.public_site.busy = busy
        born.service.drain()
        born.advance(1)
        assert not born.is_over()

        born.service.drain()
        born.advance(0.1)

        assert born.is_over()
        assert born.notes.count("stop reactor") == 1

    def test_twisted_is_told_when_it_is_over_however_often_it_asks(self, life: Make) -> None:
        born = life(drain_grace_seconds="1").start()
        told: list[str] = []
        born.service.stopService().addCallback(lambda _: told.append("first"))
        born.service.stopService().addCallback(lambda _: told.append("second"))
        assert told == []

        born.advance(1.1)

        assert told == ["first", "second"]
        assert born.notes.count("close services") == 1

    def test_the_signals_of_init_systems_are_obeyed(self, life: Make) -> None:
        born = life(drain_grace_seconds="30").start()

        signal.raise_signal(signal.SIGHUP)
        born.advance(0.05)
        assert len(born.said("reload.done")) == 1
        signal.raise_signal(signal.SIGTERM)
        born.advance(0.05)
        assert born.service.state == "draining"
        assert not born.is_over()
        signal.raise_signal(signal.SIGTERM)
        born.advance(0.1)
        assert born.is_over()

    def test_an_interrupt_has_no_grace(self, life: Make) -> None:
        born = life(drain_grace_seconds="30").start()

        signal.raise_signal(signal.SIGINT)
        born.advance(0.1)

        assert born.is_over()


class TestReloading:
    def test_what_changed_is_in_force(self, life: Make) -> None:
        born = life().start()
        born.next = settings_with(rate_limit_requests="7", port="8002", log_level="WARNING")

        born.service.reload()

        assert born.parts.settings.rate_limit_requests == 7
        assert born.logs.level == "WARNING"

    def test_a_secret_that_is_new_is_masked_from_there_on(self, life: Make) -> None:
        born = life(token_cache_secret="first-secret" * 3).start()
        born.next = settings_with(token_cache_secret="second-secret" * 3)

        born.service.reload()

        assert born.logs.redactor.text("second-secret" * 3) == "***"

    def test_what_waits_for_a_restart_is_told_apart(self, life: Make) -> None:
        born = life().start()
        born.next = settings_with(rate_limit_requests="7", port="8002", redis_host="redis")

        born.service.reload()

        (told,) = born.said("reload.done")
        assert (told["changed"], told["needs_restart"]) == (["rate_limit_requests"], ["port", "redis_host"])

    def test_what_waits_for_a_restart_is_told_each_time_and_not_shown_as_in_force(self, life: Make) -> None:
        born = life(sse_max_per_user="5").start()
        born.next = settings_with(sse_max_per_user="1", rate_limit_requests="7")

        born.service.reload()
        born.service.reload()

        told = [(line["changed"], line["needs_restart"]) for line in born.said("reload.done")]
        assert told == [(["rate_limit_requests"], ["sse_max_per_user"]), ([], ["sse_max_per_user"])]
        assert (born.parts.settings.sse_max_per_user, born.parts.settings.rate_limit_requests) == (5, 7)

    def test_what_is_as_it_was_at_the_start_again_waits_for_nothing(self, life: Make) -> None:
        born = life(sse_max_per_user="5").start()
        born.next = settings_with(sse_max_per_user="1")
        born.service.reload()
        born.next = settings_with(sse_max_per_user="5")

        born.service.reload()

        assert [line["needs_restart"] for line in born.said("reload.done")] == [["sse_max_per_user"], []]

    def test_the_drain_goes_by_the_settings_in_force(self, life: Make) -> None:
        born = life(drain_grace_seconds="30").start()
        born.next = settings_with(drain_grace_seconds="0")

        born.service.reload()
        born.service.drain()

        assert born.is_over()

    @pytest.mark.parametrize("fault", ["unreadable", "does not fit", "TLS"])
    def test_a_bad_configuration_changes_nothing_and_says_why(self, life: Make, fault: str) -> None:
        born = life().start()
        before = born.parts.settings
        if fault == "unreadable":
            born.next = ConfigError(["PORT: got 'x'", "LOG_LEVEL: got 'y'"])
        else:
            born.next = settings_with(rate_limit_requests="7", log_level="ERROR")
            born.parts.unfit = ValueError("no such key") if fault == "does not fit" else crypto.Error("no\nPEM")

        born.service.reload()

        expected = {
            "unreadable": ["PORT: got 'x'", "LOG_LEVEL: got 'y'"],
            "does not fit": ["ValueError: no such key"],
            "TLS": ["Error: no PEM"],
        }
        assert born.said("reload.failed")[0]["problems"] == expected[fault]
        assert born.parts.settings is before
        assert (born.logs.level, born.service.state) == ("INFO", "running")

    def test_there_is_no_reload_before_the_start_and_after_the_end_began(self, life: Make) -> None:
        born = life(drain_grace_seconds="5")
        born.next = settings_with(rate_limit_requests="7")
        born.service.reload()
        born.start()
        born.service.drain()
        born.service.reload()

        assert len(born.said("reload.refused")) == 2
        assert born.parts.settings.rate_limit_requests == 300
        born.advance(6)
