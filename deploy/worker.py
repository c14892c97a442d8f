"""Who carries the rollouts and watches the answers of a server: a detached Ray actor, which Ray restarts if it dies."""

import functools
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import ray

from lifelist.deploy import events, rollout, watch
from lifelist.deploy.settings import Settings
from lifelist.deploy.workshop import Look, open_workshop
from lifelist.exporter.errors import Cancelled
from lifelist.exporter.registry import Registry

NAME, NAMESPACE = "lifelist-rollouts", "lifelist"
POLL_S = 0.5
PATIENCE_S = 30.0  # at most, between tries of a step that failed
NICENESS = 5  # serving comes first

log = logging.getLogger(__name__)


class Worker:
    """Carries one open rollout after the other, in a thread. All that it knows is in database, registry and folders."""

    def __init__(self, settings: Settings) -> None:
        from lifelist.deploy import swap

        os.nice(NICENESS)
        events.to_stderr(logging.INFO)
        serving = settings.serving
        replace_live = swap.over_replicas(Registry(settings.registry_url), serving.prepare_timeout_s)
        train = functools.partial(train_beside, workers=settings.training_workers)
        self.workshop = open_workshop(settings, train=train, swap=replace_live, end_training=end_trainer)
        watch.start(settings, self.workshop)
        threading.Thread(target=self._work, name="rollouts", daemon=True).start()

    def process_id(self) -> int:
        """For whoever watches it, or kills it in a test."""
        return os.getpid()

    def _work(self) -> None:
        pause = POLL_S
        while True:
            try:
                rollout.carry_all(self.workshop)
                pause = POLL_S
            except Exception:
                log.exception("rollout.interrupted", extra={"facts": {"again_in_s": pause}})
                pause = min(2 * pause, PATIENCE_S)
            time.sleep(pause)


def start(settings: Settings) -> Any:
    """The worker's actor handle: the one that runs, or a new one. Ray must be up; the actor outlives its maker."""
    actor = ray.remote(Worker).options(
        name=NAME,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,  # serving's replicas are promised the CPUs; niceness decides who waits
        max_restarts=-1,
        max_task_retries=-1,
    )
    return actor.remote(settings)


def train_beside(folder: Path, look: Look, workers: int = 1) -> None:
    """Train in the trainer's actor, looking up twice a second. Cancelled ends it for good; else it outlives us."""
    from lifelist.training import sidecar

    trainer = sidecar.trainer(workers)
    running = trainer.train.remote(str(folder))
    while not ray.wait([running], timeout=POLL_S)[0]:
        try:
            look()
        except Cancelled:
            end_trainer()
            raise
    try:
        ray.get(running)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what training raised, in its own words
    finally:
        end_trainer()  # its memory, and the GPU's, are worth more than a quick start next time


def end_trainer() -> None:
    """End the trainer, and what it trains, whoever started it. Nothing happens if there is none."""
    from lifelist.training import sidecar

    try:
        trainer = ray.get_actor(sidecar.NAME, namespace=sidecar.NAMESPACE)
    except ValueError:
        return
    ray.kill(trainer, no_restart=True)
