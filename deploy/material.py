"""What an increment is given: images by their roles, the teacher and its memory, out of the store and the registry.

Classes that live has retired or merged are dropped here: training is given a teacher that never had their rows, and the
images of a merged class as its target's.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from lifelist.deploy import examples
from lifelist.deploy.naming import Names, learned_as, names
from lifelist.deploy.records import KnownClass, Rollout
from lifelist.deploy.workshop import CHECKPOINT, STATISTICS, Workshop, memory
from lifelist.exporter.errors import Failed
from lifelist.exporter.manifest import BiasCorrection, ClassEntry, Manifest
from lifelist.exporter.registry import Registry
from lifelist.training.checkpoint import pack, unpack
from lifelist.training.data import Images
from lifelist.training.job import Class, Task
from lifelist.training.options import TrainingOptions
from lifelist.training.pixels import Collector, Pixels
from lifelist.training.statistics import Statistics, add, as_bytes, from_bytes


def gathered(workshop: Workshop, rollout: Rollout) -> tuple[Task, Manifest | None]:
    """What training is given, and the version that it learns from: what is live now. Failed if it cannot go on."""
    live = workshop.live
    old = live.staying if live else ()
    trained, called = {entry.id for entry in old}, names(workshop, live)
    named = _named(rollout, live, called)
    new, refreshed = [c for c in named if c.id not in trained], [c for c in named if c.id in trained]
    chosen = examples.waiting(workshop, live, [c.id for c in named])
    news = Counter(example.class_id for example in chosen if example.role == "training")
    if live and (again := [c.name for c in refreshed if not news[c.id]]):
        raise Failed(
            f"classes {again} were trained by another increment meanwhile: version {live.version} has learned from all "
            "of their images"
        )
    options = _options(workshop.settings.training, rollout.method, live)
    if live:
        kept = {e.sha256: e for e in examples.learned(workshop.store, live) if e.class_id in trained}
        own, absorbed = _remembered(workshop.registry, live, kept)
        news.update(example.class_id for example in absorbed if example.role == "training")
        judged = [example for example in kept.values() if example.role == "gate"]
        # of a class's training images the new ones are last
        chosen = [*own, *absorbed, *judged, *(e for e in chosen if not (e.class_id in trained and e.role == "gate"))]
    task = Task(
        options=options,
        old=tuple(Class(entry.id, entry.name) for entry in old),
        new=tuple(Class(known.id, known.name) for known in new),
        refreshed={entry.id: news[entry.id] for entry in old if news[entry.id]},
        heads=_heads(old),
        images=Images(
            _pixels(workshop, [e.sha256 for e in chosen], options),
            torch.tensor([e.class_id for e in chosen]),
            tuple(e.sha256 for e in chosen),
        ),
        roles=torch.tensor([examples.ROLES.index(e.role) for e in chosen], dtype=torch.uint8),
        teacher=_teacher(workshop.registry, live) if live else None,
        statistics=_statistics(workshop.registry, live),
        pretrained=str(live.options.get("pretrained", "")) if live else "",
        bias=_bias(live) if live else None,
        mean=live.preprocess.mean if live else None,
        std=live.preprocess.std if live else None,
    )
    return task, live


def _named(rollout: Rollout, live: Manifest | None, called: Names) -> list[KnownClass]:
    """The classes that were asked for, each once, as they are learned now. Failed if none is left."""
    if not (found := [called.known(class_id) for class_id in learned_as(rollout.class_ids, live)]):
        asked = [called.known(class_id).name for class_id in rollout.class_ids]
        raise Failed(f"classes {asked} were retired since increment {rollout.id} was asked for")
    return found


def _remembered(
    registry: Registry, live: Manifest, kept: Mapping[str, examples.Example]
) -> tuple[list[examples.Example], list[examples.Example]]:
    """The memory of the classes that stay, and that of classes which were merged into them since: it is news to them.

    What a later version's smaller memory let go of is gone, should this one be live again.
    """
    own: list[examples.Example] = []
    absorbed: list[examples.Example] = []
    instead = live.instead
    for lists in memory(registry, live).values():
        for class_id, digests in lists.items():
            (absorbed if int(class_id) in instead else own).extend(kept[d] for d in digests if d in kept)
    return own, absorbed


def _pixels(workshop: Workshop, digests: Sequence[str], options: TrainingOptions) -> Pixels:
    """The images decoded: in memory, or in a file under the home if they are too many."""
    collector = Collector(options.image_size, workshop.settings.work_folder)
    for lot in examples.lots(workshop, digests, examples.decoding(options.image_size, options.resized_to)):
        for image in lot:
            collector.add(image)
    return collector.pixels()


def _options(declared: TrainingOptions, method: str, live: Manifest | None) -> TrainingOptions:
    """The settings', but what the student takes over from its teacher is the teacher's."""
    options = dataclasses.replace(declared, method=method)
    if live is None:
        return options
    seen = live.preprocess
    return dataclasses.replace(
        options, network=live.network, image_size=seen.size, resize_to=seen.resize_to, pretrained=""
    )


def _teacher(registry: Registry, live: Manifest) -> bytes:
    """The checkpoint of the live version, as if it had only the rows that stay."""
    checkpoint = registry.read(live, CHECKPOINT)
    if live.staying == live.trained:
        return checkpoint
    rows = [row for row, entry in enumerate(live.trained) if entry.active]
    found = unpack(checkpoint, f"the checkpoint of version {live.version}")
    return pack(found | {name: found[name][rows] for name in ("head.weight", "head.bias")})


def _bias(live: Manifest) -> BiasCorrection | None:
    """Its correction, of the rows that stay; None if it corrects none of them."""
    if live.bias is None:
        return None
    first, last = (sum(c.active for c in live.trained[:row]) for row in (live.bias.first_row, live.bias.last_row))
    return dataclasses.replace(live.bias, first_row=first, last_row=last) if first < last else None


def _statistics(registry: Registry, live: Manifest | None) -> bytes | None:
    """Those of the live version, if its backbone was frozen when it was made; a merged class's added to its target's.

    Its exemplars, which are also given as news, count twice there: they hardly move sums over all images.
    """
    if live is None or all(entry.name != STATISTICS for entry in live.files):
        return None
    kept = registry.read(live, STATISTICS)
    if live.staying == live.trained:
        return kept
    known = from_bytes(kept, live.embedding_dim)
    found: Statistics = {entry.id: known[entry.id] for entry in live.staying if entry.id in known}
    for entry in live.trained:
        if (into := entry.merged_into) is not None and into in found and entry.id in known:
            found = add(found, into, known[entry.id])
    return as_bytes(found) if found else None


def _heads(old: Sequence[ClassEntry]) -> tuple[int, ...]:
    """How many classes each increment brought, in the order of the last layer's rows."""
    increments = [entry.increment for entry in old]
    return tuple(increments.count(increment) for increment in sorted(set(increments)))
