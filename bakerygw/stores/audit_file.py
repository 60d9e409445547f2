"""The audit trail of a single instance, in files that only their owner may read.

Each ledger is a file of JSON lines and up to `SEGMENTS` older ones beside it (`.1` is the youngest), so that letting go
of what is old is removing a file. The keys are in a file of their own, which an erasure replaces; it is read again
whenever it has changed, for the erasure is another process's.
"""

import errno
import fcntl
import json
import os
import stat
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from math import inf
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from bakerygw.ports import Ledger, StoreUnavailable

SEGMENTS: Final = 8
SEGMENT_BYTES: Final[Mapping[Ledger, int]] = {"events": 8 * 1024 * 1024, "refusals": 2 * 1024 * 1024}
SUFFIX: Final[Mapping[Ledger, str]] = {"events": "", "refusals": ".refusals"}
KEYS_SUFFIX: Final = ".keys"
LOOK_S: Final = 1.0
"""How often it is looked whether keys were erased."""
DAY_S: Final = 86_400.0
SPARE_LINES: Final = 1000
"""A key's line is written anew on each day that it is used; with so many old ones besides the file is written anew."""
READ_BYTES: Final = 512 * 1024
"""Of the end of a file, for its latest entries."""


def is_there(path: Path) -> bool:
    """Whether a trail at `path` was begun and can be seen from here."""
    return any(os.path.exists(f"{path}{suffix}") for suffix in ("", SUFFIX["refusals"], KEYS_SUFFIX))


