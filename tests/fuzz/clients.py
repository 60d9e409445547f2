"""Clients of a fuzzed gateway: they send a stream in its pieces, stay or leave, and look at every answer."""

import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Literal

from tests.fuzz.reference import Fault, Incomplete, ReadAnswer, Reading, read_answer, read_requests
from tests.fuzz.services import Record, tag
from tests.fuzz.streams import Stream

PATIENCE_S = 8.0
"""More than any answer takes, and less than the time that a client has for a head or a body."""

Way = Literal["stays", "half-closes", "resets", "leaves", "dawdles"]
WAYS: tuple[Way, ...] = ("stays",) * 8 + ("half-closes", "resets", "leaves", "dawdles")


class Client:
    """One connection to the gateway. `faults` holds every broken promise, `statuses` what was answered."""

    def __init__(self, port: int, record: Record, statuses: Counter[int]) -> None:
        self._port, self._record, self._statuses = port, record, statuses
        self.faults: list[str] = []
        self._received = b""
        self._was_reset = False
        self._end: Literal["open", "orderly", "reset"] = "open"

    def play(self, random: Random, sent: Stream, *, rogue: bool) -> None:
        """Send it all, wait for what is owed, and judge what came."""
        reading = read_requests(sent.data)
        self._record.announce(reading.begun)
        way = random.choice(WAYS)
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._send(sock, random, sent, way)
            if way == "half-closes":
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
            elif way == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if way in ("stays", "dawdles", "half-closes"):
                self._receive(sock, reading, slowly=way == "dawdles")
            if way in ("resets", "leaves"):
                time.sleep(random.choice((0, 0.001, 0.01)))
                return
        self._judge(reading, sent, stays=way in ("stays", "dawdles"), rogue=rogue)

    def _send(self, sock: socket.socket, random: Random, sent: Stream, way: Way) -> None:
        pieces = sent.pieces
        if way in ("resets", "leaves"):
            pieces = pieces[: random.randrange(len(pieces)) + 1]
        try:
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) < 15 and random.random() < 0.5:
                    time.sleep(random.choice((0.0005, 0.0005, 0.003, 0.03)))
        except OSError:
            self._was_reset = True  # the kernel tells of it once only; what had come before is still to be read

    def _receive(self, sock: socket.socket, reading: Reading, *, slowly: bool) -> None:
        deadline = time.monotonic() + PATIENCE_S
        if slowly:
            time.sleep(0.05)
        while not self._has_all(reading):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = sock.recv(100 if slowly else 65536)
            except TimeoutError:
                self.faults.append("the connection hangs")
                return
            except OSError:
                self._end = "reset"
                return
            if not data:
                self._end = "reset" if self._was_reset else "orderly"
                return
            self._received += data

    def _has_all(self, reading: Reading) -> bool:
        """Every whole request is answered, and the gateway may wait for more; else it closes by itself."""
        if reading.end != "open":
            return False
        try:
            answers = self._answers(reading)
        except Fault:
            return True
        return sum(each.complete for each in answers) >= len(reading.requests)

    def _answers(self, reading: Reading) -> list[ReadAnswer]:
        """What has come so far. Raises `Fault` where it is no HTTP."""
        answers: list[ReadAnswer] = []
        at = 0
        with contextlib.suppress(Incomplete):
            while at < len(self._received):
                number = len(answers)
                to_head = number < len(reading.begun) and reading.begun[number].method == b"HEAD"
                answer = read_answer(self._received, at, to_head=to_head, closed=self._end == "orderly")
                answers.append(answer)
                at = answer.end
                if at < 0:
                    raise Fault("a body")
        return answers

    def _judge(self, reading: Reading, sent: Stream, *, stays: bool, rogue: bool) -> None:
        try:
            answers = self._answers(reading)
        except Fault as fault:
            self.faults.append(f"an answer that is no HTTP ({fault}): {self._received!r}")
            return
        self._statuses.update(each.status for each in answers)
        if len(answers) > len(reading.begun) + 1:
            self.faults.append(f"more answers than requests: {self._received!r}")
        for number, answer in enumerate(answers):
            to_unread_head = number >= len(reading.begun) and not answer.body
            if stays and not answer.complete and self._end == "orderly" and not to_unread_head:
                self.faults.append(f"a cut answer on a connection that ended well: {self._received!r}")
            if number < len(reading.begun):
                self._compare(reading.begun[number].target, answer, to_head=reading.begun[number].method == b"HEAD")
        closed = self._end == "reset" or any(b"close" in each.values(b"connection") for each in answers)
        if sent.sound and stays and not rogue and not closed and len(answers) < len(reading.requests):
            self.faults.append(f"a sound request without an answer: {self._received!r}")

    def _compare(self, target: bytes, answer: ReadAnswer, *, to_head: bool) -> None:
        """An answer with a service's tag is that service's answer to this very request, whole only if it was."""
        own = tag(target)
        told = list(self._told(own, to_head=to_head))
        marks = answer.values(b"x-tag")
        foreign = {mark for mark in marks if mark != own and (mark in self._record.sent or mark == b"evil")}
        if foreign and marks not in [each.values(b"x-tag") for each in told]:
            self.faults.append(f"somebody else's answer to {target!r}: {self._received!r}")
        if marks != [own] or not answer.complete:
            return
        if not any(each.complete and (each.status, each.body) == (answer.status, answer.body) for each in told):
            self.faults.append(f"not what the service said to {target!r}: {self._received!r}")

    def _told(self, own: bytes, *, to_head: bool) -> Iterator[ReadAnswer]:
        """What services have answered with this tag, as the reference reads it."""
        for stream in self._record.sent.get(own, []):
            with contextlib.suppress(Fault, Incomplete):
                yield read_answer(stream.data, to_head=to_head, closed=stream.closes)
