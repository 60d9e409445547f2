"""What the pages and calls of the gateway's own have in common."""

import dataclasses
import json

from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.problem import Problem, Refused


def json_reply(document: object, *, status: int = 200, headers: Pairs = ()) -> Reply:
    """A JSON answer that nobody may store: keys sorted, dataclasses as objects, sets as sorted lists."""
    body = json.dumps(document, ensure_ascii=False, sort_keys=True, allow_nan=False, default=_plain).encode()
    own = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))
    return Reply(status=status, headers=(*own, *headers), body=body)


def read_only_method(head: RequestHead) -> None:
    """Raise `method-not-allowed` with `Allow` (RFC 9110 section 10.2.1) unless the method is GET or HEAD."""
    if head.method not in ("GET", "HEAD"):
        raise Refused(
            Problem(code="method-not-allowed", detail="Use GET or HEAD here.", headers=((b"Allow", b"GET, HEAD"),))
        )


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
