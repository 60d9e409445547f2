"""Alerts on their way to the notification service."""
