"""The parts of one gateway, as those who start and stop it see them."""

from collections.abc import Mapping
from typing import Protocol

from twisted.internet.defer import Deferred

from bakerygw.config.settings import Settings
from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.site import EdgeSite


class House(Protocol):
    """The parts of a gateway, as far as its life is concerned."""

    public_site: EdgeSite
    admin_site: EdgeSite

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def store_status(self) -> str:
        """The state of the way to the shared store."""

    def open(self) -> "Deferred[None]":
        """Begin what runs in the background; fires after the first contact with Redis, well or not."""

    def drain_streams(self, window_s: float) -> "Deferred[None]":
        """Say goodbye to all that is held open, spread over the window; fires when the last has been told."""

    @property
    def busy(self) -> bool:
        """Something that is no request is on its way to a service or the shared state, and worth waiting for."""

    def stop_hearing(self) -> "Deferred[None]":
        """Hear no more alerts; fires when that is done. While some that were heard are not stored, this is `busy`."""

    def close_services(self) -> None:
        """No service is asked any more."""

    def close_state(self) -> "Deferred[None]":
        """Leave Redis."""

    async def seed(self, flags: Mapping[str, TenantFlags]) -> None:
        """Put the demo's flags into the embedded store."""

    async def publish(self, tenant_id: str, payload: bytes) -> None:
        """Publish an alert as a service would."""

    def swap(self, settings: Settings) -> None:
        """Put another configuration in force for requests to come; raises, with nothing changed, if it is unfit."""
