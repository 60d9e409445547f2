"""An issuer's key set on a real port, that rotates, hangs, sends rubbish and goes down as a test says."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from jwt.algorithms import RSAAlgorithm

from tests.e2e.harness import free_ports
from tests.minting import Issuer


def jwk(issuer: Issuer, kid: str) -> dict[str, Any]:
    """An RSA issuer's public key as it is published."""
    return {**json.loads(RSAAlgorithm.to_jwk(issuer.key.public_key())), "kid": kid, "use": "sig", "alg": "RS256"}


def token(issuer: Issuer, kid: str, **claims: Any) -> str:
    """A good token that names its key."""
    return issuer.with_header({"kid": kid}, **claims)


class KeySetServer:
    """Serves `body`. As a context manager it is there inside; `stop` and `start` keep the port."""

    def __init__(self, body: bytes = b"", *, tls: ssl.SSLContext | None = None) -> None:
        self.body, self.status, self.headers = body, 200, dict[str, str]()
        self.asked = 0
        self.goes_on = threading.Event()
        """While this is not set, whoever asks waits."""
        self.goes_on.set()
        self._tls = tls
        (self._port,) = free_ports(1)
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        scheme, host = ("https", "localhost") if self._tls else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self._port}/.well-known/jwks.json"

    def publish(self, **issuers: Issuer) -> None:
        """Serve the keys of these issuers, by their ids."""
        self.body = json.dumps({"keys": [jwk(issuer, kid) for kid, issuer in issuers.items()]}).encode()

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                outer.goes_on.wait(60)
                self.send_response(outer.status)
                for name, value in {"Content-Length": str(len(outer.body)), **outer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass  # a client that has given up is no error here

        self._server = Server(("127.0.0.1", self._port), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.goes_on.set()
        self.stop()
