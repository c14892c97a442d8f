"""What each step of a rollout does. Each may be run again after a kill, and then ends as if it had not been killed.

A step gets the workshop and the rollout, whose `facts` are what earlier steps returned; it returns facts of its own.
Between steps everything is on disk: the increment's folder is the contract with training (training/job.py), and the
candidate is a version in a registry of its own there, until it is published. Modules that need torch are imported by
the steps that use them: the operator reads the table of steps, and runs none.
"""

import dataclasses
from typing import Any

import numpy as np

from lifelist.deploy import examples, following, gate
from lifelist.deploy.records import Rollout
from lifelist.deploy.workshop import CHECKPOINT, Workshop, learned_images, memory
from lifelist.exporter import session
from lifelist.exporter.errors import Cancelled, Failed, Refused
from lifelist.exporter.manifest import Manifest, Parity
from lifelist.exporter.registry import GRACE_S

Facts = dict[str, Any]

PARITY_IMAGES = 256  # are enough to see a graph that differs


def fix_images(workshop: Workshop, rollout: Rollout) -> Facts:
    """intake: pin the teacher by digest, and write all that training will be given."""
    from lifelist.deploy import material
    from lifelist.training.job import write_task

    task, teacher = material.gathered(workshop, rollout)
    write_task(workshop.folder(rollout.id), task)
    counts = {role: int((task.roles == number).sum()) for number, role in enumerate(examples.ROLES)}
    sha256 = None if teacher is None else teacher.file(CHECKPOINT).sha256
    return {"teacher": teacher and teacher.version, "teacher_sha256": sha256, "images": counts}


def train_increment(workshop: Workshop, rollout: Rollout) -> Facts:
    """train: from the last epoch that was finished. Raises Cancelled when that is asked for."""
    from lifelist.training.job import read_result

    folder = workshop.folder(rollout.id)

    def look() -> None:
        following.carry_events(workshop.store, rollout.id, folder / "events.jsonl")
        if workshop.store.rollout(rollout.id).cancel_requested:
            raise Cancelled(f"increment {rollout.id} was cancelled in training")

    look()
    workshop.train(folder, look)
    look()
    learned = read_result(folder)
    facts: Facts = {"seconds": learned.seconds, "evaluation": learned.figures, "warnings": list(learned.warnings)}
    facts |= {"method": learned.method} | ({"method_reason": learned.reason} if learned.reason else {})
    return facts | ({"bias": dataclasses.asdict(learned.bias)} if learned.bias else {})


def export_candidate(workshop: Workshop, rollout: Rollout) -> Facts:
    """export: the trained network as a version, the rebalancing folded into its graph."""
    from lifelist.deploy import candidate

    made = candidate.export(workshop, rollout)
    return {"bytes": {entry.name: entry.size for entry in made.files}}


def compare_with_network(workshop: Workshop, rollout: Rollout) -> Facts:
    """parity: graph against network on gate images; on all images where those are fewer than a check asks."""
    import torch

    from lifelist.deploy import candidate
    from lifelist.exporter import parity
    from lifelist.training.data import GATE
    from lifelist.training.job import read_result, read_task

    folder = workshop.folder(rollout.id)
    task = read_task(folder)
    network, weight, bias, preprocess = candidate.network_of(task.options, read_result(folder))
    registry, made = candidate.opened(workshop, rollout)
    checks = [check.min_images for check in workshop.settings.gate if check.check.startswith("parity")]
    enough = int((task.roles == GATE).sum()) >= max(checks, default=1)
    shown = task.images.pixels.take(task.roles == GATE) if enough else task.images.pixels
    chosen = np.linspace(0, len(shown) - 1, min(PARITY_IMAGES, len(shown))).round().astype(int)  # of every class
    images = shown[torch.from_numpy(chosen)].numpy()
    found = parity.compare(registry.read(made, session.MODEL), network, weight, bias, preprocess, images)
    return {"parity": dataclasses.asdict(found)}


