"""`GET /bakerygw.js`: what is served, how long it is kept, and who may ask."""

from importlib.resources import files

import pytest

from bakerygw.core.problem import Refused
from bakerygw.edge.pages.browser_module import load_browser_module
from tests.heads import make_head


def asked(method="GET"):
    head = make_head(method=method, target=b"/bakerygw.js", headers=[(b"Host", b"gw")])
    return load_browser_module().reply_to(head)


def test_the_module_is_served_as_a_script_that_is_kept_for_five_minutes():
    reply = asked()
    headers = dict(reply.headers)

    assert (reply.status, headers[b"Content-Type"]) == (200, b"text/javascript; charset=utf-8")
    assert headers[b"Cache-Control"] == b"public, max-age=300"
    assert reply.body == (files("bakerygw.edge.pages") / "static" / "bakerygw.js").read_bytes()
    assert b"export class AlertStream" in reply.body


def test_who_has_it_already_gets_304_without_it():
    etag = dict(asked().headers)[b"ETag"]
    head = make_head(target=b"/bakerygw.js", headers=[(b"Host", b"gw"), (b"If-None-Match", etag)])
    reply = load_browser_module().reply_to(head)

    assert (reply.status, reply.body) == (304, b"")


def test_it_can_only_be_read():
    with pytest.raises(Refused) as refused:
        asked("POST")

    assert refused.value.problem.code == "method-not-allowed"


def test_it_needs_nothing_but_itself():
    text = load_browser_module().reply_to(make_head(target=b"/bakerygw.js")).body.decode()

    assert "\nimport " not in text
    assert "eval(" not in text
