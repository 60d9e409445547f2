"""The part of the OpenAPI document about what stays open: the stream of alerts, and how it and sockets are opened."""

from typing import Final

Json = dict[str, object]

STREAM: Final = "/api/v1/alerts/stream"
STREAM_SUMMARY: Final = "Alerts of the tenant as server-sent events"
STREAM_RULES: Final = (
    "Stays open until the client leaves, its token ends, or the gateway says `bye`. The events are `alert` and, with a "
    "JSON object as data, `hello`, `gap`, `degraded`, `tenant-state`, `token-expiring` and `bye`; comments keep the "
    "connection alive. Send the last `id` again to go on behind it, at any instance."
)

IN_QUERY: Final[Json] = {
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "Of `POST /api/v1/alerts/ticket`: opens one stream or socket, once, within 30 s.",
    },
    "token": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The access token, where neither a header nor a ticket can be sent.",
    },
}
"""Credentials that open streams and sockets alone, as browsers send no header fields there."""

_RESUME: Final = "The last `id` that was received: every alert behind it follows, or an event `gap` says why not."


def tenant_parameter() -> Json:
    """The tenant, in the query."""
    schema: Json = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
    return {"name": "tenant_id", "in": "query", "schema": schema, "description": "As `X-Tenant-ID`."}


def stream_parameters() -> list[Json]:
    """Where a client goes on: the header wins."""
    schema: Json = {"type": "string", "maxLength": 128}
    return [
        {"name": "Last-Event-ID", "in": "header", "schema": schema, "description": _RESUME},
        {"name": "last_event_id", "in": "query", "schema": schema, "description": "As `Last-Event-ID`."},
    ]


def stream_content() -> Json:
    """What a stream is made of."""
    return {"text/event-stream": {"schema": {"type": "string"}}}
