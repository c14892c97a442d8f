"""A new class answers at once: its mean joins those of the live version, whose model stays as it is."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import sqlalchemy as sa

from lifelist.deploy import examples, tables, withdrawn
from lifelist.deploy.naming import Names, names
from lifelist.deploy.records import now
from lifelist.deploy.workshop import EVALUATION, Workshop
from lifelist.exporter import answering, index, provisional, session
from lifelist.exporter.answering import Answering, held_out
from lifelist.exporter.errors import Moved, Unavailable
from lifelist.exporter.fold import Floats, unit
from lifelist.exporter.manifest import ClassEntry, Confidences, KnownScores, Manifest, VersionKind
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.provisional import HeldOut, Provisional
from lifelist.exporter.registry import Registry
from lifelist.exporter.unknowns import calibrate

log = logging.getLogger(__name__)

ENROLLED = "enrolled.json"  # a version's file: {"<class id>": [ids of the images that its mean was made of]}
MOST_IMAGES = 256  # of a class go into its mean: more would hardly move it
TRIES = 20
BATCH = 64  # images

Sources = Mapping[int, Sequence[str]]  # class id → ids of images


class Said(TypedDict):
    """What a version says of its classes, and of itself beside them: fields of its manifest."""

    classes: tuple[ClassEntry, ...]
    known_scores: KnownScores | None
    confidences: Confidences | None


def enrol(workshop: Workshop) -> Manifest | None:
    """Make every class that has training images answerable by nearest mean: the version that does it, live now.

    None if there is nothing to do: no live version yet, or all means are up to date. The new version shares the live
    one's model. If live moves meanwhile, it is done again on what is live then, so that neither loses what the other
    brought. What live has enrolled stays, and so does a mean when some of its images are gone and none has come. A
    version that an earlier call published, and could not make live, is taken before another one is made.
    """
    registry = workshop.registry
    for _ in range(TRIES):
        ref = registry.ref("live")
        if ref is None:
            return None
        live = registry.manifest(ref.version)
        found = sources(registry, live)
        used = {entry.id: found.get(entry.id, []) for entry in live.classes if entry.state == "enrolled"}
        arrived = waiting_images(workshop, live, live)
        wanted = used | {k: images for k, images in arrived.items() if k not in used or set(images) - set(used[k])}
        if wanted == used:
            return None
        left = (version for version in left_over(registry, live, "enrolment") if sources(registry, version) == wanted)
        version = next(left, None) or _publish(workshop, live, wanted, used)
        try:
            workshop.swap(version.version, ref.generation)
        except Moved:
            continue
        facts = {"version": version.version, "classes": [c.name for c in version.classes if c.state == "enrolled"]}
        log.info("classes.enrolled", extra={"facts": facts})
        return version
    raise Unavailable(f"live moved {TRIES} times while classes were enrolled; the images are kept: send one again")


def left_over(registry: Registry, live: Manifest, kind: VersionKind) -> Iterator[Manifest]:
    """The versions of a kind upon `live` that are sound and were never live, the latest first."""
    once_live = {ref.version for ref in registry.history("live")}
    for number in reversed(registry.versions()):
        if number <= live.version:
            break
        found = registry.manifest(number)
        like = found.kind == kind and found.parent == live.version and number not in once_live
        if like and not registry.verify(number):
            yield found


def _publish(workshop: Workshop, live: Manifest, wanted: Sources, used: Sources) -> Manifest:
    """What `live` says of itself and holds for its model is taken over; figures and verdict were of other classes."""
    registry = workshop.registry
    loaded, held = session.load(registry, live.version), held_out(registry, live)
    said, files = with_means(workshop, loaded, wanted, used, names(workshop, live), held)
    draft = replace(
        live,
        created_at=now(),
        kind="enrolment",
        parent=live.version,
        default_answer="nearest_mean",
        results={},
        gate=(),
        **said,
    )
    shared = [entry for entry in live.files if entry.name not in (*files, EVALUATION)]
    return registry.publish(draft, files, reuse=shared)


def situation(workshop: Workshop) -> tuple[object, ...]:
    """What decides whether there is something to enrol, cheap to ask for: if it is as before, there is nothing new."""
    c = tables.examples.c
    with workshop.store.reading() as connection:
        query = sa.select(sa.func.count(), sa.func.max(c.added_at)).where(c.gone_at.is_(None))
        arrived = tuple(connection.execute(query).one())
    return workshop.registry.ref("live"), arrived, frozenset(withdrawn.ids(workshop.store, None))


def waiting_images(workshop: Workshop, model: Manifest, live: Manifest | None) -> dict[int, list[str]]:
    """The images that make the means of the classes without a row in `model`: the first training images of each.

    Classes that an operator took out of `live` are left out, and so are those that it has retired, or merged into
    another as which `model` has learned their images.
    """
    without = {entry.id for entry in model.trained} | withdrawn.ids(workshop.store, live)
    absorbed = {entry.id for entry in model.former}
    for entry in live.entries if live else ():
        if entry.retired or (entry.merged_into is not None and entry.id in absorbed):
            without.add(entry.id)
    found: dict[int, list[str]] = {}
    for example in examples.kept(workshop.store):
        if example.role == "training" and example.class_id not in without:
            of_class = found.setdefault(example.class_id, [])
            if len(of_class) < MOST_IMAGES:
                of_class.append(example.sha256)
    return found


def sources(registry: Registry, version: Manifest) -> dict[int, list[str]]:
    """The images that the means of a version's enrolled classes were made of."""
    if all(entry.name != ENROLLED for entry in version.files):  # it enrols nothing
        return {}
    return {int(class_id): ids for class_id, ids in json.loads(registry.read(version, ENROLLED)).items()}


