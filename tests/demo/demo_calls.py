"""Calls on a demo service without a socket."""

import json
from typing import Any
from urllib.parse import parse_qsl

from bakerygw.demo.web import Answer, Call, Service, ServiceError

NOW = 1_750_000_000.0


def answer_of(service: Service, method: str, target: str, body: Any = None, **headers: str) -> Answer:
    """The answer, errors included; `headers` with `_` for `-`; a body of bytes goes as it is, others as JSON."""
    path, _, query = target.partition("?")
    call = Call(
        method=method,
        target=target,
        path=tuple(path.strip("/").split("/")),
        query=dict(parse_qsl(query)),
        headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()),
        body=body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode(),
    )
    try:
        return service(call)
    except ServiceError as error:
        return Answer(status=error.status, body={"detail": error.detail}, headers=error.headers)
