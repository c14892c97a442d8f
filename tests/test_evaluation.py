"""What an increment says of its accuracy is true of the network that it returns."""

from dataclasses import replace

import parts_training as parts
import pytest

from lifelist.training import evaluate
from lifelist.training.data import GATE
from lifelist.training.increment import load_network
from lifelist.training.loop import corrected, start


@pytest.mark.parametrize("method", ["bic", "eeil", "wa"])
def test_the_evaluation_is_that_of_the_network_as_it_is_returned(method: str) -> None:
    options = replace(parts.TINY, method=method, epochs=6)
    task, learned = parts.tasks(options, ((0, 1, 2), (3, 4)))[-1]
    network = load_network(learned.checkpoint, options, 5)
    gate = task.images.take(task.roles == GATE)
    raw = evaluate.features(network, gate.pixels, start(options, mean=learned.mean, std=learned.std))
    answers = {
        "linear": evaluate.by_linear(corrected(evaluate.head_logits(network, raw), learned.bias)),
        "nearest_mean": evaluate.by_nearest_mean(raw, learned.means),
    }
    for answer, rows in answers.items():
        found = evaluate.accuracy(rows, gate.labels, task.class_ids, len(task.old))
        assert found["confusion"] == learned.evaluation[answer]["confusion"]
