"""What of the settings may be shown, and what never."""

import re
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

if TYPE_CHECKING:
    from bakerygw.config.settings import Settings

_USERINFO: Final = re.compile(r"//[^,\s]*@")
SECRET: Final = frozenset(
    {
        "admin_token",
        "publish_token",
        "redis_password",
        "token_cache_secret",
        "api_key_secret",
        "session_secret",
        "jwt_public_key",
    }
)
"""Never shown as given: the public key is among them because a private one may have been pasted."""


def masked(settings: "Settings") -> dict[str, object]:
    """The settings for people to look at: JSON types only, secrets as `***`; without the route table."""
    shown = settings.model_dump(mode="json", exclude={"routes", "services", "demo_services"})
    for name in SECRET & shown.keys():
        if isinstance(getattr(settings, name), SecretStr):
            shown[name] = "***"
    for name in ("services", "demo_services"):
        shown[name] = {service: list(urls) for service, urls in getattr(settings, name).items()}
    return shown


def secret_values(settings: "Settings") -> list[str]:
    """The secrets themselves, for a log to know and hide."""
    given = (getattr(settings, name) for name in sorted(SECRET))
    return [value.get_secret_value() for value in given if isinstance(value, SecretStr)]


def shown_value(name: str, value: str | None) -> str:
    """A value as a message about it may quote it."""
    if value is None:
        return "not set"
    if name in SECRET:
        return "got ***"
    return f"got {_USERINFO.sub('//***@', value)!a:.120}"
