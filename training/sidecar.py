"""The trainer beside the server: a detached Ray actor, alone or with several workers. The one module that knows Ray."""

import logging
import os
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import ray

from lifelist.exporter.errors import BadSetting, Unavailable

NAME = "lifelist-trainer"
NAMESPACE = "lifelist"
NICENESS = 10  # more than that of any other Ray process, where there is no policy for what may wait
REST_S = 1e-5  # what is asked for; a timer makes it some 60 microseconds
MOST_DEATHS = 20  # of the trainer, or of workers, in one call (out of memory, say); then whoever called is told
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # no thread spins while it waits
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the loss of a worker is seen
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: a node that goes is a worker that is lost
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
LOOPBACK = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo" if sys.platform == "linux" else "lo0")

log = logging.getLogger(__name__)


class Trainer:
    """Runs increments, one at a time, below serving's priority.

    A killed trainer is started again by Ray, and its task with it: `increment.run` then resumes from the last epoch.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        _step_back(1)

    def train(self, folder: str) -> None:
        """The increment in `folder`, to its end; what happens on the way stands in folder/events.jsonl."""
        log.info("training.started", extra={"facts": {"folder": folder, "workers": self.workers}})
        if self.workers == 1:
            _increment(Path(folder))
        else:
            _train_together(Path(folder).absolute(), self.workers)

    def process_id(self) -> int:
        """For whoever watches it, or kills it in a test."""
        return os.getpid()


def trainer(workers: int = 1) -> Any:
    """The trainer's actor handle: the running one, or a new one with a GPU if the cluster has one. Ray must be up.

    workers  processes that share each batch; 0: one for each GPU. BadSetting if there are GPUs, and fewer than that

    It outlives the process that made it. `ray.kill(trainer(), no_restart=True)` ends it, and whatever it is training.
    """
    gpus = _gpus()
    workers = workers or max(1, gpus)
    if 0 < gpus < workers:
        raise BadSetting(f"training_workers {workers} are more than the cluster's {gpus} GPUs; 0 takes one for each")
    actor = ray.remote(Trainer).options(
        name=NAME,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,  # serving's replicas are promised the CPUs; niceness decides who waits
        num_gpus=min(gpus, 1) if workers == 1 else 0,
        max_restarts=-1,
        max_task_retries=MOST_DEATHS,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    return actor.remote(workers)


def _train_together(folder: Path, workers: int) -> None:
    """The same by several workers of Ray Train, all of which start again from the last epoch if one is lost.

    Ray Train's own retry (FailureConfig) is left at none: it takes an error for a death, and what training raises would
    be raised twenty times.
    """
    # here, as in _together: Ray Train costs a lone trainer 260 MB
    from ray.train.v2._internal.exceptions import RayTrainError  # a worker's death; pyproject.toml pins Ray
    from ray.train.v2.api.config import RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import WorkerGroupError

    on_gpus = _gpus() > 0
    # Workers need a place and no CPU, as the trainer does; Ray places nothing that asks for nothing, so a byte.
    needs = {"CPU": 0, "GPU": 1} if on_gpus else {"CPU": 0, "memory": 1}
    storage = folder / "ray"
    for losses in range(MOST_DEATHS + 1):
        _free_places()
        together = _together(
            train_loop_config={"folder": str(folder)},
            torch_config=_meeting(storage, "cpu:gloo,cuda:nccl" if on_gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker=needs),
            run_config=RunConfig(name="workers", storage_path=str(storage)),
        )
        try:
            together.fit()
            return
        except WorkerGroupError as error:
            failures = list(error.worker_failures.values())
            if not any(isinstance(failure, RayTrainError | Unavailable) for failure in failures):
                raise failures[0] from None  # what training raised, in its own words
            if losses == MOST_DEATHS:
                raise
            log.warning("training.worker-lost", extra={"facts": {"folder": str(folder), "losses": losses + 1}})
        finally:
            shutil.rmtree(storage, ignore_errors=True)  # nothing of ours is in there


def _free_places() -> None:
    """Take back what workers were promised whose trainer was killed, and end those that still run.

    Ray itself waits for the end of the job that the trainer is of, the server's; until then a GPU would be kept for
    the dead, and the next workers wait for it. Nothing else in the cluster makes placement groups.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for name, row in placement_group_table().items():
        if row["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _together(**options: Any) -> Any:
    """Ray's TorchTrainer without the actor that looks after placement groups.

    That one asks Ray's dashboard, which is off, and would never end; `_free_places` does its work.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    class Together(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()
            return [callback for callback in found if not isinstance(callback, PlacementGroupCleanerCallback)]

    return Together(_work, **options)


def _meeting(storage: Path, backend: str) -> Any:
    """How the workers find one another: all on one machine by a file in `storage`, and over loopback; else Ray's way.

    Ray's way is a store of torch's that listens on all addresses, and lets in whoever asks.
    """
    from ray.train._internal.base_worker_group import BaseWorkerGroup
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: BaseWorkerGroup, backend_config: Any) -> None:
            if len(set(worker_group.execute(_node))) > 1:
                super().on_start(worker_group, backend_config)
                return
            worker_group.execute(_set_torch_distributed_env_vars)
            worker_group.execute(os.environ.update, LOOPBACK)
            group = {
                "backend": backend,
                "world_size": len(worker_group),
                "init_method": f"file://{storage}/{uuid.uuid4().hex}",  # one that was used already would mislead
                "timeout_s": backend_config.timeout_s,
            }
            meetings: list[Any] = [
                worker_group.execute_single_async(k, _setup_torch_process_group, world_rank=k, **group)
                for k in range(len(worker_group))
            ]
            ray.get(meetings)

    class Meeting(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Meeting(backend=backend)


def _node() -> str:
    """The machine that this process is on, as Ray knows it."""
    return str(ray.get_runtime_context().get_node_id())


def _work(job: dict[str, str]) -> None:
    """What each worker does; torch's process group is there by then."""
    from ray.train import get_context

    _step_back(get_context().get_local_world_size())
    _increment(Path(job["folder"]))


def _increment(folder: Path) -> None:
    from lifelist.training import increment  # here, with torch: seconds of work, after stepping back

    increment.run(folder)


def _step_back(workers: int) -> None:
    """Serving comes first: this thread, and those that it starts, take the time that nobody else wants.

    Niceness alone would share it: what serves, and wakes up, then waits for a slice of the trainer's to end.
    """
    os.nice(NICENESS)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    import torch

    # One core stays free: threads that wait for one another come to a halt as soon as one of them shares a core.
    torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // workers))
    torch.nn.modules.module.register_module_forward_hook(_rest_after)


def _rest_after(module: Any, images: Any, output: Any) -> None:
    """A moment of rest after each layer, and on the way back through it.

    A core takes over what waits for another one only when it has nothing to do, and with a trainer that never stops it
    always has: what serves would wait for the next tick of the scheduler, milliseconds.
    """
    if getattr(output, "is_cpu", False):  # a GPU would wait for the rests
        time.sleep(REST_S)
        if output.requires_grad:
            output.register_hook(lambda gradient: time.sleep(REST_S))


def _gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
