"""Moments as text."""

from datetime import UTC, datetime


def iso_time(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC with milliseconds and `Z`; `None` stays `None`."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
