"""Does watching see what goes wrong, and nothing where nothing does? Real images whose true classes are known.

A base learns four fifths of the classes; of the others half are added, by enrolment, by an increment, and by one that
harms the old ones, and half are never learned. Test images are sent to the version's own graph, as traffic, and what
it says is handed to the real watcher, with a registry and a database. Only the clock and the way from client to graph
are not real: `lifelist serve` is loaded in monitoring_cost.py.
"""

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lifelist.benchmarks import trained
from lifelist.benchmarks.corruptions import CORRUPTIONS, SEVERITIES, Corruption, decoders
from lifelist.benchmarks.machine import machine
from lifelist.benchmarks.protocols import order
from lifelist.benchmarks.trained import TEST, Around, base_options, sorted_into_roles
from lifelist.exporter import session
from lifelist.exporter.errors import BadInput
from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.preprocess import Pixels, fit
from lifelist.exporter.registry import Registry
from lifelist.monitoring import figures, notices, quality
from lifelist.monitoring.database import Database
from lifelist.monitoring.drift import OF_IMAGES
from lifelist.monitoring.options import MonitoringOptions
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.monitoring.watcher import Outside, Watcher
from lifelist.serving.observed import Observations
from lifelist.training import experiment
from lifelist.training.data import GATE, TRAINING, Dataset, Images, read
from lifelist.training.job import Learned
from lifelist.training.loop import Event
from lifelist.training.options import TrainingOptions

LEFT_OUT = 5  # every fifth class is not in the base
HELD_SHARE, HELD_SHARE_OF_FEW = 0.1, 0.3  # of a class's images; the second where the data set has no test images
TEST_SHARE = 0.35  # there
MEMORY = 2000  # images of old classes, for an increment that keeps them
ENROLLED = 100  # images of a class that is enrolled
LOT = 25  # answers between two looks
STRETCH = 1500  # answers, over which an estimate is held against the truth
LEAD = 675  # quiet answers first; what then changes does so in the middle of a window
LONG_LEAD = LEAD + 3000  # two long windows more, where other answers are what long ones are held against
PATIENCE = 4500  # answers more, until what is no fault of the images is found, or is not
UNSEEN_SHARE = 0.2  # of the answers, once images of classes come that nobody has told of
SKEW = 4.0  # half of the classes come so many times as often as the others, once their shares change

COST = 0.10  # a corruption that costs so much accuracy …
WITHIN = 500  # … is found within so many answers
ROUNDS = 2  # a version that loses HARM on old classes is named within so many rounds of probes
HARM = 0.05
MAY = 0.01  # and one that loses more than this may be named
QUIET_ALARMS = 2  # at most, over 200 quiet windows
ERROR = 0.03  # of the estimated accuracy, mean absolute, where its assumptions hold

Facts = dict[str, Any]
Tell = Callable[[str], None]
Shares = Mapping[int, float]  # class id → its part of the answers
Change = Callable[[Pixels, np.random.Generator], Pixels]  # what becomes of images on their way


class Opened(Database, Protocol):
    """A database that can be let go of."""

    def close(self) -> None:
        """Give its connections back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    data: str = "turned-digits"
    epochs: int = 12  # of the base; increments are as long as their schedule says
    image_size: int = 32
    windows: int = 200  # quiet ones
    cases: str = ""  # only scenarios whose name has this in it
    order: str = "facil"
    device: str = "auto"
    seed: int = 0

    @property
    def options(self) -> TrainingOptions:
        """Those of the base: the same as of `lifelist bench newclasses`, so that one that is there does for both."""
        return base_options(self.data, self.epochs, self.image_size, self.device)

    def increment(self, method: str) -> TrainingOptions:
        """Those of an increment upon it."""
        return replace(self.options, method=method, epochs=0, memory_total=MEMORY)


# --------------------------------------------------------------------------------------------------------- the versions


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Four versions in a registry, and the images that they are shown."""

    registry: Registry
    known: tuple[int, ...]  # class ids of the base, which is version BASE
    added: tuple[int, ...]  # those that the other versions have beside these
    unseen: tuple[int, ...]
    test: Images
    pixels: Pixels  # of them
    gate: Images


BASE, ENROLLED_BY, LEARNED_BY, HARMED_BY = 1, 2, 3, 4  # the versions


