"""The gateway as a Twisted service: the order in which it starts, reloads and stops."""

import atexit
import gc
import os
import re
import secrets
import signal
from collections.abc import Callable
from typing import Any, Final, Literal

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from bakerygw import __version__, is_compiled
from bakerygw.config.listening import ListenFailed, listen_on
from bakerygw.config.routes import ConfigError
from bakerygw.config.secrecy import secret_values
from bakerygw.config.settings import Settings
from bakerygw.config.token_file import TokenFile, token_folder
from bakerygw.demo.banner import banner, operators_token
from bakerygw.demo.services import DemoServices
from bakerygw.demo_settings import demo_settings
from bakerygw.edge.site import EdgeSite
from bakerygw.house import House
from bakerygw.telemetry.logs import LogSystem

FIRST_CONTACT_S: Final = 1.0
"""How long the start waits for Redis to answer for the first time; after that it serves without."""
POLL_S: Final = 0.05
GOODBYE_PART: Final = 0.8
"""Of the time to drain, over which streams are told; in the rest the last of them end."""
FAREWELL_S: Final = 0.05
"""How long streams may take to end where somebody is in a hurry."""
YOUNG_OBJECTS: Final = 10_000
"""How many more objects there are before the young ones are searched for cycles, which requests leave few of. With
Python's 700 that took a twentieth of the time under load."""

NEEDS_RESTART: Final = re.compile(
    "port|host|listen|admin_.*|structlog_pretty_print|log_anonymize|audit_.*|redis_.*|rate_limit_on_store_failure|"
    "max_connections.*|sse_.*|ws_.*|publish_token|demo"
)
"""Settings that SIGHUP does not put in force."""


