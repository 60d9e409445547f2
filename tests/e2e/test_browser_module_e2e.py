"""The module `/bakerygw.js` in a real browser, against a gateway that exists in the page only."""

import re
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread

import pytest

from tests.e2e.browser import Browser

WEB = Path(__file__).parent / "web"
MODULE = Path(str(files("bakerygw.edge"))) / "static" / "bakerygw.js"
NAMES = re.findall(r'^test\("(.+)", ', (WEB / "module_tests.js").read_text(encoding="utf-8"), re.MULTILINE)
PAGE = '<!doctype html><title>tests</title><link rel="icon" href="data:,">'


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves the module, its tests, and an empty page."""
    folder = tmp_path_factory.mktemp("web")
    for file in (MODULE, WEB / "stage.js", WEB / "module_tests.js"):
        shutil.copy(file, folder)
    (folder / "index.html").write_text(PAGE)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def outcomes(browser: Browser, origin: str) -> dict[str, str | None]:
    """How each test of the module ended; nothing but what a test asks for goes wrong in the page."""
    with browser.page(origin, context=browser.context()) as page:
        script = 'import("/module_tests.js").then(() => import("/stage.js")).then((stage) => stage.run())'
        found: dict[str, str | None] = page.evaluate(script, timeout_s=60)
        assert page.errors == []
        return found


@pytest.mark.parametrize("name", NAMES)
def test_module(outcomes: dict[str, str | None], name: str) -> None:
    assert name in outcomes
    assert outcomes[name] is None, outcomes[name]


def test_every_test_in_the_page_is_looked_at(outcomes: dict[str, str | None]) -> None:
    assert len(NAMES) > 30
    assert set(NAMES) == set(outcomes)
