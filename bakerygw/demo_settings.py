"""The settings of a gateway that runs the demo."""

from bakerygw.config.checks import may_geocode
from bakerygw.config.routes import merge_routes
from bakerygw.config.settings import Settings
from bakerygw.demo.page import ROUTE
from bakerygw.demo.services import DemoServices


def demo_settings(settings: Settings, demo: DemoServices) -> Settings:
    """The settings with the demo's services and key."""
    own = {name: (url,) for name, url in demo.urls.items() if not name.startswith("demo:")}
    apart = {name.removeprefix("demo:"): (url,) for name, url in demo.urls.items() if name.startswith("demo:")}
    map_url = settings.nominatim_url if may_geocode(settings) else demo.geocoder_url
    return settings.model_copy(
        update={
            "nominatim_url": map_url,
            "services": {**own, **settings.services},
            "demo_services": {**apart, **settings.demo_services},
            "jwt_public_key": demo.public_pem,
            "jwt_jwks_url": None,
            "jwt_algorithm": "RS256",
            "routes": merge_routes(settings.routes, (ROUTE,)),
        }
    )
