"""`lifelist base DATA`: the first version, by the same steps as every increment, in this process, without a server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelist.deploy import asked, examples, rollout
from lifelist.deploy.records import Rollout
from lifelist.deploy.settings import Settings
from lifelist.deploy.workshop import Look, Workshop, open_workshop, train_here
from lifelist.exporter.errors import Conflict, Failed, Refused
from lifelist.exporter.manifest import Manifest
from lifelist.training.options import check
from lifelist.training.screening import Screening
from lifelist.training.sources import Encoded, class_names, counted, encoded

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
    """Add the images that are not set apart for testing. Those that cannot be used are told, and left out; so are those
    that an earlier try took and `data` has no more.

    BadInput at the first of them if `strict`, or if they are more than half, or all of a class.
    """
    screening = Screening.of(data, strict)
    earlier = {example.sha256 for example in examples.kept(workshop.store)}
    examples.put_aside(workshop.store)
    most = workshop.settings.examples.max_per_request
    for number, lot in enumerate(_lots(image for image in encoded(data) if image.split != "test")):
        if not number:  # `data` can be used, and nothing of it is here yet
            asked.write(workshop.settings.home, wanted)
        for name in class_names(lot):
            images = [image for image in lot if image.class_name == name]
            for start in range(0, len(images), most):
                on_event("examples", _add_some(workshop, name, images[start : start + most], screening))
    screening.conclude(workshop.settings.home / "left-out.txt")
    for what, message in screening.warnings():
        on_event("warning", {"what": what, "message": message})
    if dropped := len(earlier - set(screening.used)):
        message = f"images of an earlier try that {data} has no more are dropped: {dropped:,}"
        on_event("warning", {"what": "data.dropped", "message": message})


def _add_some(workshop: Workshop, name: str, images: Sequence[Encoded], screening: Screening) -> Mapping[str, Any]:
    """Add images of one class, as many as a request may bring; what is told of them."""
    arrived = examples.look_at(workshop, [(image.where, image.data) for image in images])
    problems = [image.problem or one.reason or "" for image, one in zip(images, arrived, strict=True)]
    taken = [screening.takes(image, problem) for image, problem in zip(images, problems, strict=True)]
    sound = [one for one, takes in zip(arrived, taken, strict=True) if takes]
    results = examples.accept(workshop, name, sound) if sound else []
    refused = {image.where: problem for image, problem in zip(images, problems, strict=True) if problem}
    refused |= {result.file: str(result.reason) for result in results if result.status == "refused"}
    added = sum(result.status == "accepted" for result in results)
    return {"class": name, "added": added, "duplicates": len(images) - added - len(refused), "refused": refused}


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
