"""Shared state behind the ports: embedded in memory, or Redis."""
