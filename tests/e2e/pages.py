"""Pages of an origin of their own, for a browser to open."""

import shutil
import tempfile
from collections.abc import Iterable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self

WEB = Path(__file__).parent / "web"
EMPTY = '<!doctype html><html lang="en"><title>tests</title><link rel="icon" href="data:,">'


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Pages:
    """Serves an empty page, and copies of `files`, on a free port; a context manager."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bakerygw-pages-")
        folder = Path(self._folder.name)
        (folder / "index.html").write_text(EMPTY, encoding="utf-8")
        for file in files:
            shutil.copy(file, folder)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)
        self._folder.cleanup()
