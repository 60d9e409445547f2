"""What operators see of the gateway's state, as JSON types."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bakerygw.core.routing import Route
from bakerygw.ports import ServiceHealth


def services_view(health: Mapping[str, ServiceHealth], urls: Mapping[str, Sequence[Any]]) -> object:
    """By service: what the prober saw, and each URL's connections and counts (dataclasses)."""
    return {
        name: {
            "health": asdict(health[name]) if name in health else None,
            "urls": [asdict(url) for url in its_urls],
        }
        for name, its_urls in urls.items()
    }


def routes_view(routes: Iterable[Route]) -> object:
    """The route table, one object each, sets as sorted lists."""
    return [
        {
            "prefix": route.prefix,
            "exact": route.exact,
            "kind": route.kind,
            "service": route.service,
            "auth": route.auth,
            "tenant": route.tenant,
            "methods": sorted(route.methods) if route.methods else None,
            "min_tier": route.min_tier,
            "critical": sorted(route.critical),
            "limit": asdict(route.limit) if route.limit else None,
            "first_byte_timeout_s": route.first_byte_timeout_s,
            "max_body_bytes": route.max_body,
            "read_only_exempt": route.read_only_exempt,
            "subscription_exempt": route.subscription_exempt,
        }
        for route in routes
    ]
