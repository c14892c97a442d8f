"""What each method reaches on handwritten digits: 6 classes, then 2, then 2, as in the demo; three seeds.

.venv/bin/python benchmarks/digits.py > docs/results.md
"""

import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from lifelist.training.experiment import Result, run_experiment
from lifelist.training.methods import METHODS
from lifelist.training.options import TrainingOptions

SEEDS = (0, 1, 2)
ANSWERS = ("linear", "linear_uncorrected", "nearest_mean")


def options(method: str, seed: int) -> TrainingOptions:
    """The demo's."""
    return TrainingOptions(method=method, seed=seed, image_size=16, flip=False, memory_total=200)


def shares(results: Sequence[Result], step: int, answer: str, group: str) -> str:
    """Mean and the range over seeds of the accuracy, in %, after a step."""
    found = [100 * r.steps[step].evaluation[answer][group] for r in results]
    return f"{statistics.mean(found):.1f} ({min(found):.1f}–{max(found):.1f})"


def main() -> None:
    """Print the page."""
    began = time.monotonic()
    results: dict[str, list[Result]] = {}
    for method in sys.argv[1:] or METHODS:
        for seed in SEEDS:
            print(f"{method}, seed {seed}, after {time.monotonic() - began:.0f} s", file=sys.stderr)
            found = run_experiment("digits", options(method, seed), classes_per_increment=2, base_classes=6)
            results.setdefault(method, []).append(found)
    bic = results["bic"]
    lost = [100 * (r.steps[0].evaluation["linear"]["all"] - statistics.mean(r.matrix("linear")[-1][:1])) for r in bic]
    software = bic[0].steps[0].software
    print(f"""# Results

Handwritten digits (1,797 images of 8×8 pixels, shown at 16×16; every fifth is for testing), ResNet-32 from random
weights, `short` schedule, 6 classes and then 2 and 2, a memory of 200 images, hold-out included. Accuracy in % on test
images after the last increment, on all, old (8) and new (2) classes: mean (least–most) of seeds \
{", ".join(map(str, SEEDS))}.

| method | answers by | all | old | new | all, before correction | all, by nearest mean | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |""")
    for method, found in results.items():
        by = found[0].steps[-1].answers_by
        cells = [shares(found, -1, by, group) for group in ("all", "old", "new")]
        cells += [shares(found, -1, answer, "all") for answer in ANSWERS[1:]]
        seconds = statistics.mean(sum(s.seconds for s in r.steps) for r in found)
        print(f"| `{method}` | {by.replace('_', ' ')} | {' | '.join(cells)} | {seconds:.0f} |")
    print(f"""
With `bic` the six base classes lost {statistics.mean(lost):.1f} points of accuracy over the two increments \
({min(lost):.1f}–{max(lost):.1f}),
from when they were alone to when ten classes competed.

By `python {" ".join(sys.argv)}`, {datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, \
{software["device"]}, torch {torch.__version__}, {software["precision"]}.""")


if __name__ == "__main__":
    main()
