"""Alerts over SSE: brought into the history, and given to streams."""
