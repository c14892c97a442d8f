"""What an increment made, as a version: first in a registry of its own, where it is judged, then in the real one."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from lifelist.deploy import enrol, examples
from lifelist.deploy.naming import names
from lifelist.deploy.records import Rollout, now
from lifelist.deploy.workshop import (
    CHECKPOINT,
    EVALUATION,
    EXEMPLARS,
    LEARNED,
    STATISTICS,
    Workshop,
    learned_images,
)
from lifelist.exporter import answering, fold, graph, index, session
from lifelist.exporter.errors import Failed, Moved
from lifelist.exporter.imagery import looks
from lifelist.exporter.inspection import EMBEDDING, INPUT, LOGITS
from lifelist.exporter.manifest import Check, ClassEntry, FileEntry, Int8, Manifest, Parity, Preprocess
from lifelist.exporter.preprocess import side
from lifelist.exporter.provisional import HELD_OUT, HELD_OUT_INT8, HeldOut
from lifelist.exporter.registry import Registry
from lifelist.training.data import GATE
from lifelist.training.increment import load_network
from lifelist.training.job import Learned, Task, read_result, read_task
from lifelist.training.network import Network
from lifelist.training.options import TrainingOptions

BATCH = 64  # images
MOST_HELD, MOST_NUMBERS = 2000, 2**22  # images, and logits of them, are enough to see what a row takes from the others


def export(workshop: Workshop, rollout: Rollout) -> Manifest:
    """Put the trained network into the increment's own registry, the rebalancing folded into its graph."""
    folder = workshop.folder(rollout.id)
    task, learned = read_task(folder), read_result(folder)
    network, weight, bias, preprocess = network_of(task.options, learned)
    teacher = rollout.facts["teacher"]
    parent = None if teacher is None else workshop.registry.manifest(teacher)
    titles = {c.id: c.name for c in (*task.old, *task.new)}
    increments = {entry.id: entry.increment for entry in parent.trained} if parent else {}
    following = 1 + max(increments.values()) if increments else 0
    memory = {
        "exemplars": {str(class_id): ids for class_id, ids in learned.exemplars.items()},
        "holdout": {str(class_id): ids for class_id, ids in learned.holdout.items()},
    }
    files = {
        session.MODEL: graph.export(network, weight=weight, bias=bias, preprocess=preprocess),
        answering.MEANS: index.build(learned.class_ids, learned.means.numpy()),
        CHECKPOINT: learned.checkpoint,
        EXEMPLARS: json.dumps(memory).encode(),
        EVALUATION: json.dumps(learned.evaluation).encode(),
        LEARNED: json.dumps(sorted(_learned_images(workshop, rollout, task))).encode(),
    }
    if (held := held_out(workshop, files[session.MODEL], task, learned)) is not None:
        files[HELD_OUT] = held.as_bytes()
    if learned.statistics is not None:
        files[STATISTICS] = learned.statistics
    draft = Manifest(
        version=0,
        created_at=now(),
        kind="increment",
        parent=teacher,
        method=learned.method,
        network=task.options.network,
        embedding_dim=learned.embedding_dim,
        default_answer=learned.answers_by,
        preprocess=preprocess,
        classes=tuple(
            ClassEntry(class_id, titles[class_id], "trained", increments.get(class_id, following))
            for class_id in learned.class_ids
        ),
        former=_gone(parent, learned) if parent else (),
        bias=learned.bias,
        options=task.options.as_dict() | {"pretrained": task.options.pretrained or task.pretrained},
        results=learned.figures,
        exemplars_sha256=FileEntry.of(EXEMPLARS, files[EXEMPLARS]).sha256,
        software=learned.software,
    )
    shutil.rmtree(_place(workshop, rollout), ignore_errors=True)  # of an export that was killed
    return Registry(str(_place(workshop, rollout))).publish(draft, files)


def _gone(parent: Manifest, learned: Learned) -> tuple[ClassEntry, ...]:
    """The classes that the model has not: retired ones, and those whose images it has learned as another's."""
    rows = set(learned.class_ids)
    return tuple(entry for entry in parent.entries if entry.retired or entry.merged_into in rows)


