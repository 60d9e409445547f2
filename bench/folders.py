"""The temporary folders of the scripts: deleted at their end, or by a later script if they were killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "bakerygw-bench-"
LEFT_S: Final = 3600.0
"""A folder is not taken for left behind while something was made in it so lately."""


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder until the block ends, locked meanwhile; deletes those that were left behind first."""
    tidy(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        lock = os.open(name, os.O_RDONLY)  # the kernel lets go of it however this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def tidy(parent: Path) -> None:
    """Delete the folders that killed scripts left in `parent`: this user's, long untouched, locked by nobody."""
    for folder in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                about = os.fstat(lock)
                if about.st_uid == os.getuid() and time.time() - about.st_mtime > LEFT_S:
                    shutil.rmtree(folder)
            finally:
                os.close(lock)
