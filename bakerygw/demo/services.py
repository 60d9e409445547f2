"""The demo's services: each one real HTTP on a loopback port of its own, in the gateway's reactor."""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from types import MappingProxyType

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort

from bakerygw.core.tenancy import TenantFlags
from bakerygw.demo.accounts import Account, Tenant, demo_directory
from bakerygw.demo.alerts import Happenings, Publish
from bakerygw.demo.auth import AuthService, Issuer
from bakerygw.demo.data import COLLECTIONS, DEMO_SERVICES, SERVICES
from bakerygw.demo.geocoder import geocoder
from bakerygw.demo.notifications import with_alerts
from bakerygw.demo.page import DemoPage
from bakerygw.demo.records import Records, RecordService, with_echo
from bakerygw.demo.sockets import TRAINING_SOCKET, TrainingResource, TrainingSockets
from bakerygw.demo.tenants import TenantService
from bakerygw.demo.training import TrainingRuns
from bakerygw.demo.web import Connections, LoopbackSite, Service

LOOPBACK = "127.0.0.1"


class DemoServices:
    """Every service that the gateway routes to, with accounts, data and a key pair of this run."""

    def __init__(self, reactor: object, *, now: Callable[[], float], random: Random) -> None:
        """Make the key pair and the data; nothing listens before `start`.

        `reactor` is an `IReactorTCP` and `IReactorTime`; `now` gives Unix seconds.
        """
        self._reactor, self._now = reactor, now
        self._directory = demo_directory(now)
        self._seeded = frozenset(account.tenant_id for account in self._directory.accounts)
        self._issuer = Issuer(now)
        self._seed = f"{random.getrandbits(64):x}"
        self._training = TrainingRuns(reactor, Random(random.getrandbits(64)))
        self._happenings = Happenings(
            lambda: self.tenants, clock=reactor, now=now, random=Random(random.getrandbits(64))
        )
        self.page = DemoPage(self._directory.accounts, self._directory.tenants)
        """The page that shows all of it live."""
        self._listening: list[tuple[IListeningPort, LoopbackSite]] = []
        self._urls: dict[str, str] = {}
        self.geocoder_url = ""
        """Base URL of the map, which is no service of the gateway's. Filled by `start`."""

    @property
    def urls(self) -> Mapping[str, str]:
        """Service name -> base URL; `demo:` before the name of an instance for demo sessions. Filled by `start`."""
        return MappingProxyType(self._urls)

    @property
    def public_pem(self) -> str:
        """The key that checks the auth service's tokens."""
        return self._issuer.public_pem

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Everyone who can sign in, those who registered since the start included."""
        return self._directory.accounts

    @property
    def flags(self) -> Mapping[str, TenantFlags]:
        """What the admission store must know of the tenants."""
        return self._directory.flags()

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """All bakeries by id."""
        return self._directory.tenants

    async def start(self) -> None:
        """Listen with every service on a free port; if one cannot, none stays and the error goes on."""
        try:
            for name, service in self._services():
                self._urls[name] = await self._listen(name.removeprefix("demo:"), service)
            self.geocoder_url = await self._listen("geocoder", geocoder)
        except BaseException:
            await self.stop()
            raise

    async def _listen(self, name: str, service: Service) -> str:
        """Serve on a free port; the base URL."""
        site = self._training_site(service) if name == "training" else LoopbackSite(name, service, self._reactor)
        port = await TCP4ServerEndpoint(self._reactor, 0, interface=LOOPBACK).listen(site)
        self._listening.append((port, site))
        return f"http://{LOOPBACK}:{port.getHost().port}"

    def _training_site(self, service: Service) -> LoopbackSite:
        connections = Connections()
        sockets = TrainingSockets(self._training, connections, self._reactor)
        upgrades = {TRAINING_SOCKET: TrainingResource(sockets)}
        return LoopbackSite("training", service, self._reactor, upgrades=upgrades, connections=connections)

    def publish_to(self, publish: Publish) -> None:
        """Let things happen in the bakeries until `stop`: `publish` is given an alert every few seconds."""
        self._happenings.start(publish)

    async def stop(self) -> None:
        """Close every port, cut what is still connected, and return when all of it is gone."""
        self._happenings.stop()
        self._training.stop_all()
        listening, self._listening = self._listening, []
        self._urls.clear()
        for port, _ in listening:
            closed: Deferred[object] = maybeDeferred(port.stopListening)
            await closed
        for _, site in listening:
            await site.drop_all()

    def _services(self) -> Iterator[tuple[str, Service]]:
        yield "auth", AuthService(self._directory, self._issuer, self._now)
        yield "tenant", TenantService(self._directory, self._now)
        for name in SERVICES[2:]:
            yield name, self._records(name)
        for name in DEMO_SERVICES:
            yield f"demo:{name}", self._records(name)

    def _records(self, service: str) -> Service:
        collections = [
            Records(collection, now=self._now, seed=self._seed, seeded=self._seeded)
            for collection in COLLECTIONS
            if collection.service == service
        ]
        records = RecordService(collections[0].path[0], collections)
        if service == "external":
            return with_echo(records)
        return with_alerts(records, self._now) if service == "notification" else records
