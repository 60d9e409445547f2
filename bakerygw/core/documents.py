"""JSON objects that callers send: strictly read, with the member named that is wrong."""

import json
import unicodedata
from collections.abc import Collection
from typing import Final

from bakerygw.core.problem import Refused, refuse

UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that have no place in one line of text: controls, lone surrogates, line ends."""
SHOWN_CHARS: Final = 64
"""So much of an unknown member's name comes back."""


class _Repeated(Exception):
    """Two members of one object have this name."""

    def __init__(self, member: str) -> None:
        super().__init__(member)
        self.member = member


def read_object(body: bytes, known: Collection[str]) -> dict[str, object]:
    """The members of a JSON object (RFC 8259), each of `known` at most once.

    Raises `Refused` bad-request; `field` names a member that is unknown or repeated.
    """
    try:
        document = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except _Repeated as repeated:
        raise bad_member(repeated.member, "is there twice; send it once") from None
    except (ValueError, RecursionError):
        raise refuse("bad-request", "Send one JSON object in UTF-8 as the body.", reason="json") from None
    if not isinstance(document, dict):
        raise refuse("bad-request", "Send a JSON object as the body, not another kind of value.", reason="json")
    for name in document:
        if name not in known:
            raise bad_member(name, f"is not known here; use {', '.join(known)}")
    return document


def bad_member(name: str, fault: str) -> Refused:
    """The refusal of a body for one of its members, which `fault` tells of in the rest of a sentence."""
    shown = one_line(name[:SHOWN_CHARS])
    return refuse("bad-request", f"The member {shown} {fault}.", reason="member", field=shown)


def one_line(text: str) -> str:
    """The text with `?` for every character that has no place in a line."""
    return "".join("?" if unicodedata.category(char) in UNPRINTABLE else char for char in text)


def is_printable(text: str) -> bool:
    """Whether the text is one line."""
    return all(unicodedata.category(char) not in UNPRINTABLE for char in text)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise _Repeated(name)
        members[name] = value
    return members


def _no_number(text: str) -> float:
    raise ValueError(text)
