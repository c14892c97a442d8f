"""The JSON of the HTTP interface, as types: the server makes these and describes them, the clients hand them on."""

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
    audit: bool  # drawn at random: its true class, sent as feedback, says most of how right the answers are
    classes: list[Scored]
    unknown_score: float | None  # share of known images that look more known; None: the version was not calibrated
    unknown: NotRequired[bool | None]  # where it was asked for, by unknown_at or the settings


class Timing(TypedDict):
    """Where a query's time went; `queue` and `model` are those of the whole batch."""

    decode_seconds: float
    queue_seconds: float
    model_seconds: float
    total_seconds: float


class Classified(TypedDict):
    """POST /v1/classify."""

    version: int
    answer: Literal["linear", "nearest_mean"]
    images: list[ImageAnswer]
    timing: Timing


class Named(ImageAnswer):
    """An image's answer by itself."""

    version: int
    answer: Literal["linear", "nearest_mean"]


class ArrivedClass(ClassName):
    """A class that got examples: `pending` at first, `enrolled` once its mean answers, `trained` by an increment."""

    state: Literal["pending", "enrolled", "trained"]


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


class Increments(TypedDict):
    """GET /v1/increments, the oldest first."""

    increments: list[Increment]


class Moved(TypedDict):
    """A promotion or a rollback: what answers now, and what answered before."""

    live: int
    previous: int | None
    generation: int


class Judged(TypedDict):
    """POST /v1/feedback: what was answered then, and what was true."""

    version: int
    predicted: ClassName
    truth: ClassName
    correct: bool


class KnownClass(ClassName):
    """A class that a version knows. increment: 0 for the base; an enrolled class carries the next one."""

    state: Literal["trained", "enrolled"]
    increment: int
    aliases: list[str]
    retired: bool
    merged_into: int | None


class Classes(TypedDict):
    """GET /v1/classes: those of the live version, in order of arrival; former ones have neither row nor mean."""

    version: int
    classes: list[KnownClass]
    former: list[KnownClass]


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


class VersionRow(TypedDict):
    """A version in the list of all."""

    version: int
    created_at: str
    kind: Literal["increment", "enrolment", "change"]
    parent: int | None
    method: str
    classes: int
    passed: bool


class Versions(TypedDict):
    """GET /v1/versions, the oldest first."""

    live: int | None
    previous: int | None
    versions: list[VersionRow]


class Preprocess(TypedDict):
    """How images become what the model sees: size×size pixels, cut from a shorter side of resize_to."""

    size: int
    resize_to: int
    mean: list[float]
    std: list[float]


class File(TypedDict):
    """A file of a version."""

    name: str
    size: int
    sha256: str


class BiasCorrection(TypedDict):
    """BiC's pair, for the rows from first_row up to last_row."""

    alpha: float
    beta: float
    first_row: int
    last_row: int


class Int8(TypedDict):
    """How well the graph in 8 bits answers beside the one in fp32, and so whether it serves."""

    used: bool
    images: int
    loss: float
    class_loss: float
    answers: Json
    message: str


class Confidence(TypedDict):
    """How probable an answer is that looks so sure: two curves of shares, one beside the other."""

    images: int
    scale: float
    sure: list[float]
    right: list[float]


class Confidences(TypedDict):
    """By kind of answer; null: too few held-out images."""

    linear: Confidence | None
    nearest_mean: Confidence | None


class KnownScores(TypedDict):
    """Quantiles of how known held-out images look, by kind of answer; unknown scores are read from them."""

    images: int
    linear: list[float]
    nearest_mean: list[float]


class Parity(TypedDict):
    """How well graph and network agree."""

    images: int
    max_abs_logit_difference: float
    top1_agreement: float
    max_abs_embedding_difference: float | None


class Check(TypedDict):
    """One line of the gate."""

    name: str
    passed: bool
    found: float | None
    limit: float | None
    message: str


