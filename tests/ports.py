"""Ports for servers that tests start, which nobody else takes before they listen."""

import atexit
import os
import socket
from collections.abc import Iterator
from itertools import count
from typing import Final

FIRST: Final = 10_000
"""The kernel gives ports from 32768 on (net.ipv4.ip_local_port_range) to whoever connects: one of those that was free a
moment ago may be the near end of somebody's connection by now."""
SHARE: Final = 500
SHARES: Final = 40
"""All below what the kernel gives away."""


def free_ports(number: int) -> list[int]:
    """Loopback TCP ports that nobody listens on, and that this process has not given for long."""
    return [next(_ports) for _ in range(number)]


def _free() -> Iterator[int]:
    first = _claimed()
    for turn in count():
        port = first + 1 + turn % (SHARE - 1)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        yield port


def _claimed() -> int:
    """Where a share begins that no other process has: whoever listens on its first port has the rest of it."""
    for turn in range(SHARES):
        first = FIRST + (os.getpid() + turn) % SHARES * SHARE
        try:
            claim = socket.create_server(("127.0.0.1", first))
        except OSError:
            continue
        atexit.register(claim.close)
        return first
    raise RuntimeError(f"each of {SHARES} shares of ports is taken by another run of tests")


_ports: Final = _free()
