"""What the admin port can be asked, as tables: each part of it brings its own."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from bakerygw.core.http import Reply, RequestHead

Handler = Callable[[RequestHead, bytes, str], Awaitable[Reply]]
"""Takes the head, the body, and the id in the path (of a tenant, of a key) or an empty text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One method on one path: what it does in words, and in code."""

    says: str
    handler: Handler


Table = Mapping[str, Mapping[str, Call]]
"""Path template, method, call."""