class GatewayService(Service):
    """Starts, reloads, drains. `state` is what `/ready` tells."""

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        logs: LogSystem,
        *,
        build: "Callable[[GatewayService, Settings, str], House]",
        demo: DemoServices | None,
        read_settings: Callable[[], Settings],
    ) -> None:
        """Build what needs no running reactor; open nothing.

        `build(lifecycle, settings, admin_token)` makes the parts: here, or with `demo` once its services listen.
        `read_settings` is asked on SIGHUP.
        """
        self._settings, self._reactor, self._logs, self._read_settings = settings, reactor, logs, read_settings
        self._build_house = build
        self._log = logs.logger("bakerygw.lifecycle")
        self.state: Literal["starting", "running", "draining"] = "starting"
        self._demo = demo
        self._token_file: TokenFile | None = None
        self._house: House | None = None if self._demo else self._build(settings)
        self._ports: list[IListeningPort] = []
        self._admin_port: IListeningPort | None = None
        self._beginning: Deferred[None] | None = None
        self._ending: Deferred[None] | None = None
        self._hurry = False

    # what Twisted calls

    def setServiceParent(self, parent: Any) -> None:
        """Also make the gateway's log the application's."""
        super().setServiceParent(parent)
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._logs.observer)

    def startService(self) -> None:
        """Begin once the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._begin)

    def stopService(self) -> "Deferred[None]":
        """Drain, and fire when all is ended."""
        super().stopService()
        return self._end()

    # what operators do

    def drain(self) -> None:
        """Begin to stop; the process exits with 0 when nothing is left to do. A second call does not wait."""
        if self._ending is not None:
            self._hurry = True
            return
        self._end()
        self._reactor.stop()

    def reload(self) -> None:
        """Read the configuration again; a bad one is reported and the old one stays."""
        house = self._house
        if house is None or self._demo is not None or self.state != "running":
            self._log.warning("reload.refused", reason="the demo and a gateway that starts or stops do not reload")
            return
        before = house.settings
        try:
            read = self._read_settings()
            self._logs.redactor.learn(secret_values(read))
            settings, waiting = _in_force(read, before)
            house.swap(settings)
        except Exception as error:  # whatever a parser or TLS comes up with: what runs must go on
            self._log.error("reload.failed", problems=_problems(error))
            return
        if settings.log_level != before.log_level:
            self._logs.level = settings.log_level
        self._settings = settings
        fields = sorted(type(settings).model_fields)
        changed = [name for name in fields if getattr(settings, name) != getattr(before, name)]
        self._log.info("reload.done", changed=changed, needs_restart=waiting)

    # starting

    def _build(self, settings: Settings) -> House:
        if settings.admin_token is not None:
            token = settings.admin_token.get_secret_value()
        else:
            token = secrets.token_urlsafe(32)
            # The folder is taken as it is here: twistd changes the working directory later
            self._token_file = TokenFile(token_folder(os.environ), token)
        self._logs.redactor.learn([token])
        return self._build_house(self, settings, token)

    def _begin(self) -> None:
        for number, act in (
            (signal.SIGTERM, self.drain),
            (signal.SIGINT, self._interrupted),
            (signal.SIGHUP, self.reload),
        ):
            signal.signal(number, lambda *_, act=act: self._reactor.callFromThread(act))
        self._beginning = Deferred.fromCoroutine(self._start())
        self._beginning.addErrback(self._start_failed)

    def _interrupted(self) -> None:
        """Ctrl-C: somebody waits at the keyboard, so there is no grace for load balancers."""
        self._hurry = True
        self.drain()

    async def _start(self) -> None:
        if self._demo is not None:
            await self._demo.start()
            self._house = self._build(demo_settings(self._settings, self._demo))
        house = self._house
        assert house is not None  # noqa: S101  built above or in the constructor
        settings = house.settings
        if self._demo is not None:
            await house.seed(self._demo.flags)
        await self._at_most(FIRST_CONTACT_S, house.open())
        self._admin_port = await listen_on(
            self._reactor, settings.admin_listen, settings.admin_host, settings.admin_port, house.admin_site
        )
        self._ports.append(
            await listen_on(self._reactor, settings.listen, settings.host, settings.port, house.public_site)
        )
        if self._token_file is not None:
            self._token_file.write()  # not before both ports are ours: another gateway's file may be there
        # What is here stays: kept out of later collections, whose pauses it made up (p99 29 ms -> 12 ms under load)
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        self.state = "running"
        self._log.info(
            "gateway.started",
            version=__version__,
            compiled=is_compiled(),
            environment=settings.environment,
            public=_address(self._ports[0]),
            admin=_address(self._admin_port),
            admin_token_file=self._token_path,
            services=sorted(settings.services),
            redis=house.store_status,
        )
        if self._demo is not None:
            self._show(self._demo, house)

    def _start_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        error: Any = failure.value
        if isinstance(error, ListenFailed):
            self._log.error("listen.failed", address=error.address, error=error.error, help=error.remedy)
        elif isinstance(error, ConfigError | OSError):
            self._log.error("start.failed", error=str(error))
        else:
            self._log.error("start.failed", error=failure.getErrorMessage(), exc_info=error)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._exit_failed)
        self._hurry = True
        self.drain()

    def _exit_failed(self) -> None:
        """twistd knows no way to end with a status once the reactor ran; let it remove its pid file, then do."""
        self._logs.writer.flush_now()
        atexit.register(os._exit, 1)

    @property
    def _token_path(self) -> str | None:
        return str(self._token_file.path) if self._token_file is not None else None

    def _show(self, demo: DemoServices, house: House) -> None:
        """Say where all is, and let things happen."""
        admin_url = f"http://{_address(self._admin_port)}"
        demo.page.admin_url, demo.page.admin_token = admin_url, operators_token(self._token_path)
        text = banner(
            public_url=f"http://{_address(self._ports[0])}",
            admin_url=admin_url,
            admin_token_file=self._token_path,
            accounts=demo.accounts,
            tenants=demo.tenants,
            services={**demo.urls, "map": demo.geocoder_url},
        )
        self._logs.writer.write(text.encode())
        demo.publish_to(house.publish)

    # stopping

    def _end(self) -> "Deferred[None]":
        """The one drain of this process; each caller gets a Deferred of its own."""
        if self._ending is None:
            self.state = "draining"
            self._ending = Deferred.fromCoroutine(self._drain_and_stop())
            self._ending.addErrback(lambda failure: self._log.error("drain.failed", exc_info=failure.value))
        told: Deferred[None] = Deferred()
        self._ending.addBoth(lambda _: told.callback(None))
        return told

    async def _drain_and_stop(self) -> None:
        """Not ready; grace; accept no more; finish what runs; then everything else, the admin port last."""
        self._log.info("gateway.draining")
        if self._beginning is not None and not self._beginning.called:
            self._beginning.cancel()
        settings, house = self._settings, self._house
        if self._ports and self._demo is None:
            await self._wait(settings.drain_grace_seconds)
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if house is not None:
            await self._let_go(house, settings.drain_timeout_seconds)
            house.close_services()
            await house.close_state()
        if self._demo is not None:
            await self._demo.stop()
        if self._admin_port is not None and house is not None:
            await maybeDeferred(self._admin_port.stopListening)
            await self._finish(house.admin_site, 1.0)
        if self._token_file is not None:
            self._token_file.remove()
        self._log.info("gateway.stopped")
        self._logs.writer.flush_now()

    async def _let_go(self, house: House, timeout_s: float) -> None:
        """Let requests end, and say goodbye to streams meanwhile, spread over most of the time; then store the rest."""
        site = house.public_site
        deadline = self._reactor.seconds() + timeout_s
        self._say_goodbye(house, 0.0 if self._hurry else timeout_s * GOODBYE_PART)
        site.shutdown()
        await self._while_busy(site, timeout_s)
        if site.busy and self._hurry:
            self._say_goodbye(house, 0.0)
            await deferLater(self._reactor, FAREWELL_S)
        self._cut(site)
        await self._while_busy(house, deadline - self._reactor.seconds())
        await house.stop_hearing()
        await self._while_busy(house, deadline - self._reactor.seconds())

    def _say_goodbye(self, house: House, window_s: float) -> None:
        told = house.drain_streams(window_s)
        told.addErrback(lambda failure: self._log.error("drain.failed", exc_info=failure.value))

    async def _finish(self, site: EdgeSite, timeout_s: float) -> None:
        """Let requests under way end, for so long; then end them."""
        site.shutdown()
        await self._while_busy(site, timeout_s)
        self._cut(site)

    async def _while_busy(self, what: EdgeSite | House, timeout_s: float) -> None:
        deadline = self._reactor.seconds() + timeout_s
        while what.busy and self._reactor.seconds() < deadline and not self._hurry:
            await deferLater(self._reactor, POLL_S)

    def _cut(self, site: EdgeSite) -> None:
        if site.busy:
            self._log.warning("drain.cut", requests=site.busy)
            site.abort()

    async def _wait(self, seconds: float) -> None:
        deadline = self._reactor.seconds() + seconds
        while self._reactor.seconds() < deadline and not self._hurry:
            await deferLater(self._reactor, POLL_S)

    async def _at_most(self, seconds: float, event: "Deferred[None]") -> None:
        """Until the event, or the time is over; the event itself goes on."""
        done: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, done.callback, None)

        def arrived(_: object) -> None:
            if timer.active():
                timer.cancel()
                done.callback(None)

        event.addBoth(arrived)
        await done


def _in_force(read: Settings, before: Settings) -> tuple[Settings, list[str]]:
    """What holds once these settings were read, and the names of those that wait for a restart."""
    names = filter(NEEDS_RESTART.fullmatch, sorted(type(read).model_fields))
    waiting = [name for name in names if getattr(read, name) != getattr(before, name)]
    return read.model_copy(update={name: getattr(before, name) for name in waiting}), waiting


def _problems(error: Exception) -> list[str]:
    """What is wrong with a configuration, one line each."""
    if isinstance(error, ConfigError):
        return error.problems
    return [" ".join(f"{type(error).__name__}: {error}".split())]


def _address(port: IListeningPort | None) -> str:
    host: Any = port.getHost() if port is not None else ""
    if not hasattr(host, "port"):
        return str(host)
    name = f"[{host.host}]" if ":" in host.host else host.host
    return f"{name}:{host.port}"
