"""What the pages say of refresh tokens and sessions, tried."""

from typing import get_args

import pytest

from bakerygw.core.refresh_tokens import MAX_BODY_BYTES, OPAQUE_S
from bakerygw.edge.signin.sessions import IDLE_S
from bakerygw.edge.signin.spending import UNKNOWN_S, Standing
from bakerygw.ports import UpstreamFailed
from tests.edge.edge_fakes import Source, request
from tests.edge.port_fakes import response
from tests.edge.signing_fakes import JSON, LOGOUT, REFRESH, SESSION, SigningStage
from tests.test_docs import page, rows

SALES = b"/api/v1/sales/today"


def section(name: str, title: str) -> str:
    return page(name).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(name: str, title: str) -> dict[str, str]:
    return {cells[0]: cells[1] for cells in rows(section(name, title)) if len(cells) == 2}


def answered(*statuses):
    def run(stage, status):
        stage.services.response = response(status)
        stage.refresh()

    return [lambda stage, status=status: run(stage, status) for status in statuses]


def failed(code):
    def run(stage):
        stage.services.failure = UpstreamFailed(code, "x", "x")
        stage.refresh()
        stage.services.failure = None

    return run


def cut(stage):
    stage.services.response = response(200, body=(source := Source(length=9)))
    stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    source.sink.cut("upstream closed early")


def left(stage):
    stage.services.response = None
    stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}')).leave()


FIRST_USES = {
    "2xx, 3xx": answered(200, 204, 302),
    "4xx, or it could not be asked at all (503 `service-unavailable`)": [
        *answered(400, 401, 404, 429), failed("service-unavailable"),
    ],
    "5xx, a timeout, an answer that it cut, a client that left before the answer": [
        *answered(500, 503), failed("upstream-timeout"), cut, left,
    ],
}  # fmt: skip
AGAIN_AFTER_S = {"at once": 0.0, f"in {UNKNOWN_S:g} s": UNKNOWN_S, "is used": OPAQUE_S}


def test_the_table_of_first_uses_is_the_one_that_is_tried():
    assert table("docs/operators.md", "Refresh tokens").keys() - {"the service"} == FIRST_USES.keys()


@pytest.mark.parametrize("row", FIRST_USES)
def test_a_token_can_be_used_again_when_the_operators_page_says(row):
    said = table("docs/operators.md", "Refresh tokens")[row]
    (wait_s,) = [seconds for words, seconds in AGAIN_AFTER_S.items() if words in said]
    for first_use in FIRST_USES[row]:
        stage = SigningStage()
        first_use(stage)
        stage.services.response = response(200)
        if wait_s:
            stage.pass_s(wait_s - 0.1)
            assert stage.refresh().status == 401
            stage.pass_s(0.2)
        assert stage.refresh().status == 200


def test_the_states_and_times_of_the_pages_are_those_of_the_code():
    operators, clients = section("docs/operators.md", "Refresh tokens"), page("docs/clients.md")
    assert all(f"`{state}`" in operators for state in get_args(Standing))
    assert f"{OPAQUE_S / 86_400:g} days" in operators
    assert f"{MAX_BODY_BYTES // 1024} KiB at most" in clients
    assert f"{IDLE_S / 86_400:g} days without use" in clients
    assert f"no longer than {IDLE_S / 86_400:g} days" in section("docs/operators.md", "Sessions of browsers")


def test_the_calls_of_sessions_are_as_the_clients_page_says():
    said = table("docs/clients.md", "Sessions of browsers")
    assert said.keys() >= {
        "GET /api/v1/auth/session",
        "POST /api/v1/auth/refresh",
        "POST /api/v1/auth/logout",
    }
    stage = SigningStage().with_sessions()
    browser = stage.sign_in()
    told = browser.ask(SESSION).body.decode()
    assert all(f'"{name}"' in told for name in ("csrf_token", "user_id", "tenant_id"))
    assert '{"csrf_token", "user_id", "tenant_id"}' in said["GET /api/v1/auth/session"]
    for target in (SALES, REFRESH, LOGOUT):
        assert browser.ask(target, method=b"POST").problem()["code"] == "csrf"
    assert "403 `csrf`" in said["X-CSRF-Token"]
