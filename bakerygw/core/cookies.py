"""Cookies as far as the gateway reads and sets them itself (RFC 6265): every other one is only passed on."""

from typing import Final

from bakerygw.core.http import RequestHead

REFRESH_COOKIE: Final = b"refresh_token"
"""Where a browser may keep its refresh token, if the auth service sets it so."""


def cookie_values(head: RequestHead, name: bytes, *, any_case: bool = False) -> tuple[bytes, ...]:
    """Every value under this name in all `Cookie` fields, as sent, without the spaces around it.

    `any_case`: under a name in other letters too, which some services take for the same.
    """
    found = []
    for field in head.fields.get(b"cookie", ()):
        for pair in field.split(b";"):
            its_name, equals, text = pair.partition(b"=")
            its_name = its_name.strip(b" \t")
            if equals and (its_name == name or (any_case and its_name.lower() == name.lower())):
                found.append(text.strip(b" \t"))
    return tuple(found)


def set_cookie(name: bytes, text: bytes) -> tuple[bytes, bytes]:
    """A `Set-Cookie` field for a cookie that no script reads, that travels over TLS only and to this host alone.

    It lasts as long as the browser's session; without text it is taken away. The prefix `__Host-` of a name
    binds browsers to all of that, so that no other host of the domain can set it (RFC 6265bis 4.1.3.2).
    """
    ended = b"; Max-Age=0" if not text else b""
    return b"Set-Cookie", name + b"=" + text + b"; Path=/; Secure; HttpOnly; SameSite=Lax" + ended