def judge_candidate(workshop: Workshop, rollout: Rollout) -> Facts:
    """gate: what candidate and live answer to gate images, by the checks in the settings. Refused if one fails.

    The candidate answers as its method does, live as it does by default; both as exported, through ONNX Runtime.
    """
    from lifelist.deploy import candidate

    registry, made = candidate.opened(workshop, rollout)
    teacher = rollout.facts["teacher"]
    live = None if teacher is None else session.load(workshop.registry, teacher)
    old = [entry.id for entry in live.manifest.trained] if live else []
    new = [class_id for class_id in rollout.class_ids if class_id not in old]
    judged = [e for e in examples.kept(workshop.store, [*old, *new]) if e.role == "gate"]
    truth = np.array([example.class_id for example in judged], np.int64)
    models = [session.load(registry, made.version), *([live] if live else [])]
    answered = [truth[:0] for _ in models]
    for lot in examples.lots(workshop, [example.sha256 for example in judged], made.preprocess):
        more = [gate.answers(model, lot, model.manifest.default_answer) for model in models]
        answered = [np.concatenate(both) for both in zip(answered, more, strict=True)]
    evidence = gate.Evidence(
        candidate=made,
        live=live.manifest if live else None,
        names={known.id: known.name for known in workshop.store.classes(new)},
        truth=truth,
        answered=answered[0],
        answered_by_live=answered[1] if live else truth[:0],
        parity=Parity(**rollout.facts["parity"]),
    )
    checks = gate.judge(evidence, workshop.settings.gate)
    facts: Facts = {"gate": [dataclasses.asdict(check) for check in checks]}
    if (reason := gate.refusal(checks)) is not None:
        raise Refused(reason, facts)
    return facts


def quantise_candidate(workshop: Workshop, rollout: Rollout) -> Facts:
    """quantise: a graph in 8 bits beside the one in fp32, and whether it may answer in its place."""
    from lifelist.deploy.quantised import quantised

    if not workshop.settings.int8.enabled:
        return {}
    return {"int8": dataclasses.asdict(quantised(workshop, rollout))}


def publish_version(workshop: Workshop, rollout: Rollout) -> Facts:
    """publish: the candidate becomes a version, with the means of the classes that were enrolled meanwhile.

    Failed if live is no longer of the model that the candidate learned from: it would take back what somebody decided.
    """
    from lifelist.deploy import candidate

    ref = workshop.registry.ref("live")
    live = None if ref is None else workshop.registry.manifest(ref.version)
    _check_teacher(rollout, live, ref.generation if ref else None)
    version = candidate.publish(workshop, rollout, parent=live.version if live else None)
    facts: Facts = {"over": [live and live.version, ref.generation if ref else None]}
    return facts | {"version": version.version}


def make_live(workshop: Workshop, rollout: Rollout) -> Facts:
    """swap: every replica answers by the new version. Moved if live is not the one that it was published upon."""
    version, (_, generation) = workshop.registry.manifest(int(rollout.facts["version"])), rollout.facts["over"]
    live = workshop.live
    # Else it was killed after it had promoted: replicas see that themselves, and classes may be enrolled since.
    if live is None or live.file(CHECKPOINT).sha256 != version.file(CHECKPOINT).sha256:
        workshop.swap(version.version, generation)
    return {"live": version.version}


def tidy(workshop: Workshop, rollout: Rollout) -> Facts:
    """tidy: images that were learned go that are neither exemplar nor hold-out in use nor gate image, unless kept."""
    if workshop.settings.examples.keep:
        return {"deleted": 0}
    version = workshop.registry.manifest(int(rollout.facts["version"]))
    lists_of = memory(workshop.registry, version)
    needed = {digest for lists in lists_of.values() for digests in lists.values() for digest in digests}
    trained = examples.kept(workshop.store, [entry.id for entry in version.trained])
    unneeded = learned_images(workshop.registry, version) - needed  # what came since waits to be learned
    unneeded &= {example.sha256 for example in trained if example.role != "gate"}
    examples.forget(workshop, sorted(unneeded))
    return {"deleted": len(unneeded), "swept": examples.sweep(workshop, GRACE_S)}


def keep_rejected(workshop: Workshop, rollout: Rollout) -> Facts:
    """keep: a refused candidate becomes a version too, with the figures; live does not move."""
    from lifelist.deploy import candidate

    version = candidate.publish(workshop, rollout, parent=rollout.facts["teacher"])
    return {"version": version.version, "reason": f"version {version.version} refused: {rollout.facts['reason']}"}


def _check_teacher(rollout: Rollout, live: Manifest | None, generation: int | None) -> None:
    pinned = rollout.facts["teacher_sha256"]
    found = live and live.file(CHECKPOINT).sha256
    if found != pinned:
        raise Failed(
            f"increment {rollout.id} learned from version {rollout.facts['teacher']}, and live is now version "
            f"{live and live.version}, of another model: somebody promoted or rolled back. Start it again to learn "
            "from what is live now"
        )
    over = rollout.facts.get("over")
    if over and live and live.version == over[0] and generation != over[1]:
        raise Failed(
            f"live was moved away from version {live.version} and back while increment {rollout.id} was going live; "
            f"promote version {rollout.facts['version']} if it is wanted after all"
        )
