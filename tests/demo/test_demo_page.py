"""The demo's page: what is served, under which policy, and that nothing in it comes from elsewhere."""

import json
import re
from pathlib import Path
from random import Random

import pytest
from demo_calls import NOW
from heads import make_head
from twisted.internet.task import Clock

from bakerygw.config.routes import build_router
from bakerygw.config.settings import load_settings
from bakerygw.core.http import Reply
from bakerygw.core.openapi import PAGES, build_document
from bakerygw.core.problem import Refused
from bakerygw.demo.accounts import PASSWORD, demo_directory
from bakerygw.demo.page import FILES, ROUTE, DemoPage
from bakerygw.demo.services import DemoServices
from bakerygw.demo_settings import demo_settings

DIRECTORY = demo_directory(lambda: NOW)
PAGE = DemoPage(DIRECTORY.accounts, DIRECTORY.tenants)


def got(path: str, method: str = "GET") -> Reply:
    return PAGE.reply_to(make_head(method, path.encode()))


def text_of(path: str) -> str:
    body = got(path).body
    assert isinstance(body, bytes)
    return body.decode()


@pytest.mark.parametrize("path", [*FILES, "/demo", "/demo/accounts.json"])
def test_everything_is_served_under_a_strict_policy(path: str) -> None:
    fields = dict(got(path).headers)
    policy = fields[b"Content-Security-Policy"].decode()
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for part in ("base-uri", "form-action", "frame-ancestors"):
        assert f"{part} 'none'" in policy


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = text_of("/demo/")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", page)
    for path in FILES:
        outside = set(re.findall(r"https?://[^\s\"'`)]+", text_of(path))) - {"http://www.w3.org/2000/svg"}
        assert outside == set(), path
    own = {*FILES, "/docs", "/health", "/bakerygw.js", "#main"}
    assert set(re.findall(r'(?:href|src)="([^"]+)"', page)) <= own
    assert set(re.findall(r'from "([^"]+)"', text_of("/demo/app.js"))) <= own


def test_every_element_that_the_script_asks_for_is_there() -> None:
    there = set(re.findall(r'\sid="([^"]+)"', text_of("/demo/")))
    asked = set(re.findall(r'\bat\("([^"]+)"\)', text_of("/demo/app.js")))
    assert len(asked) > 20
    assert asked <= there


def test_the_accounts_are_told_with_what_signs_them_in() -> None:
    told = json.loads(text_of("/demo/accounts.json"))
    by_email = {account["email"]: account for account in told["accounts"]}
    assert told["password"] == PASSWORD
    assert set(by_email) == {account.email for account in DIRECTORY.accounts}
    names = [bakery["name"] for bakery in by_email["jordi@martin.example"]["bakeries"]]
    assert names == ["Boulangerie Martin", "Panadería La Espiga", "Demo Bakery"]


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/demo/other", "GET", "not-found"),
        ("/demo/page/app.js", "GET", "not-found"),
        ("/demo/", "POST", "method-not-allowed"),
        ("/demo/accounts.json", "DELETE", "method-not-allowed"),
    ],
)
def test_everything_else_is_refused(path: str, method: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        got(path, method)
    assert refused.value.problem.code == code


def test_a_route_of_the_same_name_gives_way_to_the_page(tmp_path: Path) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text('[[route]]\nprefix = "/demo"\nservice = "sales"\n')
    given = load_settings({"ROUTES_FILE": str(routes)}, demo=True)
    settings = demo_settings(given, DemoServices(Clock(), now=lambda: NOW, random=Random(1)))
    found = build_router(settings).match(b"/demo/app.js")
    assert found is not None
    assert found.route == ROUTE


def test_the_page_is_no_part_of_the_api() -> None:
    assert set(build_document((ROUTE,), version="1")["paths"]) == set(PAGES)
