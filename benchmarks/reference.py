"""What `lifelist bench training` is measured against: a BiC increment as the well-known libraries write it.

Stage 1, exemplars and evaluation are PyCIL's pattern (models/bic.py, models/base.py): PIL transforms of each image in
DataLoader workers, float32 NCHW, the accuracy on all training and test images after every epoch, a loader for each
class in herding, and another for each mean. FACIL evaluates on held-out images instead: `Outcome.without_evaluation`.

Stage 2 is FACIL's (approach/bic.py): SGD through the whole network in eval mode, on raw logits of images that were
never trained on. PyCIL's has defects that would cost accuracy (methods.md B1, B2, B4), and more evaluation. PyCIL's
colour jitter is left out, as ours has none; and its means, like these, are without mirrored images.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lifelist.training.network import Network

# PyCIL's constants for CIFAR-100, which are the paper's
EPOCHS, MILESTONES, RATE, DECAY = 250, (100, 150, 200), 0.1, 0.1
BATCH, WEIGHT_DECAY, TEMPERATURE = 128, 2e-4, 2
BIAS_EPOCHS = 20  # FACIL has 200, PyCIL 250; at so few, the time is not counted against them, and it nearly converges

Bytes = npt.NDArray[np.uint8]
Answer = Callable[[Tensor], Tensor]  # images B×3×S×S → logits B×C


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """One increment: what both sides start from."""

    teacher: Network
    student: Network  # the teacher, grown
    train: tuple[Bytes, Tensor]  # N×S×S×3 and N rows: exemplars of old classes, best first, and new images
    holdout: tuple[Bytes, Tensor]
    test: tuple[Bytes, Tensor]
    exemplars: int  # of each class afterwards
    mean: Sequence[float]
    std: Sequence[float]
    flip: bool
    epochs: int
    seed: int
    workers: int


@dataclass(slots=True)
class Outcome:
    """What came of it. parts: wall seconds of each."""

    linear: float = 0.0
    nearest_mean: float = 0.0
    alpha: float = 1.0
    beta: float = 0.0
    images: int = 0  # trained on
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())

    @property
    def without_evaluation(self) -> float:
        """The same, had it looked at no images after each epoch."""
        return self.seconds - self.parts["evaluation of each epoch"]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - began


class ImageArray(Dataset[Any]):
    """PyCIL's DummyDataset, FACIL's MemoryDataset: one PIL image at a time."""

    def __init__(self, images: Bytes, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels.numpy(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[k])), self.labels[k]


class BiasLayer(nn.Module):
    """alpha·z + beta for the newest classes."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.alpha, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, logits: Tensor) -> Tensor:
        return torch.cat([logits[:, : self.first], self.alpha * logits[:, self.first :] + self.beta], 1)


def run(given: Given) -> Outcome:
    """One increment: both stages, exemplars, class means, and the accuracy of the linear and nearest-mean answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given.seed)
        return _run(given)


def _run(given: Given) -> Outcome:
    found, network = Outcome(), given.student
    device = next(network.parameters()).device
    transform, plain = transforms_of(given)
    load = partial(DataLoader, batch_size=BATCH, num_workers=given.workers)
    train = load(ImageArray(*given.train, transform), shuffle=True)
    held = load(ImageArray(*given.holdout, plain), shuffle=True)
    test = load(ImageArray(*given.test, plain), shuffle=False)
    known = given.teacher.classes
    bias = BiasLayer(known).to(device)

    optimiser = optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=WEIGHT_DECAY)
    schedule = _steps(optimiser, given.epochs)
    for _ in range(given.epochs):
        with found.part("training"):
            stage1_epoch(network, given.teacher, train, optimiser)
            schedule.step()
        found.images += len(given.train[1])
        with found.part("evaluation of each epoch"):
            accuracy(network, network.logits, train)
            accuracy(network, network.logits, test)

    optimiser = optim.SGD(bias.parameters(), lr=RATE, momentum=0.9)
    with found.part("bias correction"):
        for _ in range(BIAS_EPOCHS):
            stage2_epoch(network, bias, held, optimiser)
    found.alpha, found.beta = bias.alpha.item(), bias.beta.item()

    with found.part("selection"):
        means = np.stack(
            [class_mean(network, given, row, plain, chooses=row >= known) for row in range(network.classes)]
        )
    with found.part("evaluation"):
        found.linear = accuracy(network, lambda x: bias(network.logits(x)), test)
        vectors, rows = extract_vectors(network, test)
        distances = ((unit(vectors)[:, None] - means[None]) ** 2).sum(2)
        found.nearest_mean = float((distances.argmin(1) == rows).mean())
    return found


def stage1_epoch(network: Network, teacher: Network, loader: Any, optimiser: optim.SGD) -> float:
    """λ = n/(n+m) of distilling at T = 2, 1-λ of classifying (PyCIL `_run`); the mean loss."""
    known, share = teacher.classes, teacher.classes / network.classes
    device = next(network.parameters()).device
    network.train()
    losses = 0.0
    for images, rows in loader:
        images, rows = images.to(device), rows.to(device)
        logits = network.logits(images)
        with torch.no_grad():
            wanted = functional.softmax(teacher.logits(images) / TEMPERATURE, dim=1)
        distil = -(wanted * functional.log_softmax(logits[:, :known] / TEMPERATURE, dim=1)).sum(1).mean()
        loss = share * distil + (1 - share) * functional.cross_entropy(logits, rows)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses += loss.item()
    return losses / len(loader)


def stage2_epoch(network: Network, bias: BiasLayer, loader: Any, optimiser: optim.SGD) -> float:
    """Alpha and beta by SGD, the network frozen (FACIL: raw logits, and 0.1·beta²/2); the mean loss."""
    device = next(network.parameters()).device
    network.eval()
    losses = 0.0
    for images, rows in loader:
        with torch.no_grad():
            logits = network.logits(images.to(device))
        loss = functional.cross_entropy(bias(logits), rows.to(device)) + 0.1 * (bias.beta[0] ** 2) / 2
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses += loss.item()
    return losses / len(loader)


@torch.no_grad()
def accuracy(network: Network, answer: Answer, loader: Any) -> float:
    """PyCIL's `_compute_accuracy`: share of right answers."""
    network.eval()
    device = next(network.parameters()).device
    right = total = 0
    for images, rows in loader:
        right += int((answer(images.to(device)).argmax(1).cpu() == rows).sum())
        total += len(rows)
    return right / total


