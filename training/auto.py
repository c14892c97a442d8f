"""Which row of the table of methods an increment takes, if it is left to us: a table of rules, in order."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from lifelist.training import network
from lifelist.training.data import HOLDOUT, TRAINING
from lifelist.training.exemplars import shares
from lifelist.training.job import Task
from lifelist.training.loop import device_of, fitted, scaled
from lifelist.training.methods import METHODS
from lifelist.training.rebalance import LEAST_HOLDOUT

FEW_IMAGES = 10  # of a class: fewer do not train a network
SPEED = {"cpu": 1e11, "cuda": 5e12}  # floating-point operations a second in training: a cautious guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the rules look at."""

    n: int  # old classes
    m: int  # new ones
    scarcest: str  # the new class with the fewest training images …
    fewest: int  # … and how many it has
    pretrained: bool  # whether the backbone began from a file of weights
    exemplars: int  # of the old class with the fewest
    holdout: int  # hold-out images of each class that bias correction could use
    statistics: bool  # whether those of every old class are kept
    seconds: float  # that training would take, roughly; 0 where there is no limit
    limit_s: float  # 0: none

    @property
    def can_freeze(self) -> bool:
        """Whether anything is known of every old class that a frozen backbone could answer by."""
        return self.statistics or self.exemplars > 0 or not self.n


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of RULES. `because` is filled in from the situation."""

    method: str
    holds: Callable[[Situation], bool]
    because: str


RULES = (
    Rule(  # not ncm: on the digits ridge did better for every number of images from 1 to 110
        "ridge",
        lambda s: bool(s.m) and s.fewest < FEW_IMAGES and s.can_freeze,
        "class {scarcest!r} has too few training images to train a network on ({fewest}); a closed form needs no more",
    ),
    Rule(
        "ridge",
        lambda s: s.pretrained and s.can_freeze,
        "the backbone was pretrained: its features tell new classes apart as they are, and nothing is forgotten",
    ),
    Rule(
        "ridge",
        lambda s: bool(s.n) and 0 < s.limit_s < s.seconds and s.can_freeze,
        "training would take about {seconds:,.0f} s, and may take {limit_s:,.0f} s; a closed form takes one pass",
    ),
    Rule(
        "ridge",
        lambda s: bool(s.n) and not s.exemplars and s.can_freeze,
        "no exemplar of some old class is left to train on against forgetting, and the statistics of all are",
    ),
    Rule(
        "bic",
        lambda s: not s.n,
        "a base is plain classification, and there are enough images of each class ({fewest} or more)",
    ),
    Rule(  # nor wa after ridge: it would give new rows the length of the old, which a closed form makes long
        "ridge",
        lambda s: s.holdout < LEAST_HOLDOUT and s.statistics,
        "too few hold-out images of a class for bias correction ({holdout}), and statistics of all classes are kept",
    ),
    Rule(
        "wa",
        lambda s: s.holdout < LEAST_HOLDOUT,
        "too few hold-out images of a class for bias correction ({holdout}); weight aligning needs none",
    ),
    Rule(
        "bic",
        lambda s: True,
        "there are images to train on, exemplars, and hold-out images for bias correction ({holdout} of each class)",
    ),
)


def choose(situation: Situation) -> tuple[str, str]:
    """(method, reason): the first rule that holds."""
    rule = next(rule for rule in RULES if rule.holds(situation))
    return rule.method, rule.because.format(**asdict(situation))


def resolve(task: Task) -> tuple[str, str]:
    """(row of METHODS, why it was chosen); the task's own, without a reason, if it names one.

    The same task always gets the same answer, so that one which is resumed goes on as it began: no clock is read.
    """
    name = task.options.method
    return (name, "") if name in METHODS else choose(situation_of(task))


def situation_of(task: Task) -> Situation:
    """What is there to learn from."""
    options = task.options
    new = {c.name: int(task.of(c.id, TRAINING).sum()) for c in task.new}
    old = [int(task.of(c.id, TRAINING).sum()) for c in task.old]
    scarcest = min(new, key=lambda name: new[name], default="")
    exemplars, held = shares(options, len(task.old), reserved=task.reserved)
    return Situation(
        n=len(task.old),
        m=len(task.new),
        scarcest=scarcest,
        fewest=new.get(scarcest, 0),
        pretrained=bool(options.pretrained or task.pretrained),
        exemplars=min([exemplars, *old]),
        holdout=min(held, *(int(task.of(c, HOLDOUT).sum()) for c in task.class_ids)),
        statistics=task.statistics is not None,
        seconds=seconds(task) if options.time_limit_s else 0.0,
        limit_s=options.time_limit_s,
    )


def seconds(task: Task) -> float:
    """How long training would roughly take: the network's operations, counted, at a speed that is guessed.

    Forward and backward are three forward passes, the teacher is a fourth. An increment of other methods than BiC takes
    about as long.
    """
    options = task.options
    images = int((task.roles == TRAINING).sum())
    asked = METHODS["bic"].schedules[options.schedule].increment
    schedule = fitted(scaled(asked, options, asked), images)
    found = network.build(options.network, classes=1, image_size=options.image_size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found(torch.zeros(1, 3, options.image_size, options.image_size))
    smaller = sum(zoom**2 for zoom in schedule.zooms) / len(schedule.zooms)
    passes = 4 * images * schedule.epochs * schedule.views * smaller
    return float(passes * counter.get_total_flops() / SPEED[device_of(options).type])