class FileAudit:
    """`AuditStore` in the files at `path`. Every call is short: no more than a page of data is written at once."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        path: Path,
        *,
        days: int,
        clock: IReactorTime | None,
        erased: Callable[[str], object],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`erased` is told the names of keys that another process has erased, while `open`; `now` is Unix seconds."""
        self._path, self._days, self._erased, self._now = path, days, erased, now
        self._keys_path = path.with_name(path.name + KEYS_SUFFIX)
        self._keys: dict[str, tuple[bytes, float]] = {}
        self._seen: tuple[int, int, int] | None = None
        self._lines = 0
        self._looks = LoopingCall(self._look)
        if clock is not None:
            self._looks.clock = clock

    def open(self) -> None:
        """Begin to look for keys that were erased."""
        if not self._looks.running:
            self._looks.start(LOOK_S, now=False)

    def close(self) -> None:
        """Look no more."""
        if self._looks.running:
            self._looks.stop()

    async def append(self, ledger: Ledger, entries: Sequence[bytes]) -> None:
        """Keep these entries. Raises `StoreUnavailable`."""
        path = self._ledger(ledger)
        with _translated():
            self._turn(path, SEGMENT_BYTES[ledger])
            _append(path, b"".join(entry + b"\n" for entry in entries))

    async def trim(self, ledger: Ledger) -> None:
        """Remove the files of which the last entry is too old. Raises `StoreUnavailable`."""
        path, oldest = self._ledger(ledger), self._now() - self._days * DAY_S
        with _translated():
            for part in (path, *_segments(path)):
                if part.exists() and part.stat().st_mtime < oldest:
                    part.unlink()

    async def keys(self, fresh: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The key of each name. Raises `StoreUnavailable`."""
        if not fresh:
            return {}
        with _translated(), self._locked():
            self._read_keys()
            today = self._now()
            used = {name: self._keys.get(name, (key, 0.0)) for name, key in fresh.items()}
            lines = [_line(name, key, today) for name, (key, since) in used.items() if today - since >= DAY_S]
            if lines:
                _append(self._keys_path, b"".join(lines))
                self._lines += len(lines)
                self._keys |= {name: (key, today) for name, (key, since) in used.items() if today - since >= DAY_S}
                self._seen = _state(self._keys_path)
            if self._lines > 2 * len(self._keys) + SPARE_LINES:
                with suppress(OSError):  # what has room for a line may have none for all of them
                    self._write_keys(self._keys)
        return {name: key for name, (key, _) in used.items()}

    async def key(self, name: str) -> bytes | None:
        """The key of one name. Raises `StoreUnavailable`."""
        with _translated():
            self._read_keys()
        return self._keys.get(name, (None, 0.0))[0]

    async def erase(self, name: str) -> bool:
        """Forget a key for good. Raises `StoreUnavailable`."""
        with _translated(), self._locked():
            self._read_keys()
            before = self._keys
            self._write_keys({its: kept for its, kept in before.items() if its != name})
        return name in before

    async def entries(self, ledger: Ledger) -> AsyncIterator[bytes]:
        """All that is kept, oldest first. Raises `StoreUnavailable`."""
        path = self._ledger(ledger)
        for part in (*reversed(_segments(path)), path):
            with _translated():
                if part.exists():
                    with _opened(part) as lines:
                        for line in lines:
                            if line.endswith(b"\n"):
                                yield line[:-1]

    async def latest(self, ledger: Ledger, count: int) -> Sequence[bytes]:
        """The last so many, newest first, of the youngest file. Raises `StoreUnavailable`."""
        with _translated():
            path = self._ledger(ledger)
            if not path.exists():
                return []
            with _opened(path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - READ_BYTES))
                lines = file.read(READ_BYTES).split(b"\n")
        whole = lines[:-1] if size <= READ_BYTES else lines[1:-1]
        return list(reversed(deque(whole, maxlen=count)))

    def _ledger(self, ledger: Ledger) -> Path:
        return self._path.with_name(self._path.name + SUFFIX[ledger])

    def _turn(self, path: Path, max_bytes: int) -> None:
        """Begin a new file once this one is large, or covers an eighth of the time that entries are kept."""
        try:
            with _opened(path) as file:
                size = os.fstat(file.fileno()).st_size
                began = _when(file.readline())
        except FileNotFoundError:
            return
        if size < max_bytes and self._now() - began < self._days * DAY_S / SEGMENTS:
            return
        parts = _segments(path)
        for older, younger in zip(reversed(parts), [*reversed(parts[:-1]), path], strict=True):
            if younger.exists():
                os.replace(younger, older)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the keys. Raises `BlockingIOError` if another process is at them."""
        self._keys_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(self._keys_path.with_name(self._keys_path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(number)

    def _look(self) -> None:
        try:
            self._read_keys()
        except OSError as error:
            self._log.debug("audit.keys_unreadable", error=str(error))

    def _read_keys(self) -> None:
        """Read the file again if it has changed, and tell of the keys that are gone."""
        seen = _state(self._keys_path)
        if seen == self._seen:
            return
        keys: dict[str, tuple[bytes, float]] = {}
        self._lines = 0
        if seen is not None:
            oldest = self._now() - (self._days + 1) * DAY_S
            with _opened(self._keys_path) as lines:
                for line in lines:
                    self._lines += 1
                    name, key, used = _parsed(line)
                    if used >= oldest:
                        keys[name] = key, used
        gone = self._keys.keys() - keys.keys()
        self._keys, self._seen = keys, seen
        for name in gone:
            self._erased(name)

    def _write_keys(self, keys: dict[str, tuple[bytes, float]]) -> None:
        """Put these keys into the file's place, in one step."""
        new = self._keys_path.with_name(self._keys_path.name + ".new")
        new.unlink(missing_ok=True)
        _append(new, b"".join(_line(name, key, used) for name, (key, used) in keys.items()))
        with suppress(OSError):  # who erases as root must not take the file from the gateway's own user
            about = self._keys_path.stat()
            os.chown(new, about.st_uid, about.st_gid)
        os.replace(new, self._keys_path)
        self._keys, self._lines, self._seen = keys, len(keys), _state(self._keys_path)


def _state(path: Path) -> tuple[int, int, int] | None:
    """By what a changed file is known; `None` if there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _segments(path: Path) -> list[Path]:
    """The older files, youngest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(1, SEGMENTS + 1)]


def _opened(path: Path) -> BinaryIO:
    """The file, to be read. Raises OSError; so also for a device or a pipe, of which reading may have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return path.open("rb")


def _append(path: Path, data: bytes) -> None:
    """Add all of these lines, or none. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size, left = os.fstat(number).st_size, data
        if size and os.pread(number, 1, size - 1) != b"\n":
            left = b"\n" + data  # what a process left half written as it was killed ends here
        try:
            while left:
                left = left[os.write(number, left) :]
        except OSError as error:
            os.ftruncate(number, size)  # half a line would spoil the next one
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(number)


def _when(line: bytes) -> float:
    """The moment of an entry in Unix seconds; of what is none, never."""
    try:
        return datetime.fromisoformat(str(json.loads(line)["when"])).timestamp()
    except (ValueError, KeyError, TypeError, OverflowError):
        return inf


def _line(name: str, key: bytes, used: float) -> bytes:
    return json.dumps([name, b64encode(key).decode("ascii"), int(used)]).encode() + b"\n"


def _parsed(line: bytes) -> tuple[str, bytes, float]:
    """One line of the keys' file; of a torn one, a name that nobody has."""
    try:
        name, key, used = json.loads(line)
        return str(name), b64decode(key), float(used)
    except (ValueError, TypeError):
        return "", b"", 0.0


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{error.filename or 'audit file'}: {error.strerror or error}") from error
