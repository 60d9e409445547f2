"""What stays open: alerts over SSE, and training over WebSocket."""