class Version(TypedDict):
    """GET /v1/versions/{version}: its manifest."""

    version: int
    created_at: str
    kind: Literal["increment", "enrolment", "change"]
    parent: int | None
    method: str
    network: str
    embedding_dim: int
    default_answer: Literal["linear", "nearest_mean"]
    preprocess: Preprocess
    classes: list[KnownClass]
    former: list[KnownClass]  # retired or merged, and without row and mean by now
    files: list[File]
    bias: BiasCorrection | None
    parity: Parity | None
    int8: Int8 | None
    known_scores: KnownScores | None
    confidences: Confidences | None
    gate: list[Check]
    options: Json
    results: Json
    exemplars_sha256: str | None
    software: dict[str, str]
    schema: int


class Alive(TypedDict):
    """GET /v1/health/live. server: another one at each start."""

    live: bool
    server: str


class ReplicaStatus(TypedDict):
    """How a replica stands. held: versions in memory; pinned: those of them that no swap lets go; behind: why it does
    not answer by the live one.
    """

    replica: str
    version: int
    generation: int
    provider: str
    precision: str
    held: list[int]
    behind: str | None
    process_id: int
    pinned: list[int]


class NotReady(TypedDict):
    """GET /v1/health/ready, while it is not."""

    ready: bool
    error: str


class Ready(TypedDict):
    """GET /v1/health/ready, when it is."""

    ready: bool
    version: int
    provider: str
    server: str
    replicas: list[ReplicaStatus]


class Figure(TypedDict):
    """How right the answers of a version were. Never a ratio without its 95 % interval and the images it rests on."""

    version: int  # that answered
    source: Literal["feedback", "audit", "probe", "estimated"]
    group: Literal["all", "old", "new", "unseen", "class"]
    class_id: int | None  # of group "class"
    name: str | None  # of that class
    images: int
    ratio: float | None
    low: float | None
    high: float | None


class Point(Figure):
    """The same for one stretch of time."""

    at: str  # where it begins


class Doubt(TypedDict):
    """Why the estimates of a version for a time may be wrong."""

    version: int
    message: str


class QualityOf(TypedDict):
    """GET /v1/quality: the latest version first. Old and new are relative to the latest increment of each version.

    doubts: none where nothing speaks against the estimates.
    """

    since: str
    until: str
    live: int
    figures: list[Figure]
    doubts: list[Doubt]


class QualityCurve(TypedDict):
    """GET /v1/quality/curve: in order of time."""

    since: str
    until: str
    live: int
    seconds: int  # how long a stretch is
    points: list[Point]


class ConfusedPair(TypedDict):
    """Images of one class that were answered as another. ratio: of all images of the true class, with its interval."""

    truth: ClassName
    predicted: ClassName
    images: int
    ratio: float
    low: float
    high: float


class Confusions(TypedDict):
    """GET /v1/quality/confusions: most images first."""

    since: str
    until: str
    version: int
    source: Literal["feedback", "probe"]
    images: int  # of all classes
    right: int
    pairs: list[ConfusedPair]


class BiasRow(TypedDict):
    """How often new classes are answered (ratio, with its interval), beside how often they are shown.

    of: held-out images as answered when the version was made, before (linear_uncorrected) and after correction, or by
    nearest mean; gate images sent to the server (probe); labels (feedback).
    """

    of: Literal["linear_uncorrected", "linear", "nearest_mean", "probe", "feedback"]
    images: int
    shown: float
    ratio: float
    low: float
    high: float


class BiasOf(TypedDict):
    """GET /v1/quality/bias. new: ids of the classes of the latest increment; without any there is no row."""

    since: str
    until: str
    version: int
    new: list[int]
    rows: list[BiasRow]


class ExemplarCount(TypedDict):
    """How many exemplars there are of a class."""

    id: int
    images: int


class Exemplars(TypedDict):
    """GET /v1/versions/{version}/exemplars: of the classes that have any."""

    version: int
    classes: list[ExemplarCount]


class Caller(TypedDict):
    """GET /v1/caller: the name of the key, none where none is needed, and what may be done."""

    name: str | None
    roles: list[Literal["read", "classify", "feedback", "operate"]]
    problem: str | None  # why nothing may be done


class AlarmState(TypedDict):
    """An alarm as it stands."""

    name: str
    state: Literal["quiet", "raised"]
    since: str
    message: str


