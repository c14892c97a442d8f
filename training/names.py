"""Class names that people take for one: told, never merged."""

import re
import unicodedata
from collections.abc import Iterable

_BETWEEN = r"[\s_\u2010-\u2015-]+"  # spaces, underscores, hyphens and dashes


def likeness(name: str) -> str:
    """What is left of a name without case, accents, compatibility forms, spaces, underscores and hyphens.

    Between two digits a hyphen stays for any of them: "1-2" is "1 2", but not "12".
    """
    letters = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    plain = re.sub(rf"(?<=\d){_BETWEEN}(?=\d)", "-", plain)
    return re.sub(rf"(?<!\d){_BETWEEN}|{_BETWEEN}(?!\d)", "", plain)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The names that differ only in what `likeness` leaves out, in groups of two and more, in their order."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(likeness(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def looks_like(names: Iterable[str]) -> str:
    """What is said of such a group."""
    return (
        f"classes {' and '.join(map(repr, names))} differ only in case, accents, spaces, underscores or hyphens, and "
        "are taken for different classes; if they are one, give their images one name"
    )
