"""Every option of Lifelist, with its default; deploy/sources.py says where values come from and in which order."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from lifelist.deploy.ground import on_loopback
from lifelist.monitoring.options import MonitoringOptions, ReviewOptions, TriggerOptions, Webhook
from lifelist.serving.options import DAY_S, ServingOptions
from lifelist.training.options import TrainingOptions

CheckName = Literal["classes", "old_accuracy", "new_class_accuracy", "parity_top1", "parity_logits"]


class _Options(BaseModel):
    """Frozen, and strict about names: what is not declared does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ExampleOptions(_Options):
    """How images become training data (deploy/examples.py)."""

    gate_share: float = Field(
        default=0.2, ge=0, lt=1, description="share of each class's images that only the gate sees"
    )
    holdout_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of each class's images that only bias correction sees"
    )
    keep: bool = Field(
        default=False, description="keep images that are neither exemplar nor gate image after promotion"
    )
    provisional_loss: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="share of right answers on held-out images that provisional rows of enrolled classes may cost",
    )
    max_per_request: int = Field(default=1000, ge=1, description="images in one POST /v1/examples")
    max_request_bytes: int = Field(default=256 * 2**20, ge=1, description="bytes in one POST /v1/examples")
    max_uploads: int = Field(default=8, ge=1, description="POST /v1/examples at once; more are answered 503")
    max_bytes_per_day: int = Field(
        default=0,
        ge=0,
        description="bytes of examples that one API key may send in a day; more are answered 429; 0: any",
    )
    read_timeout_s: float = Field(default=600, gt=0, le=DAY_S, description="seconds for a POST /v1/examples to arrive")

    @field_validator("holdout_share")
    @classmethod
    def _leaves_something_to_train_on(cls, share: float, info: ValidationInfo) -> float:
        gate_share = info.data.get("gate_share", 0.0)
        if share + gate_share > 0.8:
            raise ValueError(
                f"with gate_share {gate_share} leaves less than a fifth to train on; their sum may be at most 0.8"
            )
        return share


class Int8Options(_Options):
    """Whether a version gets a graph in 8 bits too (deploy/quantised.py)."""

    enabled: bool = Field(
        default=True, description="make a graph in 8 bits too, and serve by it where it loses nothing"
    )
    loss: float = Field(
        default=0.005, ge=0, le=1, description="accuracy on gate images that 8 bits may lose against fp32"
    )
    class_loss: float = Field(
        default=0.05, ge=0, le=1, description="of any single class; one image of it is never too many"
    )
    images: int = Field(default=256, ge=1, description="gate images on which the ranges of activations are measured")


class GateCheck(_Options):
    """One line of the gate: what is asked of a candidate (deploy/gate.py says how each is measured).

    classes             its classes are live's and the new ones, no other (no limit)
    old_accuracy        accuracy on old classes is at most `limit` below live's
    new_class_accuracy  accuracy of every new class is at least `limit`; one with fewer than `min_images` gate images is
                        not judged: it is learned, and an increment warns of it when it is started
    parity_top1         the exported graph agrees with torch on at least this share of real images
    parity_logits       and differs by at most this much in any logit

    With fewer than `min_images` (2) to look at, the other checks refuse; `old_accuracy` counts old classes together.
    """

    check: CheckName
    limit: float | None = None
    min_images: int = Field(default=2, ge=1)  # gate images: of each new class; of old classes together

    @field_validator("limit")
    @classmethod
    def _has_the_limit_it_needs(cls, limit: float | None, info: ValidationInfo) -> float | None:
        check = info.data.get("check")
        if check is not None and (limit is None) != (check == "classes"):
            raise ValueError(f"check {check!r} {'takes no' if check == 'classes' else 'needs a'} limit")
        if limit is not None and limit < 0:
            raise ValueError("is a share or a difference, so it cannot be negative")
        return limit


GATE = (
    GateCheck(check="classes"),
    GateCheck(check="old_accuracy", limit=0.1),
    GateCheck(check="new_class_accuracy", limit=0.5),
    GateCheck(check="parity_top1", limit=0.99),
    GateCheck(check="parity_logits", limit=0.01),
)


class Settings(_Options):
    """What is in force. Made by `sources.load`; a test may write `Settings(home=tmp_path)`."""

    home: Path = Field(default=Path("lifelist-data"), description="folder for everything that has no place of its own")
    registry: str = Field(
        default="", description="folder or fsspec URL that holds the versions; empty: registry in home"
    )
    database: str = Field(
        default="", description="SQLAlchemy URL of rollouts and feedback; empty: lifelist.db in home (SQLite)"
    )
    api_key: SecretStr = Field(default=SecretStr(""), description="what commands that call a server present to it")
    training_workers: int = Field(
        default=1,
        ge=0,
        description="processes that share each batch of an increment beside a server; 0: one for each GPU",
    )
    gate: tuple[GateCheck, ...] = Field(default=GATE, description="the checks that a candidate must pass to go live")
    int8: Int8Options = Int8Options()
    examples: ExampleOptions = ExampleOptions()
    serving: ServingOptions = ServingOptions()
    training: TrainingOptions = TrainingOptions()
    monitoring: MonitoringOptions = MonitoringOptions()
    review: ReviewOptions = ReviewOptions()
    triggers: TriggerOptions = TriggerOptions()
    webhooks: tuple[Webhook, ...] = Field(
        default=(),
        description="where notices are sent: url, secret, kinds (none: all) of each; see docs/monitoring/acting.md",
    )

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()  # here: the processes of a server start in other folders

    @field_validator("registry")
    @classmethod
    def _registry_is_absolute(cls, registry: str) -> str:
        return registry if not registry or "://" in registry else str(Path(registry).expanduser().absolute())

    @field_validator("database")
    @classmethod
    def _database_is_absolute(cls, database: str) -> str:
        file = database.removeprefix("sqlite:///")
        return f"sqlite:///{Path(file).absolute()}" if file not in ("", database, ":memory:") else database

    @field_validator("webhooks")
    @classmethod
    def _each_url_once(cls, hooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
        if len({hook.url for hook in hooks}) < len(hooks):
            raise ValueError("has a url twice; give one of them all kinds")
        return hooks

    @property
    def url(self) -> str:
        """Where a server with these settings listens, as a client beside it reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.serving.host, self.serving.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.serving.port}"

    @property
    def registry_url(self) -> str:
        """Where the versions are."""
        return self.registry or str(self.home / "registry")

    @property
    def database_url(self) -> str:
        """Where rollouts, examples' roles and feedback are."""
        return self.database or f"sqlite:///{self.home / 'lifelist.db'}"

    @property
    def examples_folder(self) -> Path:
        """The encoded images, by content."""
        return self.home / "examples"

    @property
    def review_folder(self) -> Path:
        """The images that wait for a person to label them."""
        return self.home / "review"

    @property
    def work_folder(self) -> Path:
        """One folder for each rollout while it runs."""
        return self.home / "work"

    @property
    def keys_file(self) -> Path:
        """The API keys, as hashes."""
        return self.home / "keys.json"

    @property
    def secret_file(self) -> Path:
        """The key that prediction ids are sealed with."""
        return self.home / "secret.key"

    @property
    def is_open(self) -> bool:
        """Whether everybody may call as long as there are no API keys."""
        return self.serving.allow_anonymous or on_loopback(self.serving.host)
