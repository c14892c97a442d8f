"""Small real increments on the digits, for the tests of training."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch

from lifelist.training import experiment
from lifelist.training.data import Dataset, Images, read, roles_on_arrival
from lifelist.training.forms import distillation_heads
from lifelist.training.increment import learn
from lifelist.training.job import Learned, Task
from lifelist.training.loop import Event, Phase, Teacher
from lifelist.training.methods import METHODS, Schedule
from lifelist.training.options import TrainingOptions
from lifelist.training.pixels import Pixels

torch.set_num_threads(1)  # so little work that a second thread only waits, and bits do not depend on the machine

TINY = TrainingOptions(image_size=8, flip=False, memory_total=240, epochs=2, batch_size=32, precision="fp32")

BLACK_AND_WHITE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@functools.cache
def digits(size: int = 8) -> Dataset:
    """All the digits, decoded once."""
    return read("digits", replace(TINY, image_size=size))


def together(*parts: Images) -> Images:
    """The images of all parts, in order."""
    return Images(
        Pixels(torch.cat([part.pixels[:] for part in parts])),
        torch.cat([part.labels for part in parts]),
        tuple(image_id for part in parts for image_id in part.ids),
    )


@functools.cache
def few(per_class: int = 40, size: int = 8) -> tuple[Dataset, torch.Tensor]:
    """(the first images of each digit, their roles: a fifth gate, a tenth hold-out)."""
    everything = digits(size)
    labels = everything.images.labels
    chosen = torch.cat([(labels == c).nonzero()[:per_class, 0] for c in range(10)])
    dataset = Dataset(everything.images.take(chosen), everything.names, everything.test[chosen])
    lot = torch.Generator().manual_seed(0)
    return dataset, roles_on_arrival(dataset.images.labels, gate=0.2, holdout=0.1, generator=lot)


def tasks(
    options: TrainingOptions = TINY,
    groups: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4), (5, 6)),
    per_class: int = 40,
    roles: torch.Tensor | None = None,
    change: Callable[[Task], Task] = lambda task: task,
    on_event: Callable[[Event], None] = lambda event: None,
) -> list[tuple[Task, Learned]]:
    """Increment after increment, each from what the one before it kept."""
    dataset, usual = few(per_class, options.image_size)
    steps: list[Learned] = []
    found = []
    for _ in groups:
        given = usual if roles is None else roles
        task = change(experiment.next_task(dataset, given, groups, steps, options))
        steps.append(learn(task, on_event=on_event))
        found.append((task, steps[-1]))
    return found


@functools.cache
def bic() -> tuple[tuple[Task, Learned], ...]:
    """A base of three digits and two increments of two, by BiC: trained once for all tests that only look at it."""
    return tuple(tasks())


def with_noise(task: Task, role: int) -> Task:
    """The same increment with random pixels in every image of a role."""
    pixels = task.images.pixels[:].clone()
    which = task.roles == role
    noise = torch.randint(256, pixels[which].shape, generator=torch.Generator().manual_seed(1))
    pixels[which] = noise.to(torch.uint8)
    return replace(task, images=Images(Pixels(pixels), task.images.labels, task.images.ids))


def noise(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    """count×size×size×3 uint8."""
    lot = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, size, size, 3), generator=lot).to(torch.uint8)


def digest(module: torch.nn.Module) -> str:
    """sha256 over every parameter and buffer."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def small_phase(method: str, teacher: Teacher | None, n: int, classes: int, epochs: int = 1) -> Phase:
    """One short stretch of training on noise."""
    rows = torch.arange(24) % classes
    schedule = Schedule(epochs=epochs, learning_rate=0.05)
    return Phase(
        name="main",
        method=METHODS[method],
        schedule=schedule,
        pixels=noise(24),
        rows=rows,
        n=n,
        heads=distillation_heads((n,) if n else ()),
        teacher=teacher,
    )
