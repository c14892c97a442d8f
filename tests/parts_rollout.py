"""Increments of a second: coloured pictures of 8×8 pixels, a network of two layers, homes with a trained version.

Everything is the real thing but the network, which is a real one, only small: what is tested here is the way to live.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import encoded

from lifelist.deploy import examples, rollout
from lifelist.deploy.records import Rollout
from lifelist.deploy.settings import GateCheck, Int8Options, Settings
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.training.network import NETWORKS
from lifelist.training.options import TrainingOptions

torch.set_num_threads(1)  # so little work that a second thread only waits

NAMES = ("red", "green", "blue", "yellow", "cyan", "pink", "white", "black", "orange", "grey")
_COLOURS = (
    (220, 30, 30), (30, 200, 40), (40, 60, 220), (230, 220, 40), (40, 220, 220),
    (230, 60, 220), (240, 240, 240), (10, 10, 10), (240, 130, 20), (120, 120, 120),
)  # fmt: skip

LENIENT = (  # lets every sound candidate through: most tests are not about what two epochs can learn
    GateCheck(check="classes"),
    GateCheck(check="old_accuracy", limit=1.0),
    GateCheck(check="new_class_accuracy", limit=0.0),
    GateCheck(check="parity_top1", limit=0.99),
)


class Small(torch.nn.Module):
    """B×3×8×8 to features B×16. Its export takes half a second instead of ResNet-32's two."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


NETWORKS["small"] = Small  # type: ignore[index]


def pictures(name: str, count: int = 20, first: int = 0) -> list[tuple[str, bytes]]:
    """(file name, PNG) of a class: its colour under noise, all different; the same whenever asked."""
    colour = np.array(_COLOURS[NAMES.index(name)])
    found = []
    for k in range(first, first + count):
        noise = np.random.default_rng([NAMES.index(name), k]).normal(0, 25, (8, 8, 3))
        found.append((f"{name}-{k}.png", encoded((colour + noise).clip(0, 255).astype(np.uint8))))
    return found


def settings(home: Path, **changes: Any) -> Settings:
    """A few epochs on 8×8 pixels, and a lenient gate. `changes`: other settings, or options of training."""
    training = {"network": "small", "image_size": 8, "epochs": 8, "batch_size": 16, "memory_total": 60}
    training |= {"flip": False, "crop": False}
    for name in list(changes):
        if name in TrainingOptions.__dataclass_fields__:
            training[name] = changes.pop(name)
    usual = {"home": home, "gate": LENIENT, "training": TrainingOptions(**training), "int8": Int8Options(enabled=False)}
    return Settings(**(usual | changes))  # type: ignore[arg-type]


def add(workshop: Workshop, names: Sequence[str], count: int = 20) -> None:
    """Give each class its pictures."""
    for name in names:
        found = examples.add(workshop, name, pictures(name, count))
        assert {result.status for result in found} <= {"accepted", "duplicate"}


def learn(workshop: Workshop, *names: str, count: int = 20, method: str | None = None) -> Rollout:
    """Add the classes' pictures and carry an increment of them to its end."""
    add(workshop, names, count)
    started = rollout.start(workshop, names, method)
    assert rollout.carry_all(workshop)[-1].id == started.id
    return workshop.store.rollout(started.id)


@functools.cache
def _prepared(count: int) -> Path:
    home = Path(tempfile.mkdtemp(prefix="lifelist-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    workshop = open_workshop(settings(home))
    assert learn(workshop, *NAMES[:2], count=count).state == "done"
    workshop.store.close()
    return home


def prepared(home: Path, count: int = 20, **changes: Any) -> Workshop:
    """A workshop whose version 1 is live, of so many pictures of red and green. Trained once in a run, then copied."""
    shutil.copytree(_prepared(count), home, dirs_exist_ok=True)
    return open_workshop(settings(home, **changes))