class AlarmList(TypedDict):
    """GET /v1/alarms: those that are raised first."""

    alarms: list[AlarmState]


class DriftTest(TypedDict):
    """What one test said of the latest window of answers."""

    at: str
    version: int
    window: Literal["short", "long"]
    test: str
    images: int
    score: float
    p_value: float
    rejected: bool  # after the correction for many tests


class DriftTests(TypedDict):
    """GET /v1/drift: the latest result of each test of the live version."""

    live: int
    tests: list[DriftTest]


class NoticeRow(TypedDict):
    """One thing that happened."""

    id: int
    at: str
    kind: str
    version: int | None
    message: str
    data: Json


class Notices(TypedDict):
    """GET /v1/notices: the latest first."""

    notices: list[NoticeRow]


class Suggestion(ClassName):
    """A class that an image may be of."""

    probability: (
        float | None
    )  # calibrated; null: the version was not, or only its other kind of answer names this class


class ReviewImage(TypedDict):
    """An image that a person may label. why: it looks like nothing known, the kinds of answer disagree, or two classes
    are almost as probable.
    """

    prediction_id: str
    at: str  # when it was answered
    version: int  # that answered
    answer: Literal["linear", "nearest_mean"]
    predicted: ClassName
    why: list[Literal["unknown", "disagree", "margin"]]
    use: float  # of a label, 0 … 1
    margin: float | None  # by how much the best class is more probable than the second; null: nobody knows
    unknown_score: float | None
    suggestions: list[Suggestion]  # the best first
    image: str  # path of its PNG


class Reviews(TypedDict):
    """GET /v1/review: those of most use first. Counts are of all; what was judged is counted for review.days."""

    keeps_images: bool  # the setting review.keep_images: whether images are being kept at all
    most: int  # images that wait at most
    open: int
    labelled: int
    skipped: int
    images: list[ReviewImage]


class ReviewedExample(TypedDict):
    """The example that an image became."""

    sha256: str
    status: Literal["accepted", "duplicate"]
    role: str | None


class Reviewed(TypedDict):
    """POST /v1/review/{prediction_id}. judged: as POST /v1/feedback would have said; null if it was skipped."""

    prediction_id: str
    state: Literal["labelled", "skipped"]
    judged: Judged | None
    example: ReviewedExample | None  # if that was wanted


class TriggerRow(TypedDict):
    """A stretch of time in which a trigger spoke for an increment."""

    at: str
    until: str  # as `at`, where one is started
    action: Literal["start", "held"]
    because: str
    obstacle: Literal["running", "no-images", "nothing-new", "distance", "quiet-hours", "budget"] | None
    held: str | None  # what is in the way, in words
    waiting: int  # images that waited to be learned


class Triggers(TypedDict):
    """GET /v1/triggers. now: null, if nothing speaks for an increment. week: the dry run, the oldest first."""

    enabled: bool  # whether any trigger is set
    waiting: int  # images that wait to be learned, now
    trained_s: float  # seconds of training in the last 24 hours
    now: TriggerRow | None
    week: list[TriggerRow]


class WebhookState(TypedDict):
    """A webhook in the settings."""

    url: str  # without user, password and query
    kinds: list[str]  # of notices; none: all
    waiting: int  # notices that it has still to get
    failed_attempts: int  # to deliver the next of them
    next_at: str | None  # when it is tried again


class DeliveryRow(TypedDict):
    """One attempt to deliver an event."""

    at: str
    url: str
    notice: int  # id; 0: a test
    kind: str
    attempt: int
    outcome: Literal["delivered", "failed", "given-up"]
    status: int | None  # of the answer; null: there was none
    seconds: float
    message: str  # what came back, its beginning


class Webhooks(TypedDict):
    """GET /v1/webhooks: the latest attempts first."""

    webhooks: list[WebhookState]
    deliveries: list[DeliveryRow]


class WebhooksTested(TypedDict):
    """POST /v1/webhooks:test: one attempt for each webhook."""

    deliveries: list[DeliveryRow]
