"""Numbers as clients write them, in paths, queries and headers."""


def natural(text: str, most: int) -> int | None:
    """The number from 0 to `most` that `text` writes in decimal digits; None if it writes no such number.

    Leading zeros are allowed. What is longer than `most` is never converted: Python raises at very long ones.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= len(str(most)) and int(digits) <= most else None
