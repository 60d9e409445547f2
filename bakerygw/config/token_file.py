"""The file in which operators of this machine find an admin token that was made at the start."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

TOKEN_FILE: Final = "bakerygw-admin-token"  # noqa: S105  a file's name


def token_folder(environ: Mapping[str, str]) -> Path:
    """Where the file is: the user's runtime folder, else the working directory."""
    return Path(environ.get("XDG_RUNTIME_DIR") or ".").absolute()


class TokenFile:
    """A token for this user alone. Another process of the same user may put its own in its place at any time."""

    def __init__(self, folder: Path, token: str) -> None:
        """Writes nothing."""
        self.path = folder / TOKEN_FILE
        self._line = token + "\n"

    def write(self) -> None:
        """Put the token there, mode 0600, in one step: a reader finds it whole or not at all. Raises `OSError`."""
        number, name = tempfile.mkstemp(prefix=f".{TOKEN_FILE}-", dir=self.path.parent)
        try:
            with os.fdopen(number, "w") as file:
                file.write(self._line)
            os.replace(name, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def remove(self) -> None:
        """Take the file away if it still holds this token. Never raises: the process is at its end."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if self.path.read_text() == self._line:
                self.path.unlink()
