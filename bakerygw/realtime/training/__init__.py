"""Training over WebSocket."""
