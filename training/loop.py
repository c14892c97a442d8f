"""The one training loop. It reads a row of the table of methods, and resumes from its last epoch."""

import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelist.exporter.errors import BadSetting, Failed
from lifelist.exporter.manifest import BiasCorrection
from lifelist.training import checkpoint, workers
from lifelist.training.data import Augmentation, Colour, normalise, sent
from lifelist.training.loss import TERMS, increment_loss
from lifelist.training.methods import Method, Schedule
from lifelist.training.network import Network
from lifelist.training.options import Precision, TrainingOptions
from lifelist.training.pixels import Pixels

SMALLEST_BATCH = 16  # below it, batch-norm's statistics are noise
FEW_STEPS = 32  # in an epoch: fewer are short
SMALLEST_IMAGE = 16  # pixels in each direction, below which no image is zoomed out
HOPELESS = 1000.0  # times the loss of guessing: no training came back from there; from 100 times, some did
SMALLEST_SHARE = 8192  # pixels: of fewer, a core spends its time on calls rather than on arithmetic

log = logging.getLogger(__name__)
Event = dict[str, Any]


def seeded(seed: int, *parts: object) -> torch.Generator:
    """A generator on the CPU for one purpose: `parts` name it, so that no two purposes share their numbers."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What every phase of one increment shares: where it computes, how it normalises, where it keeps its epochs."""

    options: TrainingOptions
    device: torch.device
    half: bool  # bfloat16 inside the network
    mean: Colour
    std: Colour
    fingerprint: str = ""  # of the increment: options, images, teacher. An epoch of another one is refused
    folder: Path | None = None  # of checkpoints; None: in memory only
    tell: Callable[[Event], None] = field(default=lambda event: None)

    def normalised(self, pixels: Tensor) -> Tensor:
        """B×S×S×3 uint8 anywhere → B×3×S×S float32 on the device."""
        return normalise(pixels.to(self.device), self.mean, self.std)

    def asked(self, network: Network) -> Network:
        """What to ask for answers that teach or rank: where bfloat16 will do, the network's quicker copy."""
        return network.for_passes() if self.half else network

    def warn(self, what: str, message: str) -> None:
        """Something was done otherwise than asked: an event for the caller, and a line in the log."""
        log.warning(what, extra={"facts": {"message": message}})
        self.tell({"kind": "warning", "what": what, "message": message})


def device_of(options: TrainingOptions) -> torch.device:
    """Where it trains; auto is CUDA if that works."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(found if options.device == "auto" else options.device)


def start(options: TrainingOptions, **more: Any) -> Run:
    """A Run on the device and in the precision that `options` ask for. BadSetting if there is no such device here."""
    device = device_of(options)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadSetting(
            f"device {options.device!r} is not here: {torch.cuda.device_count()} CUDA devices work; auto takes the CPU"
        )
    if device.index is not None and workers.count() > 1:
        raise BadSetting(
            f"device {options.device!r} is one GPU, for {workers.count()} workers; auto gives each its own"
        )
    half = {"fp32": False, "bf16": True, "auto": device.type == "cuda" and torch.cuda.is_bf16_supported()}
    return Run(options=options, device=device, half=half[options.precision], **more)


def quickest(device: str) -> Precision:
    """bf16 on a CPU with matrix units (AMX), where it is half as quick again; else auto.

    Not what auto means there: with some networks (ResNet-18, not ResNet-32) two runs end with different bits.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return "bf16" if on_cpu and torch.cpu.get_capabilities().get("amx_bf16") else "auto"


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """The live network as it answers: frozen, in eval mode, its newest classes corrected. Gives logits, B×n."""

    network: Network
    bias: BiasCorrection | None = None

    def __post_init__(self) -> None:
        self.network.requires_grad_(False).eval()  # train mode would show it the batch's statistics (B13, I5)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return corrected(self.network.logits(images), self.bias)


