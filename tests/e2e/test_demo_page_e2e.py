"""`/demo/` in a real browser: signing in, alerts, a cut, a training run, limits, and a hold.

With SCREENSHOT, a file's name, in the environment it also leaves the picture of the README there.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bakerygw.demo.accounts import iso
from tests.e2e.browser import Browser, Page
from tests.e2e.calling import until
from tests.e2e.harness import Gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway({}, demo=True) as running:
        until(lambda: "Paste into a shell" in running.output)
        yield running


@pytest.fixture
def admin(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.admin() as client:
        yield client


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    with browser.page() as opened:
        opened.show_as(width=1240, height=960)
        opened.open(f"{gateway.base_url}/demo/")
        opened.wait_for("document.querySelectorAll('#accounts button').length > 4")
        yield opened
        # The browser itself reports every answer that is no success; those that the page provokes are known.
        assert [error for error in opened.errors if "status of 40" not in error] == []


def sign_in(page: Page, email: str) -> None:
    page.click(f"button[data-email='{email}']")
    page.wait_for("document.getElementById('state').dataset.state === 'open'")


def offer(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{gateway.base_url}/demo/accounts.json").json()
    return found


def bakery_of(gateway: Gateway, email: str) -> str:
    (tenant_id,) = (its["bakeries"][0]["id"] for its in offer(gateway)["accounts"] if its["email"] == email)
    return str(tenant_id)


def publish(admin: httpx.Client, tenant_id: str, name: str) -> None:
    answer = admin.post(
        f"/api/tenants/{tenant_id}/alerts",
        json={"severity": "critical", "message": name, "service": "production", "timestamp": iso(time.time())},
    )
    assert answer.status_code == 201, answer.text


def ids(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#alerts li[data-id]')].map((row) => row.dataset.id)"
    )
    return found


def test_a_bakery_is_seen_live_through_a_cut_a_training_and_a_hold(
    gateway: Gateway, admin: httpx.Client, page: Page
) -> None:
    sign_in(page, "ana@espiga.example")
    bakery = bakery_of(gateway, "ana@espiga.example")
    page.wait_for("document.getElementById('train').disabled === false")
    page.click("#train")
    publish(admin, bakery, "Oven 2 is at 268 °C, 33 °C above its programme")
    page.wait_for("document.getElementById('alerts').textContent.includes('Oven 2 is at 268')")

    page.evaluate("document.getElementById('cut').click()")
    page.wait_for("document.getElementById('state').dataset.state === 'cut'")
    first = page.evaluate("document.getElementById('loss').getAttribute('points').split(' ').length")
    missed = ["Cold store at 9.4 °C: its door has stood open for 6 minutes", "Butter: 4 kg left, the minimum is 12"]
    for name in missed:
        publish(admin, bakery, name)
    assert page.errors == []
    page.click(".spend")
    page.wait_for("document.getElementById('sent').textContent === '20 sent, all let pass'")
    page.wait_for("document.getElementById('resumed').hidden === false")

    shown = page.evaluate("[...document.querySelectorAll('#alerts .again .message')].map((it) => it.textContent)")
    assert [name for name in shown if name in missed] == missed[::-1]  # the demo has alerts of its own between them
    assert len(ids(page)) == len(set(ids(page)))
    assert page.evaluate("document.getElementById('loss').getAttribute('points').split(' ').length") > first > 0

    page.click("#write")
    page.wait_for("document.getElementById('written').className === 'written done'")
    hold = admin.put(f"/api/tenants/{bakery}/read-only", json={"reason": "stock-taking"})
    assert hold.status_code == 200
    page.wait_for("document.getElementById('hold').hidden === false")
    page.click("#write")
    page.wait_for("document.getElementById('written').textContent.includes('403 tenant-read-only')")
    picture(page)
    admin.delete(f"/api/tenants/{bakery}/read-only")
    page.wait_for("document.getElementById('hold').hidden === true")


def picture(page: Page) -> None:
    wanted = os.environ.get("SCREENSHOT")
    if wanted:
        page.evaluate("scrollTo(0, 0), document.getAnimations().forEach((it) => it.finish())")
        page.screenshot(Path(wanted))


def test_it_fits_a_phone_and_goes_by_keyboard(gateway: Gateway, page: Page) -> None:
    page.show_as(width=360, height=720, dark=True, mobile=True)
    page.evaluate("document.querySelector(\"button[data-email='ana@espiga.example']\").focus()")
    page.press("Enter")
    page.wait_for("document.getElementById('state').dataset.state === 'open'")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_hold_is_in_view_wherever_somebody_reads(gateway: Gateway, admin: httpx.Client, page: Page) -> None:
    page.show_as(width=360, height=740, mobile=True)
    sign_in(page, "visitor@demo.example")
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    hold = f"/api/tenants/{bakery_of(gateway, 'visitor@demo.example')}/read-only"
    assert admin.put(hold, json={"reason": "stock-taking"}).status_code == 200
    page.wait_for("document.getElementById('hold').hidden === false")
    top, bottom = page.evaluate("(it => [it.top, it.bottom])(document.getElementById('hold').getBoundingClientRect())")
    assert page.evaluate("scrollY") > 0
    assert 0 <= top < bottom < 740
    assert admin.delete(hold).status_code == 200


def test_nothing_moves_for_the_alerts_that_come(gateway: Gateway, admin: httpx.Client, page: Page) -> None:
    sign_in(page, "nuria@puig.example")
    where = "document.getElementById('write').getBoundingClientRect().top + scrollY"
    before = page.evaluate(where)
    for number in range(30):
        publish(admin, bakery_of(gateway, "nuria@puig.example"), f"Oven {number} is cold")
    page.wait_for("document.querySelectorAll('#alerts li').length >= 30")
    assert page.evaluate(where) == before


def test_alerts_that_are_caught_up_are_counted_aloud_and_not_read(
    gateway: Gateway, admin: httpx.Client, page: Page
) -> None:
    page.evaluate(
        """(() => {
            const wait = setTimeout;
            window.setTimeout = (act, ms) => ms === 5000 ? (window.endCut = act, 0) : wait(act, ms);
            window.live = { fresh: new Set(), again: new Set() };
            const look = ({ addedNodes }) => addedNodes.forEach(({ classList, parentNode }) => {
                const kind = classList.contains("again") ? "again" : "fresh";
                live[kind].add(parentNode.parentNode.ariaLive);
            });
            const list = document.getElementById("alerts");
            new MutationObserver((them) => them.forEach(look)).observe(list, { childList: true });
        })()"""
    )
    sign_in(page, "jordi@martin.example")
    bakery = bakery_of(gateway, "jordi@martin.example")
    page.click("#cut")
    page.wait_for("document.getElementById('state').dataset.state === 'cut'")
    publish(admin, bakery, "Missed")
    page.evaluate("endCut(); 1")
    page.wait_for("document.getElementById('resumed').innerText.includes('missed meanwhile')")
    publish(admin, bakery, "Heard")
    page.wait_for("document.getElementById('alerts').textContent.includes('Heard')")
    assert page.evaluate("[[...live.again], [...live.fresh]]") == [["off"], ["polite"]]


def test_who_gets_no_answer_is_told_so_in_the_page_s_words(page: Page) -> None:
    sign_in(page, "luis@espiga.example")
    page.evaluate("window.fetch = () => Promise.reject(new TypeError('Failed to fetch')); 1")
    page.click("#write")
    page.wait_for("document.getElementById('written').textContent === 'The gateway does not answer.'")


def test_the_keyboard_stays_where_it_was_and_a_double_click_is_one(page: Page) -> None:
    sign_in(page, "claire@martin.example")
    page.wait_for("document.getElementById('train').disabled === false")
    page.evaluate("document.querySelector('.spend').focus()")
    for _ in range(2):
        page.press("Enter")
        page.wait_for("document.querySelector('.spend').disabled || document.getElementById('sent').textContent")
        page.wait_for("document.activeElement.className === 'spend' && !document.activeElement.disabled")
    page.click("#train", times=2)
    page.wait_for("document.getElementById('run').textContent === 'training sales-forecast'")
    page.wait_for("parseInt(document.getElementById('epoch').textContent) > 2")
    assert page.text("#train") == "Stop the run"
    page.click("#train")
    page.wait_for("document.getElementById('run').textContent.startsWith('stopped at')")


def test_alerts_are_a_list_for_those_who_hear_the_page(gateway: Gateway, admin: httpx.Client, page: Page) -> None:
    sign_in(page, "claire@martin.example")
    publish(admin, bakery_of(gateway, "claire@martin.example"), "Oven 2 is cold")
    page.wait_for("document.querySelector('#alerts li') !== null")
    nodes = page.command("Accessibility.getFullAXTree")["nodes"]
    roles = {node["nodeId"]: node["role"]["value"] for node in nodes if "role" in node}
    parents = {node["nodeId"]: node.get("parentId") for node in nodes}
    (alerts,) = (its["nodeId"] for its in nodes if its.get("name", {}).get("value") == "Alerts, newest first")

    assert (roles[alerts], roles[parents[alerts]]) == ("list", "log")
    assert {roles[its] for its, parent in parents.items() if parent == alerts} == {"listitem"}


def test_a_renewal_that_finds_no_network_is_no_problem_yet(page: Page) -> None:
    page.evaluate(
        """(() => {
            const real = fetch, said = 'event: hello\\nid: 1-0\\ndata: {}\\n\\nevent: token-expiring\\ndata: {}\\n\\n';
            const init = { headers: { 'Content-Type': 'text/event-stream' } };
            window.fetch = async (url, options) => {
                if (String(url).includes('/auth/refresh')) throw new TypeError(window.asked = 'no network');
                return String(url).includes('/alerts/stream') ? new Response(said, init) : real(url, options);
            };
        })()"""
    )
    page.click("button[data-email='claire@martin.example']")
    page.wait_for("window.asked")
    page.wait_for("document.getElementById('state').dataset.state === 'waiting'")
    assert page.evaluate("document.getElementById('problem').hidden") is True


def test_a_line_that_the_browser_does_not_copy_is_selected(page: Page) -> None:
    sign_in(page, "luis@espiga.example")
    page.evaluate("navigator.clipboard.writeText = () => Promise.reject(new DOMException('no', 'NotAllowedError')); 1")
    page.click("#how summary")
    page.click(".copy")
    page.wait_for("getSelection().toString().startsWith('curl -X PUT')")


def test_a_subscription_that_has_ended_is_told_as_what_it_is(page: Page) -> None:
    page.click("button[data-email='otto@vogel.example']")
    page.wait_for("document.getElementById('problem').textContent.includes('402 subscription-expired')")
    page.wait_for("document.getElementById('run').textContent === 'not connected'")
    for button in ("cut", "train"):
        assert page.evaluate(f"document.getElementById('{button}').disabled") is True
    assert page.text("#quiet") == "No alerts come, for the reason above."
    assert page.text("#left") == "\N{EN DASH}"
    page.click(".spend")
    page.wait_for("document.getElementById('sent').textContent === 'refused (402)'")


def test_who_changes_the_account_during_a_cut_sees_nothing_more_of_the_first(
    gateway: Gateway, admin: httpx.Client, page: Page
) -> None:
    page.evaluate("const wait = setTimeout; window.setTimeout = (act, ms) => wait(act, ms === 5000 ? 500 : ms); 1")
    sign_in(page, "ana@espiga.example")
    page.click("#cut")
    page.wait_for("document.getElementById('state').dataset.state === 'cut'")
    publish(admin, bakery_of(gateway, "ana@espiga.example"), "Only for La Espiga")
    page.click("#leave")
    sign_in(page, "claire@martin.example")
    time.sleep(0.8)  # longer than the cut would have lasted

    assert "Only for La Espiga" not in page.text("#alerts")
    assert page.evaluate("document.getElementById('cut').disabled") is False


def test_what_a_bakery_on_hold_is_told_first_is_the_hold(page: Page) -> None:
    sign_in(page, "gina@rossi.example")
    page.wait_for("document.getElementById('hold').textContent.includes('Year-end stock-taking')")


def test_one_account_enters_at_a_time(page: Page) -> None:
    page.evaluate(
        """["ana@espiga.example", "claire@martin.example"].forEach(
            (email) => document.querySelector(`button[data-email='${email}']`).click())"""
    )
    page.wait_for("document.getElementById('state').dataset.state === 'open'")
    assert page.text("#who-name") == "Ana Romero"


TOKENS_SHOWN = """
    window.shown = [];
    const asked = fetch;
    window.fetch = (what, how) => {
      const token = new Headers(how?.headers).get("Authorization");
      if (token) shown.push(token);
      return asked(what, how);
    };
    1
