"""What the kernel knows of a process: memory, open files, time on the processor. Linux only."""

import os
import threading
from pathlib import Path
from typing import Final, Self

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident memory."""
    return status_bytes(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"), "VmRSS")


def status_bytes(text: str, field: str) -> int:
    """A size out of a `/proc/<pid>/status`, in bytes. ValueError if it is not there."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"no {field}")


def worker_of(pid: int) -> int:
    """The one worker of an nginx master."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])


def open_files(pid: int) -> int:
    """How many descriptors it has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Seconds on the processor so far, all threads: in the program, and in the kernel on its behalf."""
    return stat_seconds(Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace"))


def stat_seconds(text: str) -> tuple[float, float]:
    """The same out of the text of a `/proc/<pid>/stat`."""
    fields = text.rpartition(")")[2].split()  # a process may have spaces and brackets in its name
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def waited_seconds(pid: int) -> float:
    """Seconds so far in which its main thread could have run and had to wait for a core, as others were on it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


class PeakMemory:
    """As a context manager: the highest resident memory of a process while the block runs, looked at often."""

    def __init__(self, pid: int, every_s: float = 0.02) -> None:
        self.before = self.peak = rss_bytes(pid)
        self._pid, self._every_s = pid, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def growth(self) -> int:
        """Bytes from the beginning to the peak."""
        return self.peak - self.before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                self.peak = max(self.peak, rss_bytes(self._pid))
            except (OSError, ValueError):
                return  # it has ended
