"""The JSON of the HTTP interface, as types. The operator makes these, the client hands them on; neither copies them."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic takes the TypedDict of `typing` from Python 3.12 on

Json = dict[str, Any]

ENDED = frozenset({"done", "rejected", "failed", "cancelled"})  # states that an increment does not leave


class ClassName(TypedDict):
    """A class, as it is named everywhere."""

    id: int
    name: str


class Scored(ClassName):
    """A class and how well it fits: a probability (linear) or a cosine similarity (nearest mean)."""

    score: float


class ImageAnswer(TypedDict):
    """What one image was taken for, best first."""

    prediction_id: str
    classes: list[Scored]


class Classified(TypedDict):
    """POST /v1/classify."""

    version: int
    answer: Literal["linear", "nearest_mean"]
    images: list[ImageAnswer]
    timing: dict[str, float]


class ArrivedClass(ClassName):
    """A class that got examples: `pending` at first, `enrolled` once its mean answers, `trained` by an increment."""

    state: str


class Example(TypedDict):
    """What became of one image. `role` where it was accepted, `reason` where it was refused."""

    file: str
    sha256: str
    status: Literal["accepted", "duplicate", "refused"]
    role: NotRequired[str]
    reason: NotRequired[str]


Added = TypedDict(  # POST /v1/examples; written so since `class` is a word of Python's
    "Added",
    {"class": ArrivedClass, "examples": list[Example], "accepted": int, "version": int | None, "warnings": list[str]},
)


class StepTaken(TypedDict):
    """One step of an increment; times are RFC 3339, UTC."""

    state: str
    began: str
    ended: str | None
    attempts: int  # more than 1: it was killed, or failed, and was tried again
    facts: Json


class Progress(TypedDict):
    """How far training is: the latest epoch event."""

    phase: str
    epoch: int
    epochs: int
    images_per_second: float
    seconds_left: float


class Increment(TypedDict):
    """GET /v1/increments/{id}."""

    id: int
    state: str
    method: str
    classes: list[ClassName]
    teacher: int | None
    version: int | None
    reason: str | None
    created_at: str
    updated_at: str
    progress: Progress | None
    warnings: list[str]  # so far, those before any work first
    steps: list[StepTaken]


class Moved(TypedDict):
    """A promotion or a rollback: what answers now, and what answered before."""

    live: int
    previous: int | None
    generation: int


class ClassEvent(TypedDict):
    """What was said of a class anew, as another version became live: what differs, before and after."""

    at: str  # RFC 3339, UTC
    version: int
    before: Json
    after: Json


class ClassDetail(ClassName):
    """GET and PATCH /v1/classes/{id}."""

    version: int | None  # live, which says all this
    aliases: list[str]
    state: str  # trained, enrolled, pending; former: without row and mean, since it is retired or merged
    increment: int | None
    retired: bool
    merged_into: int | None
    images: dict[str, int]  # kept, by role
    history: list[ClassEvent]


class Judged(TypedDict):
    """POST /v1/feedback: what was answered then, and what was true."""

    version: int
    predicted: ClassName
    truth: ClassName
    correct: bool
