"""Ports for servers that tests start, which nobody else takes before they listen."""

import os
import socket
from collections.abc import Iterator
from itertools import count
from typing import Final

FIRST: Final = 10_000
"""The kernel gives ports from 32768 on (net.ipv4.ip_local_port_range) to whoever connects: one of those that was free a
moment ago may be the near end of somebody's connection by now."""
SHARE: Final = 2_000
"""Of each process that runs tests beside others; there are ten of these below what the kernel gives away."""


def free_ports(number: int) -> list[int]:
    """Loopback TCP ports that nobody listens on, and that this process has not given for long."""
    return [next(_ports) for _ in range(number)]


def _free() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST + worker % 10 * SHARE
    for turn in count(os.getpid() * 7919):  # another run on this machine is likely elsewhere in its share
        port = first + turn % SHARE
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        yield port


_ports: Final = _free()