def made(asked: Asked, folder: Path, on_event: Callable[[Event], None]) -> World:
    """Train what `folder` does not have yet, and publish it."""
    dataset = read(asked.data, asked.options)
    arrival = [int(c) for c in order(asked.order)(len(dataset.names))]
    left = len(arrival) // LEFT_OUT
    known, others = tuple(arrival[: len(arrival) - left]), arrival[len(arrival) - left :]
    added, unseen = tuple(others[: left // 2]), tuple(others[left // 2 :])
    gate_share = HELD_SHARE if bool(dataset.test.any()) else HELD_SHARE_OF_FEW
    roles = sorted_into_roles(dataset, asked.options.seed, gate=gate_share, test=TEST_SHARE)
    for_training = Dataset(dataset.images.take(roles != TEST), dataset.names, dataset.test[roles != TEST])
    task_roles, groups = roles[roles != TEST], (known, added)

    base = trained.learned(
        experiment.next_task(for_training, task_roles, groups[:1], [], asked.options), folder / "base", on_event
    )
    kept = replace(base, exemplars=_exemplars(for_training, task_roles, known), holdout=dict.fromkeys(known, ()))
    gate = for_training.images.take(task_roles == GATE)
    names = dict(enumerate(dataset.names))
    place = folder / "registry"
    shutil.rmtree(place, ignore_errors=True)
    registry = Registry(str(place))

    def publish(found: Learned, options: TrainingOptions) -> Manifest:
        of_these = torch.isin(gate.labels, torch.tensor(found.class_ids))
        around = Around(
            names=names,
            options=options,
            increments=dict.fromkeys(added, 1),
            parent=BASE if len(found.class_ids) > len(known) else None,
            held_out=gate.take(of_these),
        )
        return trained.publish(registry, found, around)

    version = publish(base, asked.options)
    new = {c: for_training.images.take(_training(for_training, task_roles, c)[:ENROLLED]) for c in added}
    trained.enrol(registry, version, new, names)
    for name, method in (("learned", "wa"), ("harmed", "finetune")):
        options = asked.increment(method)
        task = experiment.next_task(for_training, task_roles, groups, [kept], options)
        publish(trained.learned(task, folder / name, on_event), options)
    test = dataset.images.take(roles == TEST)
    return World(registry, known, added, unseen, test, test.pixels[:].numpy(), gate)


def _exemplars(dataset: Dataset, roles: torch.Tensor, classes: Sequence[int]) -> dict[int, tuple[str, ...]]:
    ids = dataset.images.ids
    places = {c: _training(dataset, roles, c)[: MEMORY // len(classes)].tolist() for c in classes}
    return {c: tuple(ids[k] for k in of_class) for c, of_class in places.items()}


def _training(dataset: Dataset, roles: torch.Tensor, class_id: int) -> torch.Tensor:
    return ((dataset.images.labels == class_id) & (roles == TRAINING)).nonzero()[:, 0]


# ----------------------------------------------------------------------------------------------------------- the server


class Server:
    """A server without its server: what is live answers, in this process, by its own graph."""

    def __init__(self, registry: Registry, gate: Images) -> None:
        self.registry, self.gate = registry, gate
        self.decoder: Callable[[Pixels], Pixels] = lambda images: images
        self.rounds = 0  # of probes
        self.waiting: list[Observations] = []
        self.loaded = functools.cache(lambda version: session.load(registry, version, provider="cpu"))
        self._answered: dict[tuple[int, object], list[int]] = {}  # by version and decoder, of all gate images

    @property
    def live(self) -> session.Loaded:
        """The version that answers."""
        ref = self.registry.ref("live")
        assert ref is not None
        found: session.Loaded = self.loaded(ref.version)
        return found

    def serve(self, images: Pixels, at: float) -> tuple[npt.NDArray[np.int64], Floats]:
        """Images are asked about: the class ids that they are answered, and their logits."""
        loaded, side = self.live, images.shape[1]
        if side != loaded.manifest.preprocess.size:
            images = np.stack([fit(image, loaded.manifest.preprocess) for image in images])
        shown = self.decoder(images)
        logits, embedding = loaded.run(shown)
        best = np.array(_best(loaded, logits, embedding))
        kind, ids = loaded.manifest.default_answer, tuple(str(k) for k in range(len(shown)))
        times, sides = np.full(len(shown), at), np.full(len(shown), side)
        self.waiting.append(
            Observations(loaded.version, kind, "fp32", len(shown), ids, times, best, logits, embedding, shown, sides)
        )
        return best, logits

    def outside(self) -> Outside:
        """How the watcher asks it."""
        place = {sha256: k for k, sha256 in enumerate(self.gate.ids)}

        def observe() -> Sequence[Observations]:
            found, self.waiting = self.waiting, []
            return found

        def probe(images: Sequence[GateImage]) -> Sequence[Probed]:
            self.rounds += 1
            loaded = self.live
            answered = self._gate_answers(loaded)
            return [Probed(image, loaded.version, answered[place[image.sha256]]) for image in images]

        def gate() -> Sequence[GateImage]:
            return [GateImage(*found) for found in zip(self.gate.ids, self.gate.labels.tolist(), strict=True)]

        return Outside(observe, probe, gate)

    def _gate_answers(self, loaded: session.Loaded) -> list[int]:
        key = loaded.version, self.decoder
        if key not in self._answered:
            found: list[int] = []
            for k in range(0, len(self.gate), trained.BATCH):
                shown = self.decoder(self.gate.pixels[k : k + trained.BATCH].numpy())
                found += _best(loaded, *loaded.run(shown))
            self._answered[key] = found
        return self._answered[key]


def _best(loaded: session.Loaded, logits: Floats, embedding: Floats) -> list[int]:
    linear = loaded.manifest.default_answer == "linear"
    rankings = loaded.linear(logits, 1) if linear else loaded.nearest_mean(embedding, 1)
    return [ranking[0][0] for ranking in rankings]


class Traffic:
    """Test images without end: classes by lot, and of a class each image once before one comes again."""

    def __init__(self, labels: npt.NDArray[np.int64], random: np.random.Generator) -> None:
        self.random = random
        self._places = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
        self._left: dict[int, list[int]] = {c: [] for c in self._places}

    def draw(self, shares: Shares, count: int) -> list[int]:
        """Places of so many test images."""
        classes, weights = np.array(list(shares)), np.array(list(shares.values()), np.float64)
        found = []
        for class_id in self.random.choice(classes, count, p=weights / weights.sum()).tolist():
            left = self._left[class_id]
            if not left:
                left.extend(self.random.permutation(self._places[class_id]).tolist())
            found.append(left.pop())
        return found


# ------------------------------------------------------------------------------------------------------------ scenarios


def _unchanged(images: Pixels, random: np.random.Generator) -> Pixels:
    return images


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Something that happens after a while."""

    kind: str
    severity: int = 0
    wanted: tuple[str, ...] = ()  # alarms, by their beginnings: one of them should be raised; none: no alarm at all
    change: Change = _unchanged
    decoder: Callable[[Pixels], Pixels] | None = None  # the same of all that is decoded, gate images too
    shares: Shares | None = None
    version: int | None = None  # goes live
    lead: int = LEAD  # quiet answers before it
    patience: int = 0  # answers after STRETCH, as long as what is wanted was not raised

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.kind} {self.severity}" if self.severity else self.kind


def _worse(corruption: Corruption, severity: int, images: Pixels, random: np.random.Generator) -> Pixels:
    return corruption(images, severity, random)


def _thumbnails(images: Pixels, random: np.random.Generator) -> Pixels:
    """N×S×S×3 to half the side; the server makes them as large as they were."""
    half = images.shape[1] // 2
    return np.stack([np.asarray(Image.fromarray(image).resize((half, half))) for image in images])


def scenarios(world: World) -> list[Scenario]:
    """All that is tried."""
    of_images = tuple(f"drift.{test}." for test in OF_IMAGES)
    found = [
        Scenario(
            kind=name,
            severity=severity,
            wanted=of_images,
            change=functools.partial(_worse, worse, severity),
        )
        for name, worse in CORRUPTIONS.items()
        for severity in SEVERITIES
    ]
    half = len(world.known) // 2
    skewed = {c: SKEW if k < half else 1.0 for k, c in enumerate(world.known)}
    with_unseen = dict.fromkeys(world.known, (1 - UNSEEN_SHARE) / len(world.known))
    with_unseen |= dict.fromkeys(world.unseen, UNSEEN_SHARE / len(world.unseen))
    with_added = dict.fromkeys((*world.known, *world.added), 1.0)
    found += [
        Scenario(kind="smaller images", wanted=of_images, change=_thumbnails),
        Scenario(
            kind="class shares change", wanted=("drift.classes.",), shares=skewed, lead=LONG_LEAD, patience=PATIENCE
        ),
        Scenario(
            kind="an unseen class arrives", wanted=of_images, shares=with_unseen, lead=LONG_LEAD, patience=PATIENCE
        ),
        Scenario(kind="classes are enrolled", shares=with_added, version=ENROLLED_BY),
        Scenario(kind="an increment", shares=with_added, version=LEARNED_BY),
        Scenario(kind="an increment without replay", shares=with_added, version=HARMED_BY),
    ]
    found += [
        Scenario(kind=f"decoder: {name}", wanted=("accuracy.probe", *of_images), decoder=bug)
        for name, bug in decoders(world.pixels[:100]).items()
    ]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An alarm, and how long after the change it came."""

    name: str
    after: int  # answers
    rounds: int  # of probes


@dataclass(slots=True, kw_only=True)
class Found:
    """What came of a scenario."""

    name: str
    kind: str
    severity: int
    wanted: list[str]
    accuracy: float  # of the answers after the change
    cost: float  # how much less that is than without it
    old_loss: float | None = None  # accuracy that a version has lost on old classes, all their test images
    raised: list[Raised] = field(default_factory=list)  # in order; each alarm once
    before: list[str] = field(default_factory=list)  # alarms that were raised before anything changed
    estimated: float | None = None
    doubts: list[str] = field(default_factory=list)  # why the estimate may be wrong, as the server says it

    @property
    def right(self) -> Raised | None:
        """The first alarm that was wanted."""
        return next((one for one in self.raised if one.name.startswith(tuple(self.wanted) or ("\0",))), None)

    @property
    def others(self) -> list[Raised]:
        """What was raised beside those wanted."""
        return [one for one in self.raised if not one.name.startswith(tuple(self.wanted) or ("\0",))]

    @property
    def error(self) -> float | None:
        """Of the estimated accuracy."""
        return None if self.estimated is None else self.estimated - self.accuracy

    @property
    def missed(self) -> bool:
        """Whether a bar was not met: each scenario has one, but what hardly costs anything need not be found."""
        if self.before:
            return True
        if not self.wanted:  # what a version costs, if not enough to have to be named, may be
            named = {one.name for one in self.raised} - ({"accuracy.old"} if (self.old_loss or 0) > MAY else set())
            return bool(named)
        if self.right is None:
            may_be_harmless = self.kind in CORRUPTIONS or "decoder" in self.kind
            return self.cost >= COST or not may_be_harmless
        if self.right.name.startswith("accuracy."):
            return self.right.rounds > ROUNDS
        is_urgent = self.cost >= COST and (self.kind in CORRUPTIONS or "decoder" in self.kind)
        return is_urgent and self.right.after > WITHIN


class Course:
    """One database, one watcher, one server: what happens to them, look by look."""

    def __init__(self, world: World, place: Path, open_database: Callable[[Path], Opened], seed: int) -> None:
        shutil.copytree(world.registry.url, place / "registry")
        self.world, self.registry = world, Registry(str(place / "registry"))
        self.registry.promote(BASE, None)
        self.options = MonitoringOptions()
        self.database = open_database(place / "watched.db")
        self.server = Server(self.registry, world.gate)
        self.watcher = Watcher(self.database, self.registry, self.options, self.server.outside(), seed=seed)
        self.random = np.random.default_rng(seed)
        self.traffic = Traffic(world.test.labels.numpy(), self.random)
        self.labels = world.test.labels.numpy()
        self.at, self.told = time.time(), 0  # the registry notes real times
        self.begin()

    def begin(self) -> None:
        """Count from here on, from the beginning of a minute."""
        self.at += -self.at % figures.MINUTE
        self.answers = self.right = self.server.rounds = 0
        self.raised: list[Raised] = []
        self.logits: list[Floats] = []

    def run(self, answers: int, shares: Shares, change: Change = _unchanged) -> None:
        """So many answers, with a look after each LOT of them."""
        for _ in range(answers // LOT):
            places = self.traffic.draw(shares, LOT)
            best, logits = self.server.serve(change(self.world.pixels[places], self.random), self.at)
            self.answers += LOT
            self.right += int((best == self.labels[places]).sum())
            self.logits.append(logits)
            self.watcher.look(self.at)
            self._note()
            self.at += self.options.every_s

    def _note(self) -> None:
        for one in reversed(notices.told(self.database, after=self.told, limit=1000)):
            self.told = one.id
            if one.kind == "alarm":
                self.raised.append(Raised(name=one.data["alarm"], after=self.answers, rounds=self.server.rounds))

    def raised_any(self, wanted: Sequence[str]) -> bool:
        """Whether an alarm whose name begins with one of these was raised, since `begin`."""
        return any(one.name.startswith(tuple(wanted)) for one in self.raised)

    @property
    def accuracy(self) -> float:
        """Since `begin`."""
        return self.right / self.answers

    def estimated(self, since: float) -> float | None:
        """What the server would show, since then."""
        asked = quality.Asked(since, self.at, groups=("all",), sources=("estimated",), versions=(self.live,))
        found = quality.totals(self.database, self.registry, asked)
        return found[0].share.ratio if found else None

    def doubts(self, since: float) -> list[str]:
        """What it would say against that."""
        return quality.doubts(self.database, self.registry, self.options, self.live, since, self.at)

    @property
    def live(self) -> int:
        """The version that answers."""
        return self.server.live.version

    def promote(self, version: int) -> None:
        """Swap."""
        ref = self.registry.ref("live")
        assert ref is not None
        self.registry.promote(version, ref.generation)


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(
    asked: Asked,
    folder: Path,
    open_database: Callable[[Path], Opened],
    tell: Tell,
    on_event: Callable[[Event], None],
) -> tuple[Facts, dict[str, Any]]:
    """(everything that the page says, the scores by which an oracle estimates). Shares and accuracies are in 0 … 1."""
    world = made(asked, folder, on_event)
    chosen = [scenario for scenario in scenarios(world) if asked.cases in scenario.name]
    if not chosen:
        names = "; ".join(dict.fromkeys(scenario.kind for scenario in scenarios(world)))
        raise BadInput(f"no scenario has {asked.cases!r} in its name; there are {names}")
    courses = folder / "courses"
    shutil.rmtree(courses, ignore_errors=True)

    def course(name: str, seed: int) -> Course:
        return Course(world, courses / name, open_database, seed)

    quiet, scores = _quiet(course("quiet", asked.seed), asked.windows, tell)
    found = []
    for number, scenario in enumerate(chosen):
        one, logits = _scenario(course(f"{number}", asked.seed + 1 + number), scenario, quiet["accuracy"])
        found.append(one)
        if scenario.version is None:
            scores.append(
                {"stretch": one.name, "logits": logits, "accuracy": one.accuracy, "doubtful": bool(one.doubts)}
            )
        tell(_shown(one))
    shutil.rmtree(courses)
    confidences = world.registry.manifest(BASE).confidences
    assert confidences is not None
    assert confidences.linear is not None
    facts: Facts = {
        "bench": "monitoring",
        "data": asked.data if "digits" in asked.data else "data",
        "classes": {"known": len(world.known), "added": len(world.added), "unseen": len(world.unseen)},
        "images": {"test": len(world.test), "held_out": confidences.linear.images},
        "epochs": asked.epochs,
        "methods": {str(v): world.registry.manifest(v).method for v in (LEARNED_BY, HARMED_BY)},
        "quiet": quiet,
        "scenarios": [_as_json(one) for one in found],
        "machine": machine(),
    }
    facts["line"] = line(facts)
    return facts, {"registry": world.registry, "version": BASE, "stretches": scores}


def line(facts: Facts) -> dict[str, Any]:
    """The figures that matter, in one object; those of the load are added where it was measured."""
    errors = [one["error"] for one in facts["quiet"]["stretches"] if not one["doubts"]]
    errors += [one["error"] for one in facts["scenarios"] if not one["doubts"] and one["error"] is not None]
    cost = facts.get("cost") or {"throughput_ratio": None, "p99_ratio": None}
    return {
        "quiet_windows": facts["quiet"]["windows"],
        "false_alarms": len(facts["quiet"]["raised"]),
        "scenarios": len(facts["scenarios"]),
        "missed": sum(one["missed"] for one in facts["scenarios"]),
        "estimated_accuracy_error": round(float(np.mean(np.abs(errors))), 4) if errors else None,
        "throughput_ratio": cost["throughput_ratio"],
        "p99_ratio": cost["p99_ratio"],
    }


def _quiet(course: Course, windows: int, tell: Tell) -> tuple[Facts, list[dict[str, Any]]]:
    """Nothing happens for so many windows; every STRETCH of answers the estimate is held against the truth."""
    shares = dict.fromkeys(course.world.known, 1.0)
    total, stretches, scores, raised = windows * course.options.window, [], [], []
    right = 0
    for number in range(-(-total // STRETCH)):
        course.begin()
        since = course.at
        course.run(min(STRETCH, total - number * STRETCH), shares)
        right += course.right
        raised += course.raised
        estimated, doubts = course.estimated(since), course.doubts(since)
        error = None if estimated is None else estimated - course.accuracy
        stretches.append({"accuracy": course.accuracy, "estimated": estimated, "error": error, "doubts": doubts})
        scores.append(
            {"stretch": "quiet", "logits": np.concatenate(course.logits), "accuracy": course.accuracy,
             "doubtful": bool(doubts)}
        )  # fmt: skip
    names = [one.name for one in raised]
    tell(f"{windows} quiet windows: alarms {names or 'none'}, {right / total:.1%} right")
    course.database.close()
    return {"windows": windows, "accuracy": right / total, "raised": names, "stretches": stretches}, scores


def _scenario(course: Course, scenario: Scenario, usual: float) -> tuple[Found, Floats]:
    """One of them, from the beginning; usual: accuracy where nothing happens."""
    known = dict.fromkeys(course.world.known, 1.0)
    course.run(scenario.lead, known)
    before = [one.name for one in course.raised]
    course.begin()
    since, old_loss = course.at, None
    if scenario.decoder is not None:
        course.server.decoder = scenario.decoder
    if scenario.version is not None:
        old_loss = _old_loss(course, scenario.version)
        course.promote(scenario.version)
    shares = scenario.shares or known
    course.run(STRETCH, shares, scenario.change)
    accuracy, logits = course.accuracy, np.concatenate(course.logits)
    estimated, doubts = course.estimated(since), course.doubts(since)
    while course.answers < STRETCH + scenario.patience and not course.raised_any(scenario.wanted):
        course.run(LOT, shares, scenario.change)
    if scenario.version is not None:  # what was held may not come afterwards either
        course.at += course.options.hold_s
        course.run(STRETCH, shares, scenario.change)
    course.database.close()
    first = {one.name: one for one in reversed(course.raised)}
    found = Found(
        name=scenario.name,
        kind=scenario.kind,
        severity=scenario.severity,
        wanted=["accuracy.old"] if old_loss is not None and old_loss >= HARM else list(scenario.wanted),
        accuracy=accuracy,
        cost=usual - accuracy,
        old_loss=old_loss,
        raised=sorted(first.values(), key=lambda one: (one.after, one.name)),
        before=before,
        estimated=estimated,
        doubts=doubts,
    )
    return found, logits


def _old_loss(course: Course, version: int) -> float:
    """Accuracy on the base's classes that a version has lost, over all their test images."""
    which = torch.isin(course.world.test.labels, torch.tensor(course.world.known))
    images = course.world.test.take(which)
    shares = []
    for number in (BASE, version):
        loaded = course.server.loaded(number)
        said = trained.said(loaded, images)
        shares.append(float((np.array(_best(loaded, said.logits, said.embedding)) == said.labels).mean()))
    return shares[0] - shares[1]


def _as_json(found: Found) -> dict[str, Any]:
    right = found.right
    return asdict(found) | {
        "right": right and asdict(right),
        "others": [asdict(one) for one in found.others],
        "error": found.error,
        "missed": found.missed,
    }


def _shown(found: Found) -> str:
    right = found.right
    if right is None:
        said = "no alarm that was wanted" if found.wanted else "no alarm wanted"
    else:
        said = f"{right.name} after {right.after} answers, {right.rounds} probes"
    others = ", ".join(one.name for one in found.others) or "nothing"
    estimated = "" if found.error is None else f"; estimate off by {100 * found.error:+.1f} points"
    doubted = ", and says so" if found.doubts else ""
    lost = "" if found.old_loss is None else f", old classes lost {100 * found.old_loss:.1f} points"
    return (
        f"{'MISSED ' if found.missed else ''}{found.name}: costs {100 * found.cost:.1f} points{lost}; {said}; else "
        f"{others}{estimated}{doubted}"
    )
