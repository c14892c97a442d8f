"""What becomes of a class by an operator's word: renamed, given aliases, retired, restored, merged, un-merged.

Each change is a version that shares the live one's model and says something else of its classes. So it holds at once,
a rollback takes it back, and the history of a class is what versions said of it while they were live.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from lifelist.client.answers import ClassDetail, ClassEvent
from lifelist.deploy import enrol, examples, withdrawn
from lifelist.deploy.naming import Names, class_name, names
from lifelist.deploy.records import now
from lifelist.deploy.workshop import EVALUATION, Workshop
from lifelist.exporter import session
from lifelist.exporter.answering import held_out
from lifelist.exporter.errors import Conflict, Moved, Unavailable
from lifelist.exporter.manifest import ClassEntry, Manifest
from lifelist.exporter.registry import Registry

log = logging.getLogger(__name__)

TRIES = 20


class Wanted(TypedDict, total=False):
    """What is to be said of a class. What is not in it stays as it is, but for an old name, which becomes an alias."""

    name: str
    aliases: list[str]
    retired: bool
    merged_into: int | None


def change(workshop: Workshop, class_id: int, wanted: Wanted, expected_version: int | None = None) -> Manifest:
    """Say something else of a class: the version that does, live now. If live says just that already, it is live.

    All that is wanted is done, or nothing. If live moves meanwhile it is done again upon what is live then, so that
    neither loses what the other brought; with `expected_version`, upon that one only. Missing if there is no such
    class, BadInput for a name that can be none; Conflict says why it cannot be.
    """
    registry = workshop.registry
    for _ in range(TRIES):
        ref = registry.ref("live")
        if ref is None:
            raise Unavailable("no version is live; make one: lifelist base DATA")
        live = registry.manifest(ref.version)
        if expected_version not in (None, live.version):
            raise Conflict(
                f"version {live.version} is live, and you expected {expected_version}; look at the class again"
            )
        called = names(workshop, live)
        before = _entry(live, called, class_id)
        after = _checked(live, called, before, wanted)
        if after == before:
            return live
        draft, files = _draft(workshop, live, after)
        left = (
            version
            for version in enrol.left_over(registry, live, "change")
            if (version.classes, version.former) == (draft.classes, draft.former)
        )
        version = next(left, None) or _publish(registry, live, draft, files)
        try:
            workshop.swap(version.version, ref.generation)
        except Moved:
            continue
        log.info("class.changed", extra={"facts": {"version": version.version, "class": class_id} | dict(wanted)})
        return version
    raise Unavailable(f"live moved {TRIES} times while class {class_id} was changed; try again")


def _entry(live: Manifest, called: Names, class_id: int) -> ClassEntry:
    if (entry := called.said.get(class_id)) is None:
        raise Conflict(
            f"version {live.version}, which is live, does not know class {called.known(class_id).name!r}: it has no "
            "image to train on, or a rollback took it out. Add images of it first"
        )
    return entry


def _checked(live: Manifest, called: Names, before: ClassEntry, wanted: Wanted) -> ClassEntry:
    """The entry as it is wanted; Conflict if that cannot be."""
    name = class_name(wanted["name"]) if "name" in wanted else before.name
    if "aliases" in wanted:
        aliases = [class_name(alias) for alias in wanted["aliases"]]
    else:
        aliases = [*before.aliases, before.name]  # so that whoever uses an old name means the same class
    after = replace(
        before,
        name=name,
        aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != name)),
        retired=(retired := wanted.get("retired", before.retired)),
        merged_into=None if retired else wanted.get("merged_into", before.merged_into),
    )
    for taken in (after.name, *after.aliases):
        if (owner := called.find(taken)) not in (None, after.id):
            raise Conflict(f"the name {taken!r} is that of class {owner}, {called.known(owner).name!r}")
    if retired and (into := wanted.get("merged_into", before.merged_into)) is not None:
        raise Conflict(f"class {name!r} is merged into class {into}; a class is retired or merged: un-merge it first")
    if before.active and not after.active:
        if merged := [entry.name for entry in live.entries if entry.merged_into == after.id]:
            raise Conflict(f"classes {merged} are merged into class {name!r}; un-merge them first")
        if not any(entry.active for entry in live.trained if entry.id != after.id):
            raise Conflict(f"class {name!r} is the last one with a row that answers; one must stay")
    if after.merged_into is not None:
        _check_target(called, after)
    return after


def _check_target(called: Names, entry: ClassEntry) -> None:
    """Conflict unless the class that this one is to be merged into is answered as itself."""
    assert entry.merged_into is not None
    if entry.merged_into == entry.id:
        raise Conflict(f"class {entry.name!r} cannot be merged into itself")
    known = called.known(entry.merged_into)
    target = called.said.get(known.id)
    if target is None or not target.active:
        state = "not known to live" if target is None else "retired" if target.retired else "merged itself"
        raise Conflict(f"class {entry.name!r} cannot be merged into {known.name!r}, which is {state}")


def _draft(workshop: Workshop, live: Manifest, after: ClassEntry) -> tuple[Manifest, dict[str, bytes]]:
    """(draft, files that it does not share): `live` with this entry in the place of the one it has.

    Its known scores are live's: of all held-out images and classes, even where one is retired or merged now.
    """
    draft = replace(live, created_at=now(), kind="change", parent=live.version)
    if after.active and any(entry.id == after.id for entry in live.former):
        return _enrolled_again(workshop, draft, after)
    classes, former = (
        tuple(after if entry.id == after.id else entry for entry in entries) for entries in (live.classes, live.former)
    )
    draft = replace(draft, classes=classes, former=former)
    if draft.instead != live.instead:  # figures and verdict were of other classes
        draft = replace(draft, results={}, gate=())
    return draft, {}


def _enrolled_again(workshop: Workshop, draft: Manifest, after: ClassEntry) -> tuple[Manifest, dict[str, bytes]]:
    """The same for a class whose row is gone: it gets a mean of those of its images that are kept."""
    registry = workshop.registry
    rest = replace(draft, former=tuple(entry for entry in draft.former if entry.id != after.id))
    with workshop.store.writing() as connection:  # marked, if a move to a version before it was stopped half-way
        withdrawn.clear(connection, [after.id])
    if not (images := enrol.waiting_images(workshop, rest, rest).get(after.id)):
        raise Conflict(
            f"an increment has learned without class {after.name!r}, and no image of it to train on is kept; it can "
            "come back by rolling back to a version that has it, and no other way"
        )
    used = enrol.sources(registry, draft)
    loaded, held = session.load(registry, draft.version), held_out(registry, draft)
    waiting = {**used, after.id: images}
    said, files = enrol.with_means(workshop, loaded, waiting, used, names(workshop, rest), held)
    *others, back = said["classes"]
    said["classes"] = (*others, replace(back, name=after.name, aliases=after.aliases))
    return replace(rest, default_answer="nearest_mean", results={}, gate=(), **said), files


def _publish(registry: Registry, live: Manifest, draft: Manifest, files: Mapping[str, bytes]) -> Manifest:
    judged = (draft.results, draft.gate) == (live.results, live.gate)
    shared = [entry for entry in live.files if entry.name not in files and (judged or entry.name != EVALUATION)]
    return registry.publish(draft, files, reuse=shared)


def describe(workshop: Workshop, class_id: int) -> ClassDetail:
    """A class as it is now, and how it came to be so. Missing if there is none."""
    live = workshop.live
    called = names(workshop, live)
    known = called.known(class_id)
    entry = called.said.get(class_id)
    states = {found.id: "former" for found in live.former} if live else {}
    return {
        "version": live.version if live else None,
        "id": known.id,
        "name": known.name,
        "aliases": list(entry.aliases) if entry else [],
        "state": states.get(class_id, examples.state_of(live, class_id)),
        "increment": entry.increment if entry else None,
        "retired": entry.retired if entry else False,
        "merged_into": entry.merged_into if entry else None,
        "images": examples.counts(workshop.store, class_id),
        "history": history(workshop.registry, class_id),
    }


def history(registry: Registry, class_id: int) -> list[ClassEvent]:
    """What versions said of a class, from one that was live to the next, where it differs; rollbacks included."""
    found: list[ClassEvent] = []
    said: dict[int, dict[str, Any]] = {}
    before: dict[str, Any] = {}
    for ref in registry.history("live"):
        if ref.version not in said:
            said[ref.version] = _said(registry.manifest(ref.version), class_id)
        after = said[ref.version]
        differs = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        if differs:
            sides = [{name: side[name] for name in differs if name in side} for side in (before, after)]
            found.append({"at": ref.at, "version": ref.version, "before": sides[0], "after": sides[1]})
        before = after
    return found


def _said(manifest: Manifest, class_id: int) -> dict[str, Any]:
    """What a version says of a class; nothing if it does not know it."""
    for entry in manifest.entries:
        if entry.id == class_id:
            state = "former" if entry in manifest.former else entry.state
            return {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "state": state,
                "retired": entry.retired,
                "merged_into": entry.merged_into,
            }
    return {}
