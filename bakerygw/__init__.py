"""bakerygw: the API gateway of Bakery-IA, one Twisted process for HTTP, SSE and WebSocket."""

__version__ = "0.1.0"
