"""Frames of WebSocket, as bytes (RFC 6455 section 5.2)."""

import struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """One frame as a client sends it."""
    size = len(payload)
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    if size < 126:
        head = first + bytes([bit | size])
    elif size < 65536:
        head = first + bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head = first + bytes([bit | 127]) + struct.pack("!Q", size)
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeros changes nothing


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


def parsed(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame, unmasked. AssertionError if something is left, or a frame is no final one."""
    found = []
    while data:
        assert data[0] & 0xF0 == 0x80, "not a final frame"
        opcode, masked, size, start = data[0] & 15, data[1] >> 7, data[1] & 127, 2
        if size >= 126:
            end = 4 if size == 126 else 10
            size, start = int.from_bytes(data[2:end], "big"), end
        mask = data[start : start + 4] if masked else bytes(4)
        start += 4 * masked
        assert len(data) >= start + size, "half a frame"
        pad = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        found.append((opcode, (int.from_bytes(data[start : start + size], "big") ^ pad).to_bytes(size, "big")))
        data = data[start + size :]
    return found
