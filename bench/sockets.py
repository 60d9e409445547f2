"""How long the connections of a process have heard nothing, told by the kernel (`sock_diag`, as for `ss`)."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DUMP: Final = 0x301
_DONE: Final = 3
_ERROR: Final = 2
_INFO: Final = 2
_ESTABLISHED: Final = 1 << 1
_INODE_AT: Final = 68
"""Of the last field of an `inet_diag_msg`; its attributes follow."""
_LAST_RECEIVED_AT: Final = 52
"""Of `tcpi_last_data_recv`, milliseconds, in a `tcp_info`."""
_READ: Final = 1 << 18


def silent(pid: int, port: int, longer_than_s: float) -> int:
    """How many connections of a process to an IPv4 `port` are established and have received nothing for so long.

    0 if the process has ended. Raises `OSError` if the kernel does not tell.
    """
    own = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(os.readlink(link))
    quiet = _established(port).items()
    return sum(1 for inode, ms in quiet if ms > longer_than_s * 1000 and f"socket:[{inode}]" in own)


def _established(port: int) -> dict[int, int]:
    """Milliseconds since bytes last came, by inode, of every connection to `port`."""
    asked = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
    asked += struct.pack("!HH", 0, port) + bytes(44)
    head = struct.pack("=IHHII", 16 + len(asked), _BY_FAMILY, _DUMP, 1, 0)
    found: dict[int, int] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.sendto(head + asked, (0, 0))
        while True:
            data = kernel.recv(_READ)
            found |= dict(received(data))
            if struct.unpack_from("=H", data, 4)[0] == _DONE:
                return found


def received(data: bytes) -> Iterator[tuple[int, int]]:
    """(inode, milliseconds since bytes last came) of each socket in a datagram of the kernel.

    Raises `OSError` for an error that it tells.
    """
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == _ERROR:
            raise OSError(-struct.unpack_from("=i", data, at + 16)[0], "the kernel tells nothing about sockets")
        if kind == _BY_FAMILY:
            yield _socket(data[at + 16 : at + length])
        at += max(16, length + 3 & ~3)


def _socket(message: bytes) -> tuple[int, int]:
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    at = _INODE_AT + 4
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INFO:
            return inode, struct.unpack_from("=I", message, at + 4 + _LAST_RECEIVED_AT)[0]
        at += max(4, length + 3 & ~3)
    return inode, 0
