"""What an increment is given: images by their roles, the teacher and its memory, out of the store and the registry."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch

from lifelist.deploy import examples
from lifelist.deploy.records import Rollout
from lifelist.deploy.workshop import CHECKPOINT, STATISTICS, Workshop, memory
from lifelist.exporter.errors import Failed
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.training.data import Images
from lifelist.training.job import Class, Task
from lifelist.training.options import TrainingOptions
from lifelist.training.pixels import Collector, Pixels


def gathered(workshop: Workshop, rollout: Rollout) -> tuple[Task, Manifest | None]:
    """What training is given, and the version that it learns from: what is live now. Failed if it cannot go on."""
    live, store = workshop.live, workshop.store
    trained = {entry.id for entry in live.trained} if live else set()
    named = store.classes(rollout.class_ids)
    new, refreshed = [c for c in named if c.id not in trained], [c for c in named if c.id in trained]
    chosen = examples.waiting(workshop, live, rollout.class_ids)
    news = Counter(example.class_id for example in chosen if example.role == "training")
    if live and (again := [c.name for c in refreshed if not news[c.id]]):
        raise Failed(
            f"classes {again} were trained by another increment meanwhile: version {live.version} has learned from all "
            "of their images"
        )
    options = _options(workshop.settings.training, rollout.method, live)
    if live:
        kept = {example.sha256: example for example in examples.kept(store, [entry.id for entry in live.trained])}
        lists_of = memory(workshop.registry, live)
        remembered = [
            kept[digest]  # what a later version's smaller memory let go of is gone, should this one be live again
            for lists in lists_of.values()
            for digests in lists.values()
            for digest in digests
            if digest in kept
        ]
        judged = [example for example in kept.values() if example.role == "gate"]
        chosen = [*remembered, *judged, *(e for e in chosen if not (e.class_id in trained and e.role == "gate"))]
    task = Task(
        options=options,
        old=tuple(Class(entry.id, entry.name) for entry in live.trained) if live else (),
        new=tuple(Class(known.id, known.name) for known in new),
        refreshed={known.id: news[known.id] for known in refreshed},
        heads=_heads(live),
        images=Images(
            _pixels(workshop, [e.sha256 for e in chosen], options),
            torch.tensor([e.class_id for e in chosen]),
            tuple(e.sha256 for e in chosen),
        ),
        roles=torch.tensor([examples.ROLES.index(e.role) for e in chosen], dtype=torch.uint8),
        teacher=workshop.registry.read(live, CHECKPOINT) if live else None,
        statistics=_statistics(workshop.registry, live),
        pretrained=str(live.options.get("pretrained", "")) if live else "",
        bias=live.bias if live else None,
        mean=live.preprocess.mean if live else None,
        std=live.preprocess.std if live else None,
    )
    return task, live


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


def _statistics(registry: Registry, live: Manifest | None) -> bytes | None:
    """Those of the live version, if its backbone was frozen when it was made."""
    kept = live is not None and any(entry.name == STATISTICS for entry in live.files)
    return registry.read(live, STATISTICS) if live and kept else None


def _heads(live: Manifest | None) -> tuple[int, ...]:
    """How many classes each increment brought, in the order of the last layer's rows."""
    increments = [entry.increment for entry in live.trained] if live else []
    return tuple(increments.count(increment) for increment in sorted(set(increments)))
