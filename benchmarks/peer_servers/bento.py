"""BentoML: a file in a form, its cheapest binary input that can be batched; adaptive batching."""

import os
from pathlib import Path
from typing import Any

import bentoml
import model
import numpy as np


@bentoml.service(workers=int(os.environ["MODEL_WORKERS"]), traffic={"timeout": 60})
class Classifier:
    """Decodes, batches, answers."""

    def __init__(self) -> None:
        self.session = model.session(int(os.environ["MODEL_THREADS"]))

    # 32 files of each of 8 clients take seconds; what takes longer than this is answered 503
    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def classify(self, images: list[Path]) -> list[dict[str, Any]]:
        """The best class of each."""
        return model.best(self.session, np.stack([model.pixels(path.read_bytes()) for path in images]))
