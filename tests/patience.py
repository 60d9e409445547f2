"""How long tests wait for what has to come."""

from typing import Final

PATIENCE_S: Final = 30.0
"""Enough on a machine that is busy with other things. What has come is waited for no longer: only failures take it."""
