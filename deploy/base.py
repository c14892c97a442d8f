"""`lifelist base DATA`: the first version, by the same steps as every increment, in this process, without a server."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelist.deploy import asked, examples, rollout
from lifelist.deploy.records import Rollout
from lifelist.deploy.settings import Settings
from lifelist.deploy.workshop import Look, Workshop, open_workshop, train_here
from lifelist.exporter.errors import BadInput, Conflict, Failed, Refused
from lifelist.exporter.manifest import Manifest
from lifelist.training.left_out import LeftOut
from lifelist.training.names import alike, looks_like
from lifelist.training.options import check
from lifelist.training.sources import Encoded, class_names, counted, encoded, ignored

BUFFER = 256 * 2**20  # bytes of encoded images that are held while they are sorted by class
ADVICE = (
    "To get through: train longer (--training.epochs), add images to the data, or lower the gate's limit in "
    "lifelist.toml; then give the same command again"
)

OnEvent = Callable[[str, Mapping[str, Any]], None]  # kind, data: of the rollout's events, and `examples`


def _ignore(kind: str, data: Mapping[str, Any]) -> None:
    """Nobody listens."""


def make_base(settings: Settings, data: Path | str, on_event: OnEvent = _ignore, *, strict: bool = False) -> Manifest:
    """Train the first version on the classes of `data` (training/sources.py says what that may be), and make it live.

    on_event gets `examples` {"added", "duplicates", "refused"} for every lot of images, `warning` {"message"} about the
    data, then the rollout's own events. strict: the first image that cannot be used is an error; else such images are
    left out, and listed in left-out.txt in the home.
    Again after ctrl-C or a kill: goes on from where it was. Conflict if a version is live already, or an unfinished
    base is of other data or other settings; BadInput if `data` cannot be used, Refused if the gate says no, Failed if
    it cannot go on. Each says why.
    """
    seen = 0

    def train(folder: Path, look: Look) -> None:
        def look_and_tell() -> None:
            look()
            tell()

        train_here(folder, look_and_tell)

    def tell() -> None:
        nonlocal seen
        for event in workshop.store.events(after=seen):
            seen = event.id
            on_event(event.kind, event.data)

    workshop = open_workshop(settings, train=train)
    if (live := workshop.live) is not None:
        raise Conflict(
            f"version {live.version} is live already; add classes to it with `lifelist examples add` and "
            "`lifelist increment start`, or give --home another folder"
        )
    wanted = asked.asked_now(settings, data)
    asked.check(workshop, wanted)
    seen = workshop.store.last_event_id()
    if not workshop.store.open_rollouts():
        found = counted(data)
        check(settings.training, classes=len(found), images=found.total())  # before an image is decoded
        _add(workshop, data, wanted, on_event, strict)
        rollout.start(workshop)
    tell()
    ended = rollout.carry_all(workshop)
    tell()
    if not ended:
        raise Conflict(f"another process is at work in {settings.home}; wait until it ends")
    return _outcome(workshop, ended[-1])


def _outcome(workshop: Workshop, ended: Rollout) -> Manifest:
    if ended.state == "rejected":
        raise Refused(f"{ended.reason}. {ADVICE}")
    if ended.state != "done" or workshop.live is None:
        raise Failed(f"increment {ended.id} ended as {ended.state}: {ended.reason}")
    return workshop.live


def _add(workshop: Workshop, data: Path | str, wanted: asked.Asked, on_event: OnEvent, strict: bool) -> None:
    """Add the images that are not set apart for testing. Those that cannot be used are told, and left out.

    BadInput at the first of them if `strict`, or if they are more than half, or all of a class.
    """
    left = LeftOut(ignored=ignored(data))
    report = workshop.settings.home / "left-out.txt"
    for number, lot in enumerate(_lots(image for image in encoded(data) if image.split != "test")):
        if not number:  # `data` can be used, and nothing of it is here yet
            asked.write(workshop.settings.home, wanted)
        for name in class_names(lot):
            files = [(image.where, image.data) for image in lot if image.class_name == name]
            most = workshop.settings.examples.max_per_request
            for start in range(0, len(files), most):
                found = examples.add(workshop, name, files[start : start + most])
                refused = {result.file: result.reason for result in found if result.status == "refused"}
                if strict and refused:
                    raise BadInput("{}: {}".format(*next(iter(refused.items()))))
                for file, reason in refused.items():
                    left.leave(name, file, reason or "")
                left.use(name, len(found) - len(refused))
                counts = {s: sum(result.status == s for result in found) for s in ("accepted", "duplicate")}
                told = {"class": name, "added": counts["accepted"], "duplicates": counts["duplicate"]}
                on_event("examples", told | {"refused": refused})
    left.write(report)
    left.check()
    for _, message in left.warnings(report):
        on_event("warning", {"message": message})
    for names in alike(left.used):
        on_event("warning", {"message": looks_like(names)})


def _lots(images: Iterator[Encoded]) -> Iterator[list[Encoded]]:
    """Images in lots of bounded size; classes are numbered in order of arrival, so that most data sets are one lot."""
    lot: list[Encoded] = []
    size = 0
    for image in images:
        lot.append(image)
        size += len(image.data)
        if size >= BUFFER:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot
