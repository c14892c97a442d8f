"""Numbers as clients write them, in paths, queries and headers."""

import re


def natural(text: str, most: int) -> int | None:
    """The number from 0 to `most` that `text` writes in decimal digits; None if it writes no such number.

    Leading zeros are allowed. What is longer than `most` is never converted: Python raises at very long ones.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= len(str(most)) and int(digits) <= most else None


def share(text: str) -> float | None:
    """The number from 0 to 1 that `text` writes as a decimal, such as 0.05; None if it writes no such number."""
    if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,20})?(e-[0-9]{1,3})?", text, re.ASCII | re.IGNORECASE):
        return None
    return found if (found := float(text)) <= 1 else None
