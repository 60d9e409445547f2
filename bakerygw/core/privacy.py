"""What of an address may be kept where nobody is to be told apart."""

from ipaddress import IPv6Address, ip_address
from typing import Final

_KEPT_BITS: Final = {4: 24, 6: 48}
"""Of a network of some hundred households, or of one provider's customer site."""


def truncated(address: str) -> str:
    """The network that an address is in: /24 of IPv4, /48 of IPv6, IPv4-mapped ones as IPv4.

    Of a network that was truncated before the same; of words without dots and colons, such as `unix`, the word; of
    anything else an empty text.
    """
    base, slash, _ = address.partition("/")
    try:
        parsed = ip_address(base.partition("%")[0])
    except ValueError:
        return "" if slash or "." in address or ":" in address else address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    bits = _KEPT_BITS[parsed.version]
    whole = parsed.max_prefixlen
    kept = int(parsed) >> (whole - bits) << (whole - bits)
    return f"{type(parsed)(kept)}/{bits}"
