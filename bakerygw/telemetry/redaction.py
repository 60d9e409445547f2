"""What must not be read in a log: secrets by key name and by shape, and values that would break a record."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import unquote

MASK: Final = "***"
MAX_TEXT: Final = 2048
"""Characters that one field keeps."""
MAX_KEY: Final = 128
MAX_DEPTH: Final = 12
"""An exception inside an exception group inside a field is about this deep."""
MAX_NODES: Final = 2000
"""Values in one record: some chained tracebacks of 50 frames fit."""

_SECRET_KEYS: Final = (
    "authorization",
    "cookie",
    "cookies",
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "token",
    "tokens",
    "ticket",
    "secret",
    "secrets",
    "apikey",
    "privatekey",
    "credential",
    "credentials",
    "csrf",
)
_WORDS: Final = r"token|ticket|password|passwd|pwd|passphrase|secret|api[_-]?key|private[_-]?key"
_PERCENT: Final = r"%(?:25)*"
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # Header fields in prose, dict and tuple notation: the rest of the quoted text, or of the line.
    (
        re.compile(
            r"(?i)((?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-csrf-token)"
            r"""(\\?["']?\s*[:=,]\s*[\[(]*(?:b?\\?["'])?)[^"'\r\n]+"""
        ),
        r"\1\2" + MASK,
    ),
    (re.compile(r"(?i)\b(bearer)(?:(?:\s|,|\+|%20)+)[^\s\"',;&)\]}>]+"), r"\1 " + MASK),
    # A JSON Web Token, or the head of one that was cut.
    (re.compile(r"eyJ[A-Za-z0-9_-]{6,}(?:(?:\.|%2[eE])[A-Za-z0-9_-]*)*"), MASK),
    # An API key, or the head of one that was cut.
    (re.compile(r"(?i)bkry(?:_|%5f)[a-z0-9_%-]+"), MASK),
    (re.compile(r"(?i)\b(apikey)(?:(?:\s|,|\+|%20)+)[^\s\"',;&)\]}>]+"), r"\1 " + MASK),
    # name=value in a query, a form, a repr or JSON; percent-encoded separators too, however often encoded.
    (
        re.compile(
            rf"(?i)((?:{_WORDS})s?)"
            rf"""((?:\\?["']|{_PERCENT}22)?\s*(?:=|:|{_PERCENT}3d|{_PERCENT}3a)\s*(?:b?\\?["']|{_PERCENT}22)?)"""
            rf"""(?:(?<=["'])[^"'\r\n\\]+|(?:(?!{_PERCENT}26|{_PERCENT}22)[^\s&"';,)\]}}<>\\])+)"""
        ),
        r"\1\2" + MASK,
    ),
    (re.compile(r"""://[^\s/?#"'<>]*@"""), f"://{MASK}@"),
    # E-mail addresses. The look-behind lets a run of letters be tried once only, so the cost stays linear.
    (
        re.compile(r"(?i)(?<![a-z0-9._+-])([a-z0-9])[a-z0-9._+-]*(@|%40)((?:[a-z0-9-]+\.)+[a-z]{2,})"),
        r"\1" + MASK + r"\2\3",
    ),
)


def secret_key(name: str) -> bool:
    """Whether a value under this name is a secret, whatever its case, dashes, underscores and prefix."""
    return name.replace("-", "").replace("_", "").lower().endswith(_SECRET_KEYS)


def _masked(text: str) -> str:
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _whole_words(text: str) -> str:
    """The text without its last word, or without its last 1024 characters where that word is longer."""
    end = re.search(r"\s\S*\Z", text[-1024:])
    return text[: -1024 + (end.start() if end else 0)]


def _decoded(text: str) -> str:
    """The text with its percent-encoding undone, three layers deep."""
    for _ in range(3):
        plain = unquote(text, errors="replace")
        if plain == text:
            break
        text = plain
    return text


class Redactor:
    """Makes values fit for a log. `secrets` are known values, masked wherever they stand; short ones are ignored."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Mask these values too, from here on; what was known stays so, for an old secret may still be in use."""
        self._secrets |= {secret for secret in secrets if len(secret) >= 6}
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def knows(self, value: str) -> bool:
        """Whether one of the known values stands in this text."""
        return self._known is not None and self._known.search(value) is not None

    def text(self, value: str) -> str:
        """A string without secrets, valid UTF-8, of at most `MAX_TEXT` characters."""
        if not value.isascii():
            value = value.encode("utf-8", "backslashreplace").decode()
        if len(value) > MAX_TEXT * 4:
            # What is cut off must not leave half a secret behind that no pattern knows: drop the last word too.
            value = _whole_words(value[: MAX_TEXT * 4])
        if self._known is not None:
            value = self._known.sub(MASK, value)
        value = _masked(value)
        if "%" in value:
            decoded = _decoded(value)
            hidden = _masked(decoded)
            if hidden != decoded:
                value = hidden.encode("utf-8", "backslashreplace").decode()
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"

    def record(self, fields: Mapping[str, object]) -> dict[str, object]:
        """A copy of one event's fields, made of plain JSON values, redacted and bounded in depth and size."""
        return _Copy(self.text).mapping(fields, MAX_DEPTH)


class _Copy:
    """One walk through one record, with its budget of values."""

    def __init__(self, text: Callable[[str], str]) -> None:
        self._text = text
        self._left = MAX_NODES

    def mapping(self, fields: Mapping[str, object] | Mapping[object, object], depth: int) -> dict[str, object]:
        copy: dict[str, object] = {}
        for name, value in fields.items():
            if self._left <= 0:
                break
            key = self._key(name)
            copy[key] = MASK if self._hides(key, value) else self.value(value, depth - 1)
        return copy

    def value(self, value: object, depth: int) -> object:
        self._left -= 1
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return int(value)
        if depth > 0 and isinstance(value, Mapping):
            return self.mapping(value, depth)
        if depth > 0 and isinstance(value, list | tuple | set | frozenset):
            return self._items(value, depth)
        return self._text(_shown(value))

    def _items(self, values: Iterable[object], depth: int) -> list[object]:
        items = list(values)
        if len(items) == 2 and isinstance(items[0], str | bytes) and self._hides(self._key(items[0]), items[1]):
            return [self._key(items[0]), MASK]  # a header field as a pair
        copy: list[object] = []
        for item in items:
            if self._left <= 0:
                break
            copy.append(self.value(item, depth - 1))
        return copy

    def _key(self, name: object) -> str:
        return self._text(_shown(name))[:MAX_KEY]

    def _hides(self, key: str, value: object) -> bool:
        return value is not None and not isinstance(value, bool) and secret_key(key)


def _shown(value: object) -> str:
    """`str(value)`, or what can be said where that fails: a log line must not raise."""
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    try:
        return str(value)
    except Exception as error:
        return f"<unprintable {type(value).__name__}: {type(error).__name__}>"
