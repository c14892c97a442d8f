"""Every option of training. No torch here: options travel as JSON, and settings are read where there is none."""
# ruff: noqa: RUF009  (`_say` makes a dataclasses.field)

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from lifelist.exporter.errors import BadSetting
from lifelist.training.methods import METHODS, NAMES, ScheduleName, possible

Selection = Literal["herding", "nearest", "random"]
Precision = Literal["auto", "fp32", "bf16"]
FITTED_QUOTA = 20  # images of a class in the memory, of which a tenth, two, are hold-out: a correction can be fitted


def _say(default: Any, text: str) -> Any:
    """A field with a default and one line of help, which `lifelist settings` shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How an increment is trained. BadSetting names the option, its value, and what is allowed."""

    method: str = _say("bic", "row of the table of methods: " + ", ".join(METHODS) + "; auto: picked by what is there")
    network: str = _say("resnet32", "resnet32, resnet32-icarl, or any torchvision classification model by name")
    pretrained: str = _say("", "file with weights for the base: .safetensors, or a torch file; empty: random weights")
    image_size: int = _say(32, "the network sees this many pixels in each direction")
    resize_to: int = _say(0, "shorter side before the centre crop; 0: image_size")
    schedule: ScheduleName = _say("short", "paper: as long as its authors trained; short: for a machine without GPU")
    time_limit_s: float = _say(0.0, "method auto: where training would take longer, the backbone is frozen; 0: none")
    epochs: int = _say(0, "epochs of an increment; 0: as the schedule says")
    batch_size: int = _say(0, "images in one step; 0: as the schedule says")
    learning_rate: float = _say(0.0, "peak learning rate; 0: as the schedule says")
    memory_total: int = _say(2000, "images of known classes kept for replay, hold-out included, shared by all classes")
    memory_per_class: int = _say(0, "the same for each class; 0: memory_total is shared instead")
    selection: Selection = _say("herding", "which images become exemplars")
    crop: bool = _say(True, "augment by shifting up to an eighth of the image in each direction")
    flip: bool = _say(True, "augment by mirroring; class means then include mirrored exemplars")
    colour: bool = _say(False, "augment by brightness or contrast, as EEIL does")
    gradient_noise: bool = _say(False, "EEIL's noise on gradients, at the scale of its authors' code")
    precision: Precision = _say("auto", "auto: bfloat16 on a GPU that has it, else float32")
    device: str = _say("auto", "auto: CUDA if it works, else CPU; or cpu, cuda, cuda:1 …")
    seed: int = _say(0, "of everything random; the same seed gives the same weights on a CPU")

    def __post_init__(self) -> None:
        if self.method not in NAMES:
            near = difflib.get_close_matches(self.method, NAMES, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise BadSetting(f"method {self.method!r} does not exist; there are {', '.join(NAMES)}.{hint}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadSetting(f"{name} {getattr(self, name)!r} does not exist; there are {', '.join(choices)}")
        for name, (least, most) in _LIMITS.items():
            if not getattr(self, name) >= least:
                raise BadSetting(f"{name} should be at least {least}, not {getattr(self, name)}")
            if math.isfinite(value := getattr(self, name)) and value > most:
                raise BadSetting(f"{name} should be at most {most:,}, not {value:,}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise BadSetting(f"device {self.device!r} does not exist; there are auto, cpu, cuda, and cuda:N")
        for name in ("learning_rate", "time_limit_s"):
            if not math.isfinite(value := getattr(self, name)):
                raise BadSetting(f"{name} should be a number, not {value}")
        if self.batch_size == 1:
            raise BadSetting(
                "batch_size should be at least 2 (or 0, as the schedule says), not 1: batch-norm needs two"
            )
        if 0 < self.resize_to < self.image_size:
            raise BadSetting(
                f"resize_to {self.resize_to} is below image_size {self.image_size}: "
                "the crop would be larger than the image; use 0 for the same"
            )

    @property
    def resized_to(self) -> int:
        """Shorter side before the centre crop, pixels."""
        return self.resize_to or self.image_size

    def quota(self, classes: int) -> int:
        """Images kept of each of `classes` classes, hold-out included. Floor: a budget is a limit (methods.md I14)."""
        return self.memory_per_class or self.memory_total // max(classes, 1)

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON stores them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The options in a JSON object; BadSetting names an unknown one, or one of a wrong type."""
        known = {f.name: f.type for f in dataclasses.fields(cls)}
        if unknown := sorted(set(found) - set(known)):
            raise BadSetting(f"training has no option {', '.join(unknown)}; it has {', '.join(known)}")
        for name, value in found.items():
            default = next(f.default for f in dataclasses.fields(cls) if f.name == name)
            allowed = (int, float) if isinstance(default, float) else (type(default),)
            if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
                raise BadSetting(f"{name} should be {type(default).__name__}, not {value!r}")
        return cls(**found)


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "selection": typing.get_args(Selection),
    "schedule": typing.get_args(ScheduleName),
    "precision": typing.get_args(Precision),
}
_LIMITS: Mapping[str, tuple[float, float]] = {  # least, most: beyond it, a slip of the hand
    "image_size": (8, 4096),
    "resize_to": (0, 8192),
    "time_limit_s": (0, 10_000_000),
    "epochs": (0, 100_000),
    "batch_size": (0, 65_536),
    "learning_rate": (0, 100),
    "memory_total": (0, 100_000_000),
    "memory_per_class": (0, 1_000_000),
    "seed": (0, 2**63 - 1),
}


def check(options: TrainingOptions, *, classes: int, images: int | None = None) -> None:
    """BadSetting if the memory is too small for so many classes, or a batch larger than the images to train on.

    classes  known after the increment; an experiment asks for its last one.  images: None where that is not known yet
    A memory of 0 is allowed: it means none.
    """
    rows = possible(options.method)
    uses_memory = all(row.replays and not row.keeps_all and not row.frozen for row in rows)
    holds_out = all(row.holdout for row in rows)
    least = 2 if holds_out else 1
    if uses_memory and (options.memory_total or options.memory_per_class) and options.quota(classes) < least:
        name, each = ("memory_per_class", 1) if options.memory_per_class else ("memory_total", classes)
        why = "could not keep an image of each"
        more = ""
        if holds_out:
            why = "could not keep an exemplar and a hold-out image of each"
            more = f" ({FITTED_QUOTA * each} for two hold-out images, from which a correction is fitted)"
        raise BadSetting(
            f"{name} {getattr(options, name)} is too small for method {options.method!r} with {classes} classes: it "
            f"{why}. Use at least {least * each}{more}, or 0 for no memory"
        )
    if images is not None and options.batch_size > images:
        raise BadSetting(
            f"batch_size {options.batch_size} is larger than the {images} images to train on; use at most {images}, or "
            "0 (as the schedule says, which makes batches smaller for few images)"
        )


def uncorrected(options: TrainingOptions, old: int) -> str | None:
    """What to warn of before an increment upon `old` classes whose memory is too small to fit a correction; or None."""
    if not all(row.holdout for row in possible(options.method)) or options.quota(old) >= FITTED_QUOTA:
        return None
    name, each = ("memory_per_class", 1) if options.memory_per_class else ("memory_total", old)
    return (
        f"{name} {getattr(options, name)} keeps fewer than two hold-out images of each of {old} known classes; bias "
        f"correction is not fitted to fewer: method {options.method!r} will answer uncorrected. Use at least "
        f"{FITTED_QUOTA * each}, or method wa, which needs none"
    )
