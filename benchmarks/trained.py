"""Versions that were really trained, for benches that look at what they answer: what they learn from, and how they are
published with all that a version says of itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lifelist.exporter import answering, fold, graph, index, session
from lifelist.exporter.fold import Floats, unit
from lifelist.exporter.imagery import looks
from lifelist.exporter.inspection import EMBEDDING, INPUT, LOGITS
from lifelist.exporter.manifest import ClassEntry, Manifest, Preprocess
from lifelist.exporter.provisional import FILE, HELD_OUT, HeldOut, Provisional
from lifelist.exporter.registry import Registry
from lifelist.exporter.unknowns import calibrate
from lifelist.training import increment
from lifelist.training.data import GATE, Dataset, Images, roles_on_arrival
from lifelist.training.job import Learned, Task, read_result, write_task
from lifelist.training.loop import Event, quickest, seeded
from lifelist.training.options import TrainingOptions

TEST = 255  # beside the roles of images for training
BATCH = 64  # images
PROVISIONAL_LOSS = 0.01  # examples.provisional_loss unless told; written again, since deploy/ may not be imported here
MOST_HELD = 2000  # held-out images that a version keeps what it says to; as deploy/candidate.py, which is not for here


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What the version says to N images."""

    labels: npt.NDArray[np.int64]  # N class ids
    logits: Floats  # N×C
    embedding: Floats  # N×D, unit rows

    def of(self, which: npt.NDArray[np.bool_]) -> "Said":
        """That of some of the images."""
        return Said(self.labels[which], self.logits[which], self.embedding[which])


def said(loaded: session.Loaded, images: Images) -> Said:
    """What a version says to images."""
    parts = [loaded.run(images.pixels[k : k + BATCH].numpy()) for k in range(0, len(images), BATCH)]
    logits, embedding = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Said(images.labels.numpy(), logits, embedding)


def sorted_into_roles(dataset: Dataset, seed: int, *, gate: float, test: float) -> torch.Tensor:
    """N uint8: TRAINING, GATE, or TEST, of which the data set may have its own.

    gate: share of a class's images that are no test images; test: share of all, where the data set says nothing.
    """
    labels, lot = dataset.images.labels, seeded(seed, "roles")
    own = dataset.test
    if not bool(own.any()):
        own = roles_on_arrival(labels, gate=test, holdout=0.0, generator=lot) == GATE
    roles = torch.full(labels.shape, TEST, dtype=torch.uint8)
    roles[~own] = roles_on_arrival(labels[~own], gate=gate, holdout=0.0, generator=lot)
    return roles


def base_options(data: str, epochs: int, image_size: int, device: str) -> TrainingOptions:
    """Those of a base. WA's, which holds nothing out: a base is trained in the same way by most methods."""
    return TrainingOptions(
        method="wa",
        schedule="short",
        epochs=epochs,
        image_size=image_size,
        flip="digits" not in data,
        memory_total=0,
        precision=quickest(device),
        device=device,
    )


def learned(task: Task, place: Path, on_event: Callable[[Event], None]) -> Learned:
    """What comes of an increment, from the last epoch that `place` has of it."""
    write_task(place, task)  # of another task than before, it starts afresh
    increment.run(place, on_event)
    return read_result(place)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Around:
    """What a version has beside what was learned."""

    names: Mapping[int, str]  # of classes, by id
    options: TrainingOptions
    increments: Mapping[int, int] = field(default_factory=dict)  # which one brought a class; the base, unless told
    parent: int | None = None
    held_out: Images | None = None  # with which it is calibrated; None: it is not


def publish(registry: Registry, found: Learned, around: Around) -> Manifest:
    """The version that an increment makes, as a server would publish it."""
    options = around.options
    network = increment.load_network(found.checkpoint, options, len(found.class_ids))
    weight, bias = (tensor.detach().numpy() for tensor in (network.head.weight, network.head.bias))
    weight, bias = fold.fold_bias(weight, bias, found.bias)
    preprocess = Preprocess(options.image_size, options.resized_to, found.mean, found.std)
    means = found.means.numpy()
    files = {
        session.MODEL: graph.export(network, weight=weight, bias=bias, preprocess=preprocess),
        answering.MEANS: index.build(found.class_ids, means),
    }
    draft = Manifest(
        version=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="increment",
        parent=around.parent,
        method=found.method,
        network=options.network,
        embedding_dim=found.embedding_dim,
        default_answer=found.answers_by,
        preprocess=preprocess,
        classes=tuple(ClassEntry(c, around.names[c], "trained", around.increments.get(c, 0)) for c in found.class_ids),
    )
    if around.held_out is not None:
        held = _held_out(files[session.MODEL], around.held_out, found)
        files[HELD_OUT] = held.as_bytes()
        loaded = index.load(files[answering.MEANS], found.embedding_dim)
        fitted = answering.Answering(manifest=draft, means=loaded).fitted(held)
        draft = replace(draft, known_scores=calibrate(held, unit(means)), confidences=fitted)
    return registry.publish(draft, files)


def enrol(registry: Registry, version: Manifest, images: Mapping[int, Images], names: Mapping[int, str]) -> Manifest:
    """A version that knows more classes by their means, of some images each, as a server enrols them."""
    loaded = session.load(registry, version.version, provider="cpu")
    held = answering.held_out(registry, version)
    assert held is not None
    new = np.stack(
        [unit(said(loaded, of_class).embedding.mean(axis=0, dtype=np.float64)) for of_class in images.values()]
    )
    means = np.concatenate([loaded.means.means(), new]).astype(np.float32)
    scale, offset = held.fit(new.astype(np.float32), PROVISIONAL_LOSS)
    rows = Provisional(tuple(images), scale, offset)
    latest = 1 + max(entry.increment for entry in version.classes)
    classes = (*version.classes, *(ClassEntry(c, names[c], "enrolled", latest) for c in images))
    data = index.build([entry.id for entry in classes], means)
    draft = replace(
        version, version=0, kind="enrolment", parent=version.version, default_answer="nearest_mean", classes=classes,
        known_scores=calibrate(held, means, rows),
    )  # fmt: skip
    made = answering.Answering(manifest=draft, means=index.load(data, means.shape[1]), provisional=rows)
    files = {answering.MEANS: data, FILE: rows.as_bytes()}
    shared = [entry for entry in version.files if entry.name not in files]
    return registry.publish(replace(draft, confidences=made.fitted(held)), files, reuse=shared)


def _held_out(model: bytes, images: Images, found: Learned) -> HeldOut:
    chosen = torch.linspace(0, len(images) - 1, min(MOST_HELD, len(images))).round().long()
    shown = images.take(chosen)
    graph_session, _ = session.open_session(model, provider="cpu")
    parts = []
    for k in range(0, len(shown), BATCH):
        batch = np.ascontiguousarray(shown.pixels[k : k + BATCH].numpy())
        parts.append(graph_session.run([LOGITS, EMBEDDING], {INPUT: batch}))
    logits, embedding = (np.concatenate(part) for part in zip(*parts, strict=True))
    rows, pixels = np.array(found.class_ids), shown.pixels[:].numpy()
    return HeldOut(embedding, logits, rows, shown.labels.numpy(), looks(pixels, [pixels.shape[1]] * len(pixels)))
