"""The services behind the gateway as a port, for tests of whoever asks them."""

from collections.abc import Collection

from twisted.internet.defer import Deferred

from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse


class Services:
    """`Upstreams` that answer or fail as the test says, or let wait."""

    def __init__(self, names: Collection[str], answer: UpstreamResponse | UpstreamFailed | None = None) -> None:
        """`names` have an address; `None`: nothing is answered."""
        self._names, self._answer = names, answer
        self.asked: list[tuple[str, UpstreamRequest]] = []
        self.cancelled = 0
        """Requests that were given up by who waited."""

    def has(self, service: str) -> bool:
        """Whether there is a service of this name."""
        return service in self._names

    def all_authorities(self) -> tuple[str, ...]:
        """None."""
        return ()

    async def request(self, service: str, request: UpstreamRequest) -> UpstreamResponse:
        """The answer, for ever the same."""
        self.asked.append((service, request))
        if isinstance(self._answer, UpstreamFailed):
            raise self._answer
        if self._answer is not None:
            return self._answer
        return await Deferred(lambda _: self._gave_up())

    def _gave_up(self) -> None:
        self.cancelled += 1
