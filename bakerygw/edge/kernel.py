"""What only the operating system knows: how far a client is behind, and how many files may be open."""

import fcntl
import resource
import struct
import termios
from typing import Any


def unsent_bytes(transport: Any) -> int | None:
    """Bytes that were given to the kernel and that the peer has not acknowledged (Linux, `SIOCOUTQ` of tcp(7)).

    Twisted hears of progress only when a large part of the kernel's buffer is free, which for a slow reader takes
    minutes. `None` where the kernel does not say. Of TLS, whose handle is no socket, the connection below is asked.
    """
    try:
        answer = fcntl.ioctl(
            getattr(transport, "transport", transport).getHandle().fileno(), termios.TIOCOUTQ, b"\0" * 4
        )
    except (AttributeError, OSError, ValueError):
        return None
    return int(struct.unpack("i", answer)[0])


class Stall:
    """How long a client has taken nothing of what it is owed. Taking anything at all begins the time anew."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None
        self._unsent: int | None = None

    def begin(self, now: float) -> None:
        """From now on the client owes us a sign of life."""
        self._since, self._unsent = now, None

    def end(self) -> None:
        """It owes us none."""
        self._since = None

    def over(self, transport: Any, now: float) -> bool:
        """Whether it has stalled for longer than the limit; to be asked often."""
        if self._since is None:
            return False
        before, self._unsent = self._unsent, unsent_bytes(transport)
        if before is not None and self._unsent is not None and self._unsent < before:
            self._since = now
        return now - self._since > self._limit_s


def connections_allowed(*, reserve: int) -> int:
    """How many client connections the limit of open files leaves room for, that limit raised as far as allowed.

    A quarter, or `reserve` if that is more, is kept for connections to services, Redis and the admin port.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1_048_576)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass
    return max(16, soft - max(soft // 4, reserve))
