"""The trainer beside the server: a detached Ray actor. The one module of training that knows Ray."""

import logging
import os
from pathlib import Path
from typing import Any

import ray
import torch

from lifelist.training import increment

NAME = "lifelist-trainer"
NAMESPACE = "lifelist"
NICENESS = 10  # more than that of any other Ray process: serving comes first
MOST_DEATHS = 20  # of the trainer in one call (out of memory, say); then whoever called is told

log = logging.getLogger(__name__)


class Trainer:
    """Runs increments, one at a time, below serving's priority.

    A killed trainer is started again by Ray, and its task with it: `increment.run` then resumes from the last epoch.
    """

    def __init__(self) -> None:
        os.nice(NICENESS)
        # One core stays free: threads that wait for one another come to a halt as soon as one of them shares a core.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))

    def train(self, folder: str) -> None:
        """The increment in `folder`, to its end; what happens on the way stands in folder/events.jsonl."""
        log.info("training.started", extra={"facts": {"folder": folder}})
        increment.run(Path(folder))

    def process_id(self) -> int:
        """For whoever watches it, or kills it in a test."""
        return os.getpid()


def trainer() -> Any:
    """The trainer's actor handle: the running one, or a new one with a GPU if the cluster has one. Ray must be up.

    It outlives the process that made it. `ray.kill(trainer(), no_restart=True)` ends it, and whatever it is training.
    """
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0  # type: ignore[no-untyped-call]
    actor = ray.remote(Trainer).options(
        name=NAME,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,  # serving's replicas are promised the CPUs; niceness decides who waits
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=MOST_DEATHS,
        runtime_env={"env_vars": {"OMP_WAIT_POLICY": "passive"}},  # no thread spins while it waits
    )
    return actor.remote()
