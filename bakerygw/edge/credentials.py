"""What a request presents as proof of who asks: found here, judged by its `Credentials`."""

from collections.abc import Collection

from bakerygw.core.claims import bearer_token
from bakerygw.core.http import RequestHead
from bakerygw.edge.keys import api_key, is_api_key
from bakerygw.ports import Scheme


def presented(head: RequestHead, accepted: Collection[Scheme]) -> tuple[Scheme, bytes]:
    """The one credential of a request, sound in its form, and its kind, which is one of `accepted`.

    Raises `Refused`: token-missing or token-invalid.
    """
    values = head.fields.get(b"authorization", ())
    if "key" in accepted and is_api_key(values):
        return "key", api_key(values)
    return "bearer", bearer_token(values)