"""


SIGN_OUT = """
    fetch("/api/v1/auth/session").then((answer) => answer.json()).then(({ csrf_token }) =>
      fetch("/api/v1/auth/logout", { method: "POST", headers: { "X-CSRF-Token": csrf_token } })).then(() => 1)
"""


def test_with_sessions_the_page_goes_by_the_cookie_and_holds_no_token(browser: Browser) -> None:
    settings = {"SESSION_COOKIES": "true", "SESSION_SECRET": "s" * 40}
    with (
        Gateway(settings, demo=True) as gateway,
        gateway.admin() as admin,
        browser.page(f"http://localhost:{gateway.port}/demo/", context=browser.context()) as page,
    ):
        page.wait_for("document.querySelectorAll('#accounts button').length > 4")
        page.evaluate(TOKENS_SHOWN)
        sign_in(page, "ana@espiga.example")
        assert page.evaluate("document.cookie") == ""
        publish(admin, bakery_of(gateway, "ana@espiga.example"), "Oven 2 is at 268 °C")
        page.wait_for("document.getElementById('alerts').textContent.includes('Oven 2 is at 268')")
        page.wait_for("document.getElementById('train').disabled === false")
        page.click("#train")
        page.wait_for("document.getElementById('loss').getAttribute('points').split(' ').length > 1")
        page.click("#write")
        page.wait_for("document.getElementById('written').className === 'written done'")
        page.evaluate("Math.random = () => 0; 1")  # the least wait that the gateway's goodbye leads to
        bakery = bakery_of(gateway, "ana@espiga.example")
        assert admin.post(f"/api/tenants/{bakery}/subscription-changed").status_code == 200
        page.wait_for("document.getElementById('state').dataset.state === 'waiting'")
        page.wait_for("document.getElementById('state').dataset.state === 'open'")
        page.wait_for("document.getElementById('train').disabled === false")
        page.click("#leave")
        page.wait_for("fetch('/api/v1/auth/session').then(({ status }) => status === 401)")
        sign_in(page, "ana@espiga.example")
        page.evaluate(SIGN_OUT)
        page.wait_for("document.getElementById('problem').textContent.includes('The session has ended')")
        page.click("#problem button")
        assert page.evaluate("document.activeElement.dataset.email") == "ana@espiga.example"
        assert [error for error in page.errors if "status of 40" not in error] == []
        assert page.evaluate("shown") == []


def test_it_is_for_the_demo_alone(gateway: Gateway, issuer: Any, start_gateway: Any) -> None:
    assert httpx.get(f"{gateway.base_url}/demo").headers["location"] == "/demo/"
    assert httpx.get(f"{gateway.base_url}/demo/other").status_code == 404
    page = httpx.get(f"{gateway.base_url}/demo/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(f"{start_gateway().base_url}/demo/").status_code == 404