def with_means(
    workshop: Workshop,
    loaded: session.Loaded,
    waiting: Sources,
    used: Sources,
    called: Names,
    held: HeldOut | None,
) -> tuple[Said, dict[str, bytes]]:
    """(fields of its manifest, files) of a version that answers as `loaded` does, and the `waiting` classes by means.

    A mean that `loaded` has of just the same images (`used`) is taken over; the others are computed, with its model.
    What is said of the classes is what live says (`called`). With `held`, they have provisional rows too, and known
    scores and confidences are of held-out images beside all these means and rows.
    """
    model = loaded.manifest
    known = dict(zip(loaded.means.ids, loaded.means.means(), strict=True))
    means, new = [known[entry.id] for entry in model.trained], []
    for class_id, ids in waiting.items():
        if used.get(class_id) == ids:
            means.append(known[class_id])
        else:
            new.append(class_id)
            images = examples.pixels(workshop, ids, model.preprocess)
            means.append(class_mean(loaded, images, mirrored=bool(model.options.get("flip"))))
    following = 1 + max(entry.increment for entry in model.trained)
    enrolled = [ClassEntry(class_id, called.known(class_id).name, "enrolled", following) for class_id in waiting]
    classes = tuple(called.entry(entry) for entry in (*model.trained, *enrolled))
    stacked, class_ids = np.stack(means), [entry.id for entry in classes]
    if (*loaded.means.ids, *new) == tuple(class_ids):  # the others stay as they are, and where they are
        data = index.extended(loaded.means, new, stacked[len(loaded.means.ids) :])
    else:
        data = index.build(class_ids, stacked)
    files = {
        answering.MEANS: data,
        ENROLLED: json.dumps({str(class_id): list(ids) for class_id, ids in waiting.items()}).encode(),
    }
    if held is None:
        return {"classes": classes, "known_scores": None, "confidences": None}, files
    rows = None
    if enrolled:
        scale, offset = held.fit(unit(stacked[-len(enrolled) :]), workshop.settings.examples.provisional_loss)
        rows = Provisional(tuple(waiting), scale, offset)
        files[provisional.FILE] = rows.as_bytes()
    without = tuple(entry for entry in model.former if entry.id not in class_ids)
    draft = replace(model, classes=classes, former=without)
    made = Answering(manifest=draft, means=index.load(data, stacked.shape[1]), provisional=rows)
    scores = calibrate(held, unit(stacked), rows)
    return {"classes": classes, "known_scores": scores, "confidences": made.fitted(held)}, files


def class_mean(loaded: session.Loaded, images: Pixels, *, mirrored: bool) -> Floats:
    """The unit mean of a class's embeddings, D float32, of N×S×S×3 uint8 images, N ≥ 1.

    With `mirrored`, half of it comes from the images' mirror images, as iCaRL's class means do (Rebuffi et al. 2017,
    in the authors' code); the model was then trained on such ones too.
    """
    shown = [images, images[:, :, ::-1]] if mirrored else [images]
    batches = [view[start : start + BATCH] for view in shown for start in range(0, len(view), BATCH)]
    return unit(np.concatenate([loaded.run(batch)[1] for batch in batches]).mean(axis=0, dtype=np.float64))
