"""A candidate that passed the gate gets a graph in 8 bits too, which serves on CPUs if it answers as well."""

from typing import get_args

import numpy as np

from lifelist.deploy import candidate, examples, gate
from lifelist.deploy.records import Rollout
from lifelist.deploy.workshop import Workshop
from lifelist.exporter import session
from lifelist.exporter.manifest import AnswerKind, Int8
from lifelist.exporter.provisional import HELD_OUT_INT8
from lifelist.exporter.quantise import quantise, verdict
from lifelist.training.checkpoint import write_atomically
from lifelist.training.job import read_result, read_task


def quantised(workshop: Workshop, rollout: Rollout) -> Int8:
    """Measure ranges on some gate images, quantise, compare with fp32 on all; the graph goes into the folder."""
    options, folder = workshop.settings.int8, workshop.folder(rollout.id)
    registry, made = candidate.opened(workshop, rollout)
    judged = [e for e in examples.kept(workshop.store, [c.id for c in made.trained]) if e.role == "gate"]
    ids = [example.sha256 for example in judged]
    spread = np.linspace(0, len(ids) - 1, min(options.images, len(ids))).round().astype(int)  # of every class
    shown = examples.pixels(workshop, [ids[k] for k in spread], made.preprocess)
    fp32 = session.load(registry, made.version, provider="cpu")
    graph = quantise(registry.read(made, session.MODEL), shown)
    write_atomically(folder / session.INT8, graph)
    if (held := candidate.held_out(workshop, graph, read_task(folder), read_result(folder))) is not None:
        write_atomically(folder / HELD_OUT_INT8, held.as_bytes())  # what its answers are watched by
    models = fp32, session.in_int8(fp32, graph)
    truth = np.array([example.class_id for example in judged], np.int64)
    kinds: tuple[AnswerKind, ...] = get_args(AnswerKind)
    answered = {kind: [truth[:0] for _ in models] for kind in kinds}
    for lot in examples.lots(workshop, ids, made.preprocess):
        for kind, so_far in answered.items():
            more = [gate.answers(model, lot, kind) for model in models]
            answered[kind] = [np.concatenate(both) for both in zip(so_far, more, strict=True)]
    return verdict(
        truth,
        {kind: (by_fp32, by_int8) for kind, (by_fp32, by_int8) in answered.items()},
        {entry.id: entry.name for entry in made.trained},
        loss=options.loss,
        class_loss=options.class_loss,
    )
