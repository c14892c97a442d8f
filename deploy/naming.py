"""Who is meant by a name, and what a class is called.

What live says of its classes holds: names, aliases, what is retired and merged. So a rollback takes back what a later
version said. The database has the name under which a class came; it stays that class's own, whatever it is called now,
and is its name where live does not know it.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from lifelist.deploy import tables
from lifelist.deploy.records import KnownClass
from lifelist.deploy.sources import nearest
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import BadInput, Conflict, Missing
from lifelist.exporter.manifest import ClassEntry, Manifest

LONGEST_NAME = 100  # characters


def class_name(text: str) -> str:
    """The name as it is kept: Unicode's form NFC, without space around it. BadInput says what a name may be."""
    name = unicodedata.normalize("NFC", text).strip()
    if not 1 <= len(name) <= LONGEST_NAME:
        raise BadInput(f"a class name has 1 to {LONGEST_NAME} characters; {text[:40]!r} has {len(name)}")
    if unseen := [c for c in name if unicodedata.category(c) in ("Cc", "Cs")]:
        raise BadInput(f"a class name has no control characters; {name[:40]!r} has {unseen[0]!r}")
    return name


class Names:
    """All classes, as the database and a live version know them at one moment."""

    def __init__(self, registered: Iterable[KnownClass], live: Manifest | None) -> None:
        self.registered = {known.id: known.name for known in registered}
        self.said = {entry.id: entry for entry in live.entries} if live else {}
        self.instead = live.instead if live else {}
        self._ids = {name: class_id for class_id, name in self.registered.items()}
        self._ids |= {alias: entry.id for entry in self.said.values() for alias in entry.aliases}
        self._ids |= {entry.name: entry.id for entry in self.said.values()}

    @property
    def ids(self) -> list[int]:
        """Of all classes, in order of arrival."""
        return sorted({*self.registered, *self.said})

    def known(self, class_id: int) -> KnownClass:
        """The class as it is called now. Missing if there is none."""
        if (entry := self.said.get(class_id)) is not None:
            return KnownClass(class_id, entry.name)
        if (name := self.registered.get(class_id)) is None:
            raise Missing(f"no class has id {class_id}; ids go up to {max(self.ids, default=0)}")
        if self._ids[name] != class_id:  # live has come to use its name for another class
            name = f"{name[: LONGEST_NAME - 20]} ({class_id})"
        return KnownClass(class_id, name)

    def find(self, name: str) -> int | None:
        """The id of the class that has this name, or has it as an alias, or came under it."""
        return self._ids.get(unicodedata.normalize("NFC", name).strip())

    def meant(self, name_or_id: str | int) -> KnownClass:
        """The class of that name, else of that id (also written as text). Missing names the nearest."""
        found = self.find(name_or_id) if isinstance(name_or_id, str) else None
        if found is None:
            found = next((class_id for class_id in self.ids if str(class_id) == str(name_or_id)), None)
        if found is None:
            hint = nearest(str(name_or_id), list(self._ids))
            raise Missing(f"no class is named {name_or_id!r} or has that id; {len(self.ids)} are known.{hint}")
        return self.known(found)

    def learned_as(self, known: KnownClass) -> KnownClass:
        """The class that images of this one are learned as: itself, or what it is merged into. Conflict if retired."""
        target = self.instead.get(known.id, known.id)
        if target is None:
            raise Conflict(
                f"class {known.name!r} is retired; restore it first: `lifelist classes restore {known.id}`, or PATCH "
                f'/v1/classes/{known.id} {{"retired": false}}'
            )
        return self.known(target)

    def entry(self, entry: ClassEntry) -> ClassEntry:
        """An entry of a version, with what live says of that class."""
        said = self.said.get(entry.id)
        if said is None:
            return replace(entry, name=self.known(entry.id).name)
        return replace(entry, name=said.name, aliases=said.aliases, retired=said.retired, merged_into=said.merged_into)


def names(workshop: Workshop, live: Manifest | None) -> Names:
    """All classes that the database or `live` knows."""
    return Names(workshop.store.classes(), live)


def names_in(connection: sa.Connection, live: Manifest | None) -> Names:
    """The same, within a transaction."""
    rows: Any = connection.execute(sa.select(tables.classes.c.id, tables.classes.c.name))
    return Names([KnownClass(*row) for row in rows], live)


def learned_as(class_ids: Iterable[int], live: Manifest | None) -> list[int]:
    """The classes as which images of these are learned, each once: of merged ones the target, of retired ones none."""
    instead = live.instead if live else {}
    answered = dict.fromkeys(instead.get(class_id, class_id) for class_id in class_ids)
    return [class_id for class_id in answered if class_id is not None]
