"""Refresh tokens that are used once, and the sessions of browsers."""
