"""What the update path works with: settings, the places where things are kept, and how to train and to swap here."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lifelist.deploy.settings import Settings
from lifelist.deploy.store import Store
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Blobs, Registry
from lifelist.exporter.storage import open_storage

# Files of a version, beside those of session.py. EVALUATION: Learned.evaluation of the model that the version brought.
# LEARNED: ids of all images that its model, or one that it learned from, was given, as far as they were kept then.
CHECKPOINT, EXEMPLARS, EVALUATION = "checkpoint.safetensors", "exemplars.json", "evaluation.json"
STATISTICS = "statistics.safetensors"  # only where the backbone is frozen (training/statistics.py)
LEARNED = "learned.json"

Memory = Mapping[str, Mapping[str, list[str]]]  # {"exemplars": {"<class id>": [image ids, best first]}, "holdout": …}
Look = Callable[[], None]  # called every now and then while training; it may raise Cancelled
Train = Callable[[Path, Look], None]  # the increment in a folder (training/job.py), to its end
Swap = Callable[[int, int | None], None]  # version, the generation of `live` that is to be replaced; Moved if it is not


@dataclass(frozen=True, slots=True)
class Workshop:
    """Made once in each process that takes part: the operator, the worker, `lifelist base`."""

    settings: Settings
    store: Store
    registry: Registry
    images: Blobs  # the encoded files of examples, by content
    train: Train
    swap: Swap
    end_training: Callable[[], None] = lambda: None  # what trains outside of this process, if anything does

    @property
    def live(self) -> Manifest | None:
        """The version that answers now, or None before the first."""
        ref = self.registry.ref("live")
        return None if ref is None else self.registry.manifest(ref.version)

    def folder(self, rollout_id: int) -> Path:
        """Where a rollout keeps its files while it runs."""
        return self.settings.work_folder / str(rollout_id)


def open_workshop(
    settings: Settings,
    train: Train | None = None,
    swap: Swap | None = None,
    end_training: Callable[[], None] = lambda: None,
) -> Workshop:
    """A workshop on what `settings` name. Without `train` and `swap`: in this process, and of the registry alone."""
    registry = Registry(settings.registry_url)

    def promote(version: int, expected: int | None) -> None:
        registry.promote(version, expected)

    images = Blobs(open_storage(settings.examples_folder))
    return Workshop(
        settings, Store(settings.database_url), registry, images, train or train_here, swap or promote, end_training
    )


def train_here(folder: Path, look: Look) -> None:
    """Train in this process; looks up after every epoch. A kill leaves a folder that the same call resumes."""
    from lifelist.training import increment

    increment.run(folder, on_event=lambda _: look())


def memory(registry: Registry, version: Manifest) -> Memory:
    """The images that a version remembers."""
    found: Memory = json.loads(registry.read(version, EXEMPLARS))
    return found


def learned_images(registry: Registry, version: Manifest) -> set[str]:
    """The images that are no news to a version; of one that was made before there was such a list, its memory."""
    if any(entry.name == LEARNED for entry in version.files):
        return set(json.loads(registry.read(version, LEARNED)))
    return {digest for lists in memory(registry, version).values() for ids in lists.values() for digest in ids}
