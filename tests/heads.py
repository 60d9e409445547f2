"""Request heads for tests, from what a test has to say and nothing more."""

from collections.abc import Sequence

from bakerygw.core.http import RequestHead


def make_head(
    method: str = "GET",
    target: bytes = b"/",
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    body_length: int | None = 0,
    peer: str = "127.0.0.1",
    client: str | None = None,
    trusted: bool = False,
    secure: bool = False,
) -> RequestHead:
    """A head with exactly these header fields: no Host and no framing unless given. `client` defaults to `peer`."""
    path, mark, query = target.partition(b"?")
    fields: dict[bytes, tuple[bytes, ...]] = {}
    for name, value in headers:
        key = name.lower()
        fields[key] = (*fields.get(key, ()), value)
    return RequestHead(
        method=method,
        target=target,
        path=path,
        query=query if mark else None,
        headers=tuple(headers),
        fields=fields,
        length=body_length,
        peer=peer,
        client=peer if client is None else client,
        trusted=trusted,
        secure=secure,
    )
