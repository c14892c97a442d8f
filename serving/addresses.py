"""Which addresses nobody reaches but who is on the same machine."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether it is, as numbers: 127.0.0.1, ::1, ::ffff:127.0.0.1. What is no address is not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