def corrected(logits: Tensor, bias: BiasCorrection | None) -> Tensor:
    """q_k = alpha·z_k + beta for the rows of one increment, all others as they are (Wu et al. 2019, eq. 4)."""
    if bias is None:
        return logits
    rows = slice(bias.first_row, bias.last_row)
    return torch.cat([logits[:, : rows.start], bias.alpha * logits[:, rows] + bias.beta, logits[:, rows.stop :]], 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """One stretch of training: on what, from whom, how long."""

    name: str
    method: Method
    schedule: Schedule
    pixels: Pixels | Tensor  # N×S×S×3 uint8
    rows: Tensor  # N int64 on the CPU: which output is right
    n: int  # outputs that count as old
    heads: Sequence[slice]  # the old outputs, cut for distillation
    teacher: Teacher | None  # None where nothing is distilled
    refreshed: Sequence[int] = ()  # old rows whose classes bring new images


def scaled(schedule: Schedule, options: TrainingOptions, reference: Schedule) -> Schedule:
    """`schedule` with what the options ask for instead: epochs and learning rate of `reference`, in proportion."""
    factor = options.epochs / reference.epochs if options.epochs else 1.0
    faster = options.learning_rate / reference.learning_rate if options.learning_rate else 1.0
    return replace(
        schedule,
        epochs=max(1, round(schedule.epochs * factor)),
        milestones=tuple(round(milestone * factor) for milestone in schedule.milestones),
        learning_rate=schedule.learning_rate * faster,
        batch_size=options.batch_size or schedule.batch_size,
        least_steps=1 if options.batch_size else schedule.least_steps,
        few_epochs=1.0 if options.epochs else schedule.few_epochs,
        few_rate=1.0 if options.learning_rate else schedule.few_rate,
        colour=schedule.colour or options.colour,
    )


def fitted(schedule: Schedule, images: int) -> Schedule:
    """`schedule` for so many images. Where an epoch has few steps, it says itself how many more, and how fast.

    Batches are small enough for `least_steps` in an epoch; the learning rate falls with the root of the batch, as the
    noise of a step grows.
    """
    if schedule.least_steps == 1 or images >= FEW_STEPS * schedule.batch_size:
        return schedule
    size = min(schedule.batch_size, max(SMALLEST_BATCH, images // schedule.least_steps))
    return replace(
        schedule,
        epochs=round(schedule.epochs * schedule.few_epochs),
        batch_size=size,
        learning_rate=schedule.learning_rate * schedule.few_rate * math.sqrt(size / schedule.batch_size),
    )


def learning_rate(schedule: Schedule, epoch: int, share: float) -> float:
    """At `share` (0 … 1) of an epoch, counted from 0. A pure function: the position in a checkpoint is its state."""
    if schedule.shape == "steps":
        passed = sum(epoch >= milestone for milestone in schedule.milestones)
        return float(schedule.learning_rate * schedule.factor**passed)
    done = (epoch + share) / schedule.epochs
    warm = 0.2
    if done < warm:
        return schedule.learning_rate * (0.1 + 0.9 * done / warm)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def image_size(schedule: Schedule, epoch: int, full: int) -> int:
    """Pixels in each direction of what the network is shown in an epoch, counted from 0."""
    zoom = schedule.zooms[epoch * len(schedule.zooms) // schedule.epochs]
    return min(full, max(SMALLEST_IMAGE, round(full * zoom)))


def batches(count: int, size: int, views: int, order: torch.Generator, *, drops_last: bool) -> list[Tensor]:
    """Image numbers of one epoch, `views` times each, in natural proportions (B19): int64, at most `size` at a time.

    A last batch that is not full is left out where the schedule says so; one of a single image always is, since
    batch-norm has no statistics of it. Another order brings that image back in the next epoch.
    """
    found: list[Tensor] = []
    for _ in range(views):
        cut = list(torch.split(torch.randperm(count, generator=order), size))
        if len(cut) > 1 and (len(cut[-1]) == 1 or (drops_last and len(cut[-1]) < size)):
            cut.pop()
        found += cut
    return found


def train(network: Network, phase: Phase, run: Run) -> None:
    """Train `network` in place through a phase; from its last finished epoch, if it was interrupted.

    A checkpoint after each epoch, with its event, which is then told, and told again by a run that resumes there:
    whoever killed it may have been quicker. Killed at any moment and started again, a run ends with the same bits on
    a CPU as one that was not. The network is in eval mode afterwards.
    """
    if len(phase.rows) < 2:
        raise Failed(
            f"phase {phase.name!r} has {len(phase.rows)} image to train on; batch-norm needs at least 2. "
            "Add images, or choose a method that replays exemplars, such as bic"
        )
    phase = replace(phase, schedule=fitted(phase.schedule, len(phase.rows)))
    optimiser = torch.optim.SGD(_groups(network, phase.schedule), lr=0.1, momentum=phase.schedule.momentum)
    random = {what: seeded(run.options.seed, phase.name, phase.n, what) for what in ("order", "augment", "noise")}
    forked = torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else [])
    with forked, _Cores(network, phase, run) as cores:
        torch.manual_seed(random["noise"].initial_seed())  # dropout, in the networks that have it, draws from this one
        done = _resume(network, optimiser, random, phase, run)
        limit = HOPELESS * guessing(phase, network.classes)
        seconds: list[float] = []
        for epoch in range(done, phase.schedule.epochs):
            if workers.count() > 1:  # each draws its own dropout; a checkpoint keeps the state of one
                own = seeded(run.options.seed, phase.name, phase.n, "noise", epoch, workers.rank())
                torch.manual_seed(own.initial_seed())
            began = time.monotonic()
            loss, images = _epoch(network, optimiser, random, phase, run, epoch, cores)
            seconds.append(time.monotonic() - began)
            if not sum(loss.values()) <= limit:  # nor if it is no number
                raise Failed(_diverged(loss, limit, epoch, phase))
            event = {
                "kind": "epoch",
                "phase": phase.name,
                "epoch": epoch + 1,
                "epochs": phase.schedule.epochs,
                "loss": loss,
                "seconds": round(seconds[-1], 3),
                "images_per_second": round(images / seconds[-1], 1),
                "seconds_left": round(sum(seconds) / len(seconds) * (phase.schedule.epochs - epoch - 1), 1),
            }
            _save(network, optimiser, random, phase, run, event)
            log.debug("epoch.finished", extra={"facts": event})
            run.tell(event)
    workers.same_everywhere(network)
    network.eval()


def guessing(phase: Phase, classes: int) -> float:
    """The loss of a network that answers 0 for every output, and has learned nothing; a thousand images will do."""
    rows = phase.rows[:: 1 + len(phase.rows) // 1000]
    student, teacher = torch.zeros(len(rows), classes), torch.zeros(len(rows), phase.n)
    return float(increment_loss(phase.method, student, teacher, rows, phase.heads, phase.refreshed).sum())


def _diverged(loss: Mapping[str, float], limit: float, epoch: int, phase: Phase) -> str:
    terms = ", ".join(f"{term} {value:g}" for term, value in loss.items())
    return (
        f"training diverged in epoch {epoch + 1} of {phase.name!r}: the loss became {terms}; guessing gives "
        f"{limit / HOPELESS:.3g} in all. A lower learning_rate may help: it went up to {phase.schedule.learning_rate:g}"
    )


class _Cores:
    """Computes the gradient of a batch on several cores, each with a share of its images, as data-parallel training
    does on several GPUs: batch-norm takes the statistics of a share, and its running ones are those of the first.
    With several workers, the cores are those of all: twice as many workers, or cores in each, come to the same.

    On a CPU this is quicker than several threads in each operation, which wait for one another a hundred times in a
    batch, and come nearly to a halt as soon as one of them shares its core with another program.
    """

    def __init__(self, network: Network, phase: Phase, run: Run) -> None:
        self.phase, self.run, self.parameters = phase, run, list(network.parameters())
        self.threads = torch.get_num_threads()
        pixels = phase.schedule.batch_size * run.options.image_size**2
        on_cpu = run.device.type == "cpu"
        self.count = workers.count() * (self.threads if on_cpu and not _draws(network) else 1)  # cores of all workers
        if on_cpu:
            self.count = min(self.count, max(1, pixels // SMALLEST_SHARE))
        self.here = -(-self.count // workers.count())
        self.networks = [network, *(_twin(network) for _ in range(self.here - 1))]
        self.pool = ThreadPoolExecutor(self.here, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "_Cores":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()
        if self.here > 1:
            torch.set_num_threads(self.threads)  # what its threads set for themselves is kept for later ones, too

    def gradient(self, images: Tensor, rows: Tensor) -> Tensor:
        """Puts it where the optimiser looks for it. The terms of the loss, means over the batch."""
        for network in self.networks:
            network.train()
        count = max(1, min(self.count, len(rows) // SMALLEST_BATCH))
        here = -(-count // workers.count())
        shares = list(zip(images.chunk(count), rows.chunk(count), strict=True))[here * workers.rank() :][:here]
        jobs = [(network, x, y, len(y) / len(rows)) for network, (x, y) in zip(self.networks, shares, strict=False)]
        if len(jobs) > 1:
            found = [job.result() for job in [self.pool.submit(self._share, *job) for job in jobs]]
        else:
            found = [self._share(*job) for job in jobs]
        if not found:  # a batch with fewer shares than there are workers
            found = [(images.new_zeros(len(TERMS)), [torch.zeros_like(p) for p in self.parameters])]
        terms = torch.stack([terms for terms, _ in found]).sum(0)
        sums = [sum(parts[1:], parts[0]) for parts in zip(*(gradients for _, gradients in found), strict=True)]
        terms, *sums = workers.shared_sum([terms, *sums])
        for parameter, gradient in zip(self.parameters, sums, strict=True):
            parameter.grad = gradient
        return terms

    def _share(self, network: Network, images: Tensor, rows: Tensor, weight: float) -> tuple[Tensor, Sequence[Tensor]]:
        phase, run = self.phase, self.run
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.half):
            student = network.logits(images)
            teacher = phase.teacher(images) if phase.teacher else student.new_zeros(len(rows), phase.n)
        terms = weight * increment_loss(phase.method, student, teacher, rows, phase.heads, phase.refreshed)
        return terms.detach(), torch.autograd.grad(terms.sum(), self.parameters, materialize_grads=True)


def _draws(network: Network) -> bool:
    """Whether it draws random numbers as it runs, which several threads would share out differently each time."""
    return any("Dropout" in type(m).__name__ or "StochasticDepth" in type(m).__name__ for m in network.modules())


def _twin(network: Network) -> Network:
    """A copy with batch-norm statistics of its own, whose parameters are those of the original."""
    twin = copy.deepcopy(network)
    for name, parameter in network.named_parameters():
        module, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(module), leaf, parameter)
    return twin


def _epoch(
    network: Network,
    optimiser: torch.optim.SGD,
    random: dict[str, torch.Generator],
    phase: Phase,
    run: Run,
    epoch: int,
    cores: _Cores,
) -> tuple[dict[str, float], int]:
    """One pass; (mean of each term of the loss, images seen). Nothing is read back from the device until the end."""
    schedule, options = phase.schedule, run.options
    augment = Augmentation(crop=options.crop, flip=options.flip, colour=schedule.colour)
    cut = batches(len(phase.rows), schedule.batch_size, schedule.views, random["order"], drops_last=schedule.drops_last)
    total, images = torch.zeros(len(TERMS), device=run.device), 0
    size = image_size(schedule, epoch, options.image_size)
    for step, which in enumerate(cut):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, epoch, step / len(cut))
        rows = sent(phase.rows[which], run.device)
        pixels = sent(phase.pixels[which], run.device)
        x = augment(pixels, run.mean, run.std, random["augment"])
        if size < options.image_size:
            x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
        terms = cores.gradient(x, rows)
        if options.gradient_noise:
            add_gradient_noise(network, epoch + 1, schedule.batch_size, random["noise"])
        optimiser.step()
        total += terms * len(rows)
        images += len(rows)
    means = (total / images).tolist()
    return {term: round(value, 6) for term, value in zip(TERMS, means, strict=True)}, images


def add_gradient_noise(network: nn.Module, epoch: int, batch_size: int, lot: torch.Generator) -> None:
    """N(0, 1)·0.3/(1+epoch)^0.55, at the scale of EEIL's code: there on the *sum* over a batch, so here divided by it.

    epoch counts from 1. On mean gradients that is about 1.6e-3 at first; 128 times more ruins training (E5).
    """
    scale = 0.3 / (1 + epoch) ** 0.55 / batch_size
    for parameter in network.parameters():
        if parameter.grad is not None:
            noise = torch.randn(parameter.shape, generator=lot).to(parameter.device)
            parameter.grad.add_(noise, alpha=scale)


def _groups(network: Network, schedule: Schedule) -> Iterator[dict[str, Any]]:
    """Parameters that weight decay pulls on, and those that it leaves alone."""
    decays = [p for p in network.parameters() if schedule.decays_biases or p.ndim > 1]
    stays = [p for p in network.parameters() if not (schedule.decays_biases or p.ndim > 1)]
    yield {"params": decays, "weight_decay": schedule.weight_decay}
    if stays:
        yield {"params": stays, "weight_decay": 0.0}


def _file(phase: Phase, run: Run) -> Path | None:
    return run.folder / f"{phase.name}.safetensors" if run.folder else None


def _save(
    network: Network,
    optimiser: torch.optim.SGD,
    random: dict[str, torch.Generator],
    phase: Phase,
    run: Run,
    event: Event,
) -> None:
    if (file := _file(phase, run)) is None or workers.rank() > 0:
        return
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= checkpoint.optimiser_state(optimiser, names)
    tensors |= {f"random.{what}": generator.get_state() for what, generator in random.items()}
    tensors["random.global"] = torch.get_rng_state()
    if run.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.device)
    header = {"event": event, "increment": run.fingerprint}
    checkpoint.write_atomically(file, checkpoint.pack(tensors, header))


def _resume(
    network: Network, optimiser: torch.optim.SGD, random: dict[str, torch.Generator], phase: Phase, run: Run
) -> int:
    """Put everything back as it was after the last finished epoch; how many there were."""
    if (file := _file(phase, run)) is None or not file.exists():
        return 0
    data = file.read_bytes()
    header, tensors = checkpoint.header(data, str(file)), checkpoint.unpack(data, str(file))
    if header.get("increment") != run.fingerprint:
        raise Failed(
            f"{file} is an epoch of another increment, or of other options; remove {file.parent} to start anew"
        )
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    checkpoint.restore_optimiser(optimiser, names, tensors)
    for what, generator in random.items():
        generator.set_state(tensors[f"random.{what}"])
    torch.set_rng_state(tensors["random.global"])
    if run.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], run.device)
    run.tell(header["event"])
    done = int(header["event"]["epoch"])
    log.info("training.resumed", extra={"facts": {"phase": phase.name, "epochs_done": done}})
    return done
