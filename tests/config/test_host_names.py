"""Host names in settings: no label is empty."""

import pytest
from pydantic import TypeAdapter, ValidationError

from bakerygw.config.values import HostNames, Origins, base_urls

HOSTS = TypeAdapter(HostNames)
ORIGINS = TypeAdapter(Origins)


@pytest.mark.parametrize("name", ["localhost", "a.b-c.example", "127.0.0.1", "[::1]"])
def test_a_sound_name_is_taken_everywhere(name: str) -> None:
    assert HOSTS.validate_python(name) == (name,)
    assert ORIGINS.validate_python(f"https://{name}") == (f"https://{name}",)
    assert base_urls(f"http://{name}:80") == (f"http://{name}:80",)


@pytest.mark.parametrize("name", ["a..b", "a.b..example", "..", "a...b"])
def test_a_name_with_an_empty_label_is_taken_nowhere(name: str) -> None:
    with pytest.raises(ValidationError):
        HOSTS.validate_python(name)
    with pytest.raises(ValidationError):
        ORIGINS.validate_python(f"https://{name}")
    assert base_urls(f"http://{name}:80") == ()
