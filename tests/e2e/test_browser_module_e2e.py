"""The module `/bakerygw.js` in a real browser, against a gateway that exists in the page only."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from tests.e2e.browser import Browser
from tests.e2e.pages import WEB, Pages

MODULE = Path(str(files("bakerygw.edge.pages"))) / "static" / "bakerygw.js"
NAMES = re.findall(r'^test\("(.+)", ', (WEB / "module_tests.js").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def outcomes(browser: Browser) -> dict[str, str | None]:
    """How each test of the module ended; nothing but what a test asks for goes wrong in the page."""
    script = 'import("/module_tests.js").then(() => import("/stage.js")).then((stage) => stage.run())'
    with (
        Pages([MODULE, WEB / "stage.js", WEB / "module_tests.js"]) as pages,
        browser.page(pages.origin, context=browser.context()) as page,
    ):
        found: dict[str, str | None] = page.evaluate(script, timeout_s=300)
        assert page.errors == []
    return found


@pytest.mark.parametrize("name", NAMES)
def test_module(outcomes: dict[str, str | None], name: str) -> None:
    assert name in outcomes
    assert outcomes[name] is None, outcomes[name]


def test_every_test_in_the_page_is_looked_at(outcomes: dict[str, str | None]) -> None:
    assert len(NAMES) > 30
    assert set(NAMES) == set(outcomes)
