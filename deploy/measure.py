"""What each version of the demo reaches on held-out images, and what plain fine-tuning would have."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lifelist.deploy.report import Step
from lifelist.deploy.story import Story
from lifelist.deploy.terminal import progress
from lifelist.exporter import session
from lifelist.exporter.preprocess import decode
from lifelist.exporter.registry import Registry
from lifelist.training.increment import learn, load_network
from lifelist.training.job import Learned, Task, read_result, read_task


def measure(registry: Registry, work: Path, story: Story, learned: Mapping[int, int]) -> list[Step]:
    """Each version's accuracy on the held-out images of the classes known at its time, and fine-tuning's beside it.

    learned: rollout → the version that it made, the base first; work: where the rollouts' folders are, and were kept.
    """
    rollouts = list(learned)
    tasks = [read_task(work / str(rollout)) for rollout in rollouts]
    trained = [read_result(work / str(rollout)) for rollout in rollouts]
    contrast = _finetuned(tasks, trained[0])
    steps = []
    for k, version in enumerate(learned.values()):
        loaded = session.load(registry, version)
        known, new = story.known_after(k), story.arriving[k - 1] if k else ()
        images = [(name, data) for name, data in story.held_out if name in known]
        truth = np.array([name for name, _ in images])
        pixels = np.stack([decode(data, loaded.manifest.preprocess) for _, data in images])
        logits, embedding = loaded.run(pixels)
        rows = np.array([c.name for c in loaded.manifest.trained])
        names = {c.id: c.name for c in loaded.manifest.classes}
        answers = {
            "corrected": np.array([names[top[0][0]] for top in loaded.linear(logits, 1)]),
            "uncorrected": rows[_rows(trained[k], tasks[k], pixels)],
            "nearest_mean": np.array([names[top[0][0]] for top in loaded.nearest_mean(embedding, 1)]),
            "finetune": rows[_rows(contrast[k], tasks[k], pixels)],
        }
        if k == 0:  # nothing to correct yet
            del answers["uncorrected"]
        of_group = {"all": np.full(len(truth), True), "old": ~np.isin(truth, new), "new": np.isin(truth, new)}
        accuracy = {
            key: {group: _share((found == truth)[which]) for group, which in of_group.items()}
            for key, found in answers.items()
        }
        steps.append(Step(len(known), new, version, accuracy))
    return steps


def _finetuned(tasks: Sequence[Task], base: Learned) -> list[Learned]:
    """What plain fine-tuning makes of the very tasks that were learned, one after the other, after the same base."""
    found = [base]
    for task in tasks[1:]:
        options = dataclasses.replace(task.options, method="finetune")
        again = dataclasses.replace(task, options=options, teacher=found[-1].checkpoint, bias=None)
        with _epochs(f"fine-tuning on {' and '.join(c.name for c in task.new)}, for contrast") as on_event:
            found.append(learn(again, on_event=on_event))
    return found


def _rows(trained: Learned, task: Task, pixels: np.ndarray) -> np.ndarray:
    """The row of the last layer that each image is taken for, without any correction. pixels: uint8 N×S×S×3."""
    network = load_network(trained.checkpoint, task.options, len(trained.class_ids))
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (trained.mean, trained.std))
    with torch.inference_mode():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        found: np.ndarray = network.head(network.features((scaled - mean) / std)).argmax(1).numpy()
    return found


@contextlib.contextmanager
def _epochs(what: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A progress bar that training's events move."""
    with progress(what, 100, "percent") as bar:

        def on_event(event: Mapping[str, Any]) -> None:
            if event["kind"] == "epoch":
                bar.to(100 * event["epoch"] // event["epochs"])

        yield on_event


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None