@torch.no_grad()
def extract_vectors(network: Network, loader: Any) -> tuple[Any, Any]:
    """PyCIL's `_extract_vectors`: features N×D and rows N."""
    network.eval()
    device = next(network.parameters()).device
    found = [(network(images.to(device)).cpu().numpy(), rows.numpy()) for images, rows in loader]
    return np.concatenate([vectors for vectors, _ in found]), np.concatenate([rows for _, rows in found])


def class_mean(network: Network, given: Given, row: int, plain: Any, *, chooses: bool) -> Any:
    """The mean of a class's exemplars, D; of a new class, they are chosen first (PyCIL's base.py)."""
    images, labels = given.train
    of_class = images[(labels == row).numpy()]

    def vectors(which: Bytes) -> Any:
        dataset = ImageArray(which, torch.full((len(which),), row), plain)
        return unit(extract_vectors(network, DataLoader(dataset, batch_size=BATCH, num_workers=given.workers))[0])

    if chooses:
        kept, _ = herd(of_class, vectors(of_class), given.exemplars)
    else:
        kept = of_class[: given.exemplars]
    return unit(vectors(kept).mean(0))


def herd(data: Bytes, vectors: Any, count: int) -> tuple[Bytes, Any]:
    """PyCIL's `_construct_exemplar`: greedily, with a copy of everything that is left after each pick."""
    mean = vectors.mean(0)
    images: list[Any] = []
    chosen: list[Any] = []
    for k in range(1, min(count, len(data)) + 1):
        total = np.sum(chosen, axis=0)
        best = np.argmin(np.sqrt(np.sum((mean - (vectors + total) / k) ** 2, axis=1)))
        images.append(np.array(data[best]))
        chosen.append(np.array(vectors[best]))
        vectors = np.delete(vectors, best, axis=0)
        data = np.delete(data, best, axis=0)
    return np.array(images), np.array(chosen)


def unit(vectors: Any) -> Any:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-8)


def best_workers(given: Given, candidates: Sequence[int] = (0, 2, 4)) -> int:
    """How many DataLoader workers train quickest here, over an epoch each, their start included."""
    seconds = {}
    for workers in candidates:
        network = given.student.copy()
        images, rows = given.train
        dataset = ImageArray(images, rows, transforms_of(given)[0])
        began = time.perf_counter()
        stage1_epoch(
            network,
            given.teacher,
            DataLoader(dataset, batch_size=BATCH, num_workers=workers),
            optim.SGD(network.parameters(), lr=1e-3),
        )
        seconds[workers] = time.perf_counter() - began
    return min(seconds, key=lambda workers: seconds[workers])


def transforms_of(given: Given) -> tuple[Any, Any]:
    """(of training, of evaluation)."""
    size = given.train[0].shape[1]
    last = [transforms.ToTensor(), transforms.Normalize(given.mean, given.std)]
    flip = [transforms.RandomHorizontalFlip()] if given.flip else []
    return transforms.Compose([transforms.RandomCrop(size, padding=size // 8), *flip, *last]), transforms.Compose(last)


def _steps(optimiser: optim.SGD, epochs: int) -> optim.lr_scheduler.MultiStepLR:
    """PyCIL's milestones, in proportion to fewer epochs."""
    return optim.lr_scheduler.MultiStepLR(optimiser, [round(m * epochs / EPOCHS) for m in MILESTONES], gamma=DECAY)
