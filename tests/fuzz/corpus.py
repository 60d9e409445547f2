"""Streams worth beginning with: what a run once stumbled over, and the classics of request smuggling.

`{0}`, `{1}` and `{2}` stand for targets, `{H}` for what follows them in every head.
"""

from typing import Final

CORPUS: Final = (
    # A reply that ends within the parser's last callback, while a further head has only begun.
    b"POST {0}{H}Content-Length: 5\r\n\r\nhelloPUT {1}{H}Content-Length: 9\r\n\r\nhal",
    # A body over the cap of its route, with requests behind it in the same piece.
    b"POST {0}{H}Transfer-Encoding: chunked\r\n\r\n800\r\n" + b"x" * 2048 + b"\r\n0\r\n\r\n"
    b"GET {1}{H}\r\nGET {2} HTTP/1.1\r\n",
    # A large body, and the next head begun in the same piece.
    b"PUT {0}{H}Content-Length: 1900\r\n\r\n" + b"y" * 1900 + b"GET {1} HTT",
    # CL.TE, TE.CL, TE.TE, and lengths that disagree.
    b"POST {0}{H}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGGET {1} HTTP/1.1\r\n",
    b"POST {0}{H}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGET {1} HTTP/1.1\r\n",
    b"POST {0}{H}Transfer-Encoding: chunked\r\nTransfer-encoding: x\r\n\r\n0\r\n\r\nGET {1} HTTP/1.1\r\n",
    b"POST {0}{H}Content-Length: 0\r\nContent-Length: 44\r\n\r\nGET {1}{H}\r\n",
    # A body of a request that offers another protocol; the last request with more behind it.
    b"POST {0}{H}Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\nGET {1}{H}Connection: close\r\nUpgrade: h2c\r\n\r\nGET {2}{H}\r\n",
    # Waits to be asked for its body, which comes all the same.
    b"PUT {0}{H}Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhiGET {1}{H}\r\n",
    b"GET {0} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET {1} HTTP/1.0\r\nHost: a\r\n\r\n",
)
