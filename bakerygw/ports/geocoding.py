"""Addresses into coordinates."""

from typing import Protocol

from bakerygw.core.geocoding import Question
from bakerygw.core.places import Place


class Geocoder(Protocol):
    """Somebody who knows the map. How often it may be asked is the callers' affair."""

    async def search(self, question: Question) -> tuple[Place, ...]:
        """The places that fit, the best first; none is an answer too. Ends within its own deadline.

        Raises `UpstreamFailed`; with `retry_after_s` this instance should not ask before that time is over, and with
        `service-unavailable` no other either.
        """
