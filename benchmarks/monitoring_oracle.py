"""Our estimates of accuracy beside those of NannyML (its CBPE), on the same scores, in an environment of its own."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lifelist.benchmarks.peers import installed
from lifelist.exporter.answering import Answering, held_out
from lifelist.exporter.errors import Failed

PACKAGES = ("nannyml==0.13.1", "statsmodels==0.15.0")  # which it imports, and does not ask for
SCRIPT = Path(__file__).with_name("oracles") / "cbpe.py"

Facts = dict[str, Any]


def compare(scores: Mapping[str, Any], folder: Path, tell: Callable[[str], None]) -> Facts:
    """For each stretch of answers what is true, and what either estimates; and how far they are off, on average.

    scores: as monitoring.measure gives them. The linear answer is compared, which has probabilities of its own.
    """
    registry, version = scores["registry"], scores["version"]
    answering = Answering.of(registry, version)
    held = held_out(registry, answering.manifest)
    assert held is not None
    raw = {"ids": np.array(answering.rows.ids), "reference": answering.probabilities(held.logits), "truth": held.labels}
    ours, stretches = [], scores["stretches"]
    for k, stretch in enumerate(stretches):
        raw[f"stretch_{k}"] = answering.probabilities(stretch["logits"])
        believed = answering.probabilities_of("linear", stretch["logits"], _nothing(stretch["logits"]))
        assert believed is not None
        ours.append(float(believed[1].max(axis=1).mean()))
    programs = installed(PACKAGES, folder, tell)
    tell(f"asks {PACKAGES[0]} about {len(stretches)} stretches of answers")
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "scores.npz"
        np.savez(file, allow_pickle=False, **raw)
        done = subprocess.run([programs / "python", SCRIPT, file], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{PACKAGES[0]} does not estimate: {done.stderr.strip()[-500:]}")
    theirs = json.loads(done.stdout.splitlines()[-1])
    rows = [
        {name: one[name] for name in ("stretch", "accuracy", "doubtful")} | {"ours": mine, "theirs": other}
        for one, mine, other in zip(stretches, ours, theirs, strict=True)
    ]
    found: Facts = {"package": PACKAGES[0], "rows": rows}
    found["apart"] = float(np.mean([abs(row["ours"] - row["theirs"]) for row in rows]))
    for name, chosen in (("sound", [r for r in rows if not r["doubtful"]]), ("all", rows)):
        for whose in ("ours", "theirs"):
            errors = [abs(row[whose] - row["accuracy"]) for row in chosen]
            found[f"error_{name}_{whose}"] = float(np.mean(errors)) if errors else None
    return found


def _nothing(logits: np.ndarray) -> np.ndarray:
    """Embeddings that the linear answer does not look at."""
    return np.zeros((len(logits), 0), np.float32)
