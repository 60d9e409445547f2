"""Refresh tokens as clients present them, read so strictly that no service can read another one there."""

import binascii
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import field
from hashlib import sha256
from typing import Final

from bakerygw.core.claims import MAX_TOKEN_BYTES, MAX_UNIX_S, ClaimsError, is_id, strict_object
from bakerygw.core.cookies import REFRESH_COOKIE, cookie_values
from bakerygw.core.http import RequestHead
from bakerygw.core.problem import Refused, refuse
from bakerygw.core.values import value

MEMBER: Final = "refresh_token"
MAX_BODY_BYTES: Final = 16 * 1024
"""Of a request that refreshes or signs out."""
OPAQUE_S: Final = 30 * 86_400.0
"""How long a token that says nothing of its end is remembered."""
MAX_REMEMBERED_S: Final = 400 * 86_400.0
"""The longest that one is, whatever it says: longer than any cookie lasts (RFC 6265bis 5.5)."""

_SPELT: Final = re.compile(r"[!-~]+")
# What no parser of cookies decodes, unquotes or strips.
_SPELT_IN_COOKIE: Final = re.compile(r"[A-Za-z0-9._~+/=|:-]+")
# Where parsers begin another cookie that take spaces (as Python's) or commas (RFC 2965 3.3.4) for an end, too.
_WITHIN_COOKIE: Final = re.compile(rb"[,\s]refresh_token[ \t]*=[ \t]*([^;,\s]*)", re.IGNORECASE)
_JSON: Final = re.compile(rb'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?[ \t]*', re.IGNORECASE)
_NOT_LETTERS: Final = re.compile(r"[^a-z]")


@value
class RefreshToken:
    """One refresh token. What it says of itself is unverified."""

    text: str = field(repr=False)
    digest: str
    """SHA-256 in hexadecimal, of `header.payload` for a JSON Web Token, else of the whole."""
    exp: float | None
    """Unix seconds; `None` for an opaque one."""
    user_id: str | None

    def remembered_s(self, now: float, leeway_s: float) -> float:
        """For how long it is to be known that it was used. `now` in Unix seconds."""
        if self.exp is None or self.exp + leeway_s <= now:
            return OPAQUE_S  # a service that takes it does not look at its `exp` either
        return min(self.exp + leeway_s - now, MAX_REMEMBERED_S)


def refresh_token(text: str) -> RefreshToken:
    """The token of this text. Raises `Refused` bad-request for what no service should take for one."""
    if len(text) > MAX_TOKEN_BYTES or _SPELT.fullmatch(text) is None:
        raise _unread(f"A refresh token is 1 to {MAX_TOKEN_BYTES} printable ASCII characters without spaces.", "form")
    signed, _, _ = text.rpartition(".")
    said = _payload(signed)
    if said is None:
        return RefreshToken(text=text, digest=sha256(text.encode()).hexdigest(), exp=None, user_id=None)
    exp, user_id = said.get("exp"), said.get("user_id", said.get("sub"))
    return RefreshToken(
        text=text,
        digest=sha256(signed.encode()).hexdigest(),
        exp=_unix_s(exp),
        user_id=user_id if isinstance(user_id, str) and is_id(user_id) else None,
    )


def token_of_request(head: RequestHead, body: bytes) -> RefreshToken | None:
    """The one refresh token in a request's JSON body or cookie; `None` if it holds none.

    Raises `Refused` bad-request for everything in which a service might read a token, or another one, than the
    gateway does: other media types, codings and character sets, a query, names that only resemble the member's, a
    member that occurs twice, and two tokens that differ.
    """
    if head.query:
        raise _unread("Send no query here; the refresh token belongs into the body.", "query")
    texts = {*_in_cookies(head), *_in_body(head, body)}
    if len(texts) > 1:
        raise _unread("Body and cookies hold different refresh tokens; send one.", "two-tokens")
    return refresh_token(texts.pop()) if texts else None


def _in_cookies(head: RequestHead) -> set[str]:
    found = list(cookie_values(head, REFRESH_COOKIE, any_case=True))
    for line in head.fields.get(b"cookie", ()):
        found += _WITHIN_COOKIE.findall(line)
    texts = {text.decode("latin-1") for text in found}
    if not all(map(_SPELT_IN_COOKIE.fullmatch, texts)):
        raise _unread("The cookie refresh_token holds characters that no token has.", "cookie")
    return texts


def _in_body(head: RequestHead, body: bytes) -> set[str]:
    for coding in head.fields.get(b"content-encoding", ()):
        if coding.strip().lower() not in (b"", b"identity"):
            raise _unread("Send the body as it is, without a Content-Encoding.", "coding")
    if not body:
        return set()
    types = head.fields.get(b"content-type", ())
    if len(types) != 1 or _JSON.fullmatch(types[0].strip(b" \t")) is None:
        raise _unread("Send the body as one application/json in UTF-8.", "media-type")
    try:
        document = strict_object(body)
    except ClaimsError as error:
        raise _unread("The body must be a JSON object in UTF-8 that names no member twice.", error.reason) from None
    alike = [name for name in document if _NOT_LETTERS.sub("", name.casefold()) == "refreshtoken"]
    if not alike:
        return set()
    text = document.get(MEMBER)
    if alike != [MEMBER] or not isinstance(text, str):
        raise _unread("Name the refresh token 'refresh_token', once, and give it as a text.", "member")
    return {text}


def _payload(signed: str) -> Mapping[str, object] | None:
    """The claims of a JSON Web Token, by its `header.payload`; `None` for anything else.

    The header must decode: an opaque token may hold dots too, and two of those must not have one digest.
    """
    parts = signed.split(".")
    if len(parts) != 2:
        return None
    header, payload = map(_decoded, parts)
    if header is None or "alg" not in header:
        return None
    return payload if payload is not None else {}


def _decoded(segment: str) -> Mapping[str, object] | None:
    try:
        return strict_object(urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (ClaimsError, binascii.Error, ValueError):
        return None


def _unix_s(said: object) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= MAX_UNIX_S:
        return None
    return float(said)


def _unread(detail: str, reason: str) -> Refused:
    return refuse("bad-request", detail, reason="refresh-" + reason)
