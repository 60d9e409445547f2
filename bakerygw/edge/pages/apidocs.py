"""`GET /openapi.json` and `GET /docs`: the API's description, and Swagger UI served from this process alone."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.openapi import build_document
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.routing import Route
from bakerygw.edge.pages.common import read_only_method

BUNDLE: Final = "openapi_ui_bundles.swagger_ui"
BUNDLED: Final[Mapping[str, bytes]] = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "favicon-32x32.png": b"image/png",
}
"""What is taken of the bundle, with its media type; its own page is not, for it carries an inline script."""

PAGE: Final = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Bakery-IA gateway: API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript. The description itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/init.js"></script>
</body>
</html>
"""

INIT: Final = b"""SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
  validatorUrl: null
});
"""

PAGE_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; "
    # Swagger UI sets style attributes from its own code, and draws its icons from data: URLs.
    b"style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

REVALIDATED: Final = b"no-cache"
ASSET_CACHING: Final = b"public, max-age=3600"
"""An hour: the addresses do not change with the content, so a new release must reach browsers soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One resource kept in memory, with the header fields of its 200 and its strong entity tag."""

    body: bytes
    etag: bytes
    caching: bytes
    headers: Pairs

    def reply_to(self, head: RequestHead) -> Reply:
        """The resource, or 304 if the client has it already (RFC 9110 section 13.1.2)."""
        validators = ((b"ETag", self.etag), (b"Cache-Control", self.caching))
        if _has_already(head, self.etag):
            return Reply(status=304, headers=validators)
        return Reply(status=200, headers=(*self.headers, *validators), body=self.body)


def make_asset(body: bytes, media_type: bytes, *, caching: bytes, extra: Pairs = ()) -> Asset:
    """An asset whose entity tag is the digest of its bytes."""
    etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode()
    return Asset(body=body, etag=etag, caching=caching, headers=((b"Content-Type", media_type), *extra))


def load_swagger_ui() -> dict[str, Asset]:
    """The assets of Swagger UI by file name, read once from the installed package. Raises `FileNotFoundError`."""
    vendor = files(BUNDLE) / "vendor"
    assets = {
        name: make_asset((vendor / name).read_bytes(), media_type, caching=ASSET_CACHING)
        for name, media_type in BUNDLED.items()
    }
    assets["init.js"] = make_asset(INIT, b"text/javascript; charset=utf-8", caching=ASSET_CACHING)
    return assets


class ApiDocs:
    """The API documentation of one route table. `assets` are those of `load_swagger_ui`, shared between reloads."""

    def __init__(self, *, routes: Iterable[Route], version: str, assets: Mapping[str, Asset] | None = None) -> None:
        document = json.dumps(build_document(routes, version=version), ensure_ascii=False).encode()
        page = make_asset(
            PAGE,
            b"text/html; charset=utf-8",
            caching=REVALIDATED,
            extra=((b"Content-Security-Policy", PAGE_POLICY), (b"Referrer-Policy", b"no-referrer")),
        )
        loaded = load_swagger_ui() if assets is None else assets
        self._assets: dict[bytes, Asset] = {
            b"/openapi.json": make_asset(document, b"application/json", caching=REVALIDATED),
            b"/docs": page,
            b"/docs/": page,
            **{b"/docs/" + name.encode(): asset for name, asset in loaded.items()},
        }

    def reply_to(self, head: RequestHead) -> Reply:
        """The resource at the head's path; a HEAD request gets the whole reply, whose body is dropped on delivery.

        Raises `Refused` with `not-found` or `method-not-allowed`.
        """
        asset = self._assets.get(head.path)
        if asset is None:
            raise Refused(Problem(code="not-found", detail="The documentation has no such part; begin at /docs."))
        read_only_method(head)
        return asset.reply_to(head)


def _has_already(head: RequestHead, etag: bytes) -> bool:
    """Whether `If-None-Match` names this entity tag, by weak comparison, or is `*`."""
    values = b",".join(head.fields.get(b"if-none-match", ()))
    named = {value.strip().removeprefix(b"W/") for value in values.split(b",")}
    return etag in named or b"*" in named