def held_out(workshop: Workshop, model: bytes, task: Task, learned: Learned) -> HeldOut | None:
    """What a graph says to gate images, of all classes alike; None if there are none."""
    gate = (task.roles == GATE).nonzero()[:, 0]
    if not len(gate):
        return None
    most = min(MOST_HELD, max(1, MOST_NUMBERS // len(learned.class_ids)), len(gate))
    chosen = gate[torch.linspace(0, len(gate) - 1, most).round().long()]
    images = task.images.take(chosen)
    graph_session, _ = session.open_session(model, provider="cpu")
    parts = []
    for start in range(0, len(chosen), BATCH):
        batch = images.pixels[start : start + BATCH].numpy()
        parts.append(graph_session.run([LOGITS, EMBEDDING], {INPUT: np.ascontiguousarray(batch)}))
    logits, embedding = (np.concatenate(part) for part in zip(*parts, strict=True))
    seen = looks(images.pixels[:].numpy(), [side(workshop.images.get(digest)) for digest in images.ids])
    return HeldOut(embedding, logits, np.array(learned.class_ids), images.labels.numpy(), seen)


def _learned_images(workshop: Workshop, rollout: Rollout, task: Task) -> set[str]:
    """What the model was given now, and what it has from its teacher, as far as that is kept."""
    if (teacher := rollout.facts["teacher"]) is None:
        return set(task.images.ids)
    earlier = learned_images(workshop.registry, workshop.registry.manifest(teacher))
    return set(task.images.ids) | earlier & {example.sha256 for example in examples.kept(workshop.store)}


def network_of(options: TrainingOptions, learned: Learned) -> tuple[Network, fold.Floats, fold.Floats, Preprocess]:
    """(network, weight, bias, preprocessing): what is exported; the last layer with the rebalancing inside."""
    network = load_network(learned.checkpoint, options, len(learned.class_ids))
    raw_weight, raw_bias = (tensor.detach().numpy() for tensor in (network.head.weight, network.head.bias))
    weight, bias = fold.fold_bias(raw_weight, raw_bias, learned.bias)
    return network, weight, bias, Preprocess(options.image_size, options.resized_to, learned.mean, learned.std)


def _place(workshop: Workshop, rollout: Rollout) -> Path:
    return workshop.folder(rollout.id) / "candidate"


def opened(workshop: Workshop, rollout: Rollout) -> tuple[Registry, Manifest]:
    """The increment's own registry, and the one version in it."""
    registry = Registry(str(_place(workshop, rollout)))
    return registry, registry.manifest(1)


def publish(workshop: Workshop, rollout: Rollout, parent: int | None) -> Manifest:
    """The candidate as a version, with its verdict. One that a killed predecessor published is found again.

    What live says of its classes by now is said of them here too. Failed if it has restored one that the candidate was
    trained without, and of which no image is kept.
    """
    candidates, candidate = opened(workshop, rollout)
    loaded, live = session.load(candidates, candidate.version), workshop.live
    waiting = enrol.waiting_images(workshop, candidate, live)
    held = answering.held_out(candidates, candidate)
    said, files = enrol.with_means(workshop, loaded, waiting, {}, names(workshop, live), held)
    present = {entry.id for entry in said["classes"]}
    absent = [entry for entry in live.entries if entry.id not in present] if live else []
    dropped = {entry.id for entry in candidate.former}
    if lost := [entry.name for entry in absent if entry.active and entry.id in dropped]:
        raise Failed(
            f"classes {lost} were restored while increment {rollout.id} was trained without them, and no image of them "
            "is kept to enrol them by; start it again to learn with them"
        )
    files |= {e.name: candidates.read(candidate, e.name) for e in candidate.files if e.name not in files}
    int8 = Int8(**rollout.facts["int8"]) if "int8" in rollout.facts else None
    if int8 is not None and int8.used:
        folder = workshop.folder(rollout.id)
        files |= {
            name: (folder / name).read_bytes() for name in (session.INT8, HELD_OUT_INT8) if (folder / name).exists()
        }
    draft = dataclasses.replace(
        candidate,
        parent=parent,
        former=tuple(entry for entry in absent if not entry.active),
        default_answer="nearest_mean" if waiting else candidate.default_answer,
        parity=Parity(**rollout.facts["parity"]),
        int8=int8,
        gate=tuple(Check(**check) for check in rollout.facts["gate"]),
        **said,
    )
    registry = workshop.registry
    entries = sorted((FileEntry.of(name, data) for name, data in files.items()), key=lambda entry: entry.name)
    published = dataclasses.replace(draft, files=tuple(entries))
    for number in reversed(registry.versions()):
        if number <= (parent or 0):
            break
        found = registry.manifest(number)
        if dataclasses.replace(found, version=0).digest == dataclasses.replace(published, version=0).digest:
            return found
    version = registry.publish(draft, files)
    _point_candidate(registry, version.version)
    return version


def _point_candidate(registry: Registry, version: int) -> None:
    ref = registry.ref("candidate")
    try:
        registry.move("candidate", version, None if ref is None else ref.generation)
    except Moved:  # only a note for people; another one's is as good
        return
