"""A real browser for tests: Debian's Chromium without a window, spoken to over the DevTools protocol.

One `Browser` for a module, one `Page` for each tab; what a page prints and what goes wrong in it is kept. Everything
has a time limit, and the process and all its children are killed at the end.
"""

import base64
import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.patience import PATIENCE_S

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--mute-audio",
    "--remote-debugging-port=0",
)
START_S: Final = 60.0
ANSWER_S: Final = 60.0


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class PageError(Exception):
    """What a page's script threw, or a command that the browser refused."""


class Browser:
    """One Chromium with a profile of its own; a context manager."""

    def __init__(self, *flags: str) -> None:
        """`flags` come after the usual ones."""
        found = chromium()
        if found is None:
            raise RuntimeError("no Chromium here; on Debian: apt install chromium")
        self._profile = tempfile.mkdtemp(prefix="bakerygw-chromium-")
        self._command = [found, *FLAGS, *flags, f"--user-data-dir={self._profile}", "about:blank"]
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Any = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "HOME": self._profile},
            )
            url = self._devtools_url()
            opening = connect(url, max_size=None, compression=None, proxy=None, open_timeout=START_S)
            self._socket = self._held.enter_context(opening)
            threading.Thread(target=self._read, daemon=True).start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean_up()

    def context(self) -> str:
        """A profile of its own for pages, which shares neither cookies nor storage nor tabs with others."""
        made: str = self.command("Target.createBrowserContext")["browserContextId"]
        return made

    def page(
        self, url: str | None = None, *, context: str | None = None, width: int = 1280, height: int = 900
    ) -> "Page":
        """A new tab that shows `url`; a context manager, which closes it."""
        where = {"browserContextId": context} if context else {}
        target = self.command("Target.createTarget", {"url": "about:blank", **where})["targetId"]
        session = self.command("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, target, session)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.command(f"{domain}.enable")
        page.show_as(width=width, height=height)
        if url is not None:
            page.open(url)
        return page

    def command(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        session: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> dict[str, Any]:
        """The result of a DevTools command. Raises `PageError`, `TimeoutError`."""
        number = next(self._numbers)
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": params or {}}
        try:
            self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
            said = answer.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no answer to {method} within {timeout_s} s") from None
        finally:
            self._answers.pop(number, None)
        if "error" in said:
            raise PageError(f"{method}: {said['error'].get('message')}")
        result: dict[str, Any] = said["result"]
        return result

    def forget(self, session: str) -> None:
        """The page of this session is closed."""
        self._pages.pop(session, None)

    def _devtools_url(self) -> str:
        assert self._process is not None
        port_file = Path(self._profile) / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                port, path = port_file.read_text().splitlines()[:2]
                return f"ws://127.0.0.1:{int(port)}{path}"
            if self._process.poll() is not None:
                raise RuntimeError(f"Chromium ended with {self._process.returncode}")
            time.sleep(0.02)
        raise TimeoutError(f"Chromium has not started within {START_S} s")

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for text in self._socket:
                said = json.loads(text)
                if "id" in said:
                    waiting = self._answers.get(said["id"])
                    if waiting is not None:
                        waiting.put(said)
                elif (page := self._pages.get(said.get("sessionId", ""))) is not None:
                    page.told(said["method"], said["params"])

    def _clean_up(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE_S)
        self._held.close()
        for _ in range(50):  # its children may still write
            shutil.rmtree(self._profile, ignore_errors=True)
            if not Path(self._profile).exists():
                return
            time.sleep(0.02)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        self._loaded = threading.Event()
        self._closed = False
        self.console: list[str] = []
        """All that was printed to the console, `level: text`."""
        self.errors: list[str] = []
        """What went wrong: uncaught exceptions, errors in the console, resources that failed to load."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            print(f"--- console of the page\n{chr(10).join(self.console)}\n--- errors\n{chr(10).join(self.errors)}")
        with contextlib.suppress(PageError, TimeoutError, ConnectionClosed):
            self.close()

    def command(self, method: str, timeout_s: float = ANSWER_S, **params: Any) -> dict[str, Any]:
        """The result of a DevTools command to this tab. Raises `PageError`, `TimeoutError`."""
        return self._browser.command(method, params, session=self._session, timeout_s=timeout_s)

    def open(self, url: str, timeout_s: float = ANSWER_S) -> None:
        """Go there, and wait until it is loaded. Raises `PageError` if it can't be reached."""
        self._loaded.clear()
        failed = self.command("Page.navigate", url=url).get("errorText")
        if failed:
            raise PageError(f"{url}: {failed}")
        self._wait_until_loaded(timeout_s)

    def reload(self, timeout_s: float = ANSWER_S) -> None:
        """Load it anew, and wait for that."""
        self._loaded.clear()
        self.command("Page.reload")
        self._wait_until_loaded(timeout_s)

    def evaluate(self, expression: str, timeout_s: float = ANSWER_S) -> Any:
        """The value of a JavaScript expression, awaited, as JSON has it. Raises `PageError` with what was thrown."""
        said = self.command(
            "Runtime.evaluate",
            timeout_s=timeout_s,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            replMode=False,
        )
        if "exceptionDetails" in said:
            raise PageError(_thrown(said["exceptionDetails"]))
        return said["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = PATIENCE_S) -> Any:
        """The expression's value as soon as it is truthy. Raises `TimeoutError` with what it was last."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                value = self.evaluate(expression)
            except PageError as error:
                value, thrown = None, error
            else:
                thrown = None
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s} s: {expression}; {thrown or value!r}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What a person reads there; PageError if there is no such element."""
        text: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def click(self, selector: str, *, times: int = 1) -> None:
        """Press the mouse in the middle of an element, brought into view first. PageError if there is none.

        More than one time in quick succession is a double click.
        """
        at = self.evaluate(
            f"""(() => {{
                const it = document.querySelector({json.dumps(selector)});
                it.scrollIntoView({{ block: "center", behavior: "instant" }});
                const box = it.getBoundingClientRect();
                return {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }};
            }})()"""
        )
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=count, **at)

    def type(self, selector: str, text: str) -> None:
        """Put the focus there and write, in place of what was written there. PageError if there is no such element."""
        self.evaluate(f"(it => {{ it.focus(); it.select?.(); }})(document.querySelector({json.dumps(selector)}))")
        self.command("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One key, by its name in `KeyboardEvent.key`: Enter, Tab, Escape, ArrowDown or a space."""
        code, number, text = _KEYS[key]
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.command("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.command("Input.dispatchKeyEvent", type="keyUp", **about)

    def offline(self, away: bool = True) -> None:
        """Cut this tab off from the network, or have it back; the page is told so."""
        self.command(
            "Network.emulateNetworkConditions", offline=away, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def show_as(self, *, width: int, height: int, dark: bool = False, scale: float = 1, mobile: bool = False) -> None:
        """The size of the window in CSS pixels, and what the person prefers."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is in view, or of the whole page."""
        taken = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """Close the tab, as a person does; harmless if it is closed."""
        if self._closed:
            return
        self._closed = True
        self._browser.forget(self._session)
        self._browser.command("Target.closeTarget", {"targetId": self._target})

    def told(self, method: str, params: dict[str, Any]) -> None:
        """An event of this tab, from the reading thread."""
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.consoleAPICalled":
            said = " ".join(str(it.get("value", it.get("description", it["type"]))) for it in params["args"])
            self.console.append(f"{params['type']}: {said}")
            if params["type"] in {"error", "assert"}:
                self.errors.append(said)
        elif method == "Runtime.exceptionThrown":
            self.errors.append(_thrown(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())

    def _wait_until_loaded(self, timeout_s: float) -> None:
        if not self._loaded.wait(timeout_s):
            raise TimeoutError(f"not loaded within {timeout_s} s")


_KEYS: Final[Mapping[str, tuple[str, int, str]]] = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    " ": ("Space", 32, " "),
}


def _thrown(details: dict[str, Any]) -> str:
    exception = details.get("exception", {})
    return str(exception.get("description") or exception.get("value") or details.get("text"))
