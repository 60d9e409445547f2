"""The part of the OpenAPI document about the stream of alerts."""

from typing import Final

Json = dict[str, object]

STREAM: Final = "/api/v1/alerts/stream"
STREAM_SUMMARY: Final = "Alerts of the tenant as server-sent events"
STREAM_RULES: Final = (
    "Stays open until the client leaves, its token ends, or the gateway says `bye`. The events are `alert` and, with a "
    "JSON object as data, `hello`, `gap`, `degraded`, `tenant-state`, `token-expiring` and `bye`; comments keep the "
    "connection alive. Send the last `id` again to go on behind it, at any instance."
)

_RESUME: Final = "The last `id` that was received: every alert behind it follows, or an event `gap` says why not."


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
