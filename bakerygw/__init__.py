"""bakerygw: the API gateway of Bakery-IA, one Twisted process for HTTP, SSE and WebSocket."""

from importlib.util import find_spec

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether a request's path runs as machine code here: whether its first module is an extension."""
    spec = find_spec("bakerygw.edge.gateway")
    return spec is not None and not str(spec.origin).endswith(".py")
