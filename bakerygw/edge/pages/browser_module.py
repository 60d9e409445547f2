"""`GET /bakerygw.js`: the module with which pages read alerts and speak to the training service."""

from importlib.resources import files
from typing import Final

from bakerygw.core.http import Reply, RequestHead
from bakerygw.edge.pages.apidocs import Asset, make_asset
from bakerygw.edge.pages.common import read_only_method

CACHING: Final = b"public, max-age=300"
"""Five minutes: its address stays the same, and a page should soon have what belongs to this release."""


class BrowserModule:
    """The module, kept in memory."""

    def __init__(self, asset: Asset) -> None:
        self._asset = asset

    def reply_to(self, head: RequestHead) -> Reply:
        """The module, or 304 if the client has it already. Raises `Refused` with `method-not-allowed`."""
        read_only_method(head)
        return self._asset.reply_to(head)


def load_browser_module() -> BrowserModule:
    """The module as it is installed, read once. Raises `FileNotFoundError`."""
    source = files("bakerygw.edge.pages") / "static" / "bakerygw.js"
    return BrowserModule(make_asset(source.read_bytes(), b"text/javascript; charset=utf-8", caching=CACHING))
