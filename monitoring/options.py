"""Every option of watching, and of what follows from it."""

import base64
import binascii
import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

DAY_S = 86_400.0
KINDS = ("swap", "gate", "alarm", "cleared", "rollback", "rollback-advised", "trigger", "lost")  # of notices
LEAST_SECRET = 16  # bytes that a webhook is signed with
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"


class MonitoringOptions(BaseModel):
    """How answers are watched; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    enabled: bool = Field(default=True, description="watch the answers: probes, estimated accuracy, drift, rollback")
    every_s: float = Field(default=5, gt=0, le=DAY_S, description="seconds between looks at what was answered")
    probe_every_s: float = Field(
        default=300, ge=0, le=DAY_S, description="seconds between probes; 0: only after a swap"
    )
    probe_images: int = Field(default=400, ge=0, description="gate images in a probe, of all classes alike; 0: none")
    label_days: float = Field(
        default=90, gt=0, le=3650, description="days after an answer that its true class is taken, and kept by itself"
    )
    raw_days: float = Field(default=3, gt=0, le=3650, description="days that figures are kept by the minute")
    hourly_days: float = Field(default=60, gt=0, le=3650, description="days that figures are kept by the hour")
    daily_days: float = Field(default=1095, gt=0, le=36_500, description="days that figures are kept by the day")
    window: int = Field(default=150, ge=50, le=10_000, description="answers in the window of a test for drift")
    long_window: int = Field(default=1500, ge=100, le=100_000, description="answers in the long window")
    false_alarms: float = Field(
        default=0.01, gt=0, lt=0.5, description="share of quiet looks at which some test may reject, all together"
    )
    raise_after: int = Field(default=2, ge=1, description="windows in a row that must reject before an alarm is raised")
    clear_after: int = Field(default=3, ge=1, description="windows in a row that must not before it is over")
    hold_s: float = Field(
        default=3600,
        ge=0,
        le=30 * DAY_S,
        description="seconds after live has other classes, or another model, in which drift raises no alarm",
    )
    rollback: Literal["off", "tell", "on"] = Field(
        default="tell", description="when accuracy falls after a swap: off, tell, or roll back (on), once"
    )
    rollback_within_s: float = Field(
        default=3600, ge=0, le=30 * DAY_S, description="seconds after a swap in which that may happen"
    )
    loss: float = Field(
        default=0.02, ge=0, lt=1, description="accuracy that may be lost before it counts as fallen, by its interval"
    )

    @model_validator(mode="after")
    def _coarser_is_longer(self) -> Self:
        if not self.raw_days <= self.hourly_days <= self.daily_days:
            raise ValueError(
                f"raw_days {self.raw_days:g}, hourly_days {self.hourly_days:g} and daily_days {self.daily_days:g} "
                "should rise: what is kept longer is kept more coarsely"
            )
        if self.window >= self.long_window:
            raise ValueError(f"long_window {self.long_window} should be longer than window {self.window}")
        return self


class ReviewOptions(BaseModel):
    """Which images are kept so that a person can label them (monitoring/review.py); frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    keep_images: bool = Field(
        default=False, description="consent: keep images that users sent, a bounded number, for a person to label"
    )
    images: int = Field(
        default=500, ge=1, le=100_000, description="images that wait at most; the least useful go first"
    )
    per_hour: int = Field(default=60, ge=1, le=100_000, description="images that are kept in an hour at most")
    days: float = Field(default=14, gt=0, le=3650, description="days that an image waits; then it is deleted")
    margin: float = Field(
        default=0.2, ge=0, le=1, description="kept if the best class leads the second by less; 0: not for that"
    )
    unknown: float = Field(default=0.98, ge=0, le=1, description="kept if the unknown score is above; 1: not for that")
    disagree: bool = Field(
        default=True, description="kept if the two kinds of answer name different classes that both can name"
    )


class TriggerOptions(BaseModel):
    """What starts an increment by itself (deploy/triggers.py); nothing unless it is set here; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    pending_images: int = Field(
        default=0, ge=0, description="images waiting to be learned that start an increment; 0: off"
    )
    every_h: float = Field(
        default=0, ge=0, le=8760, description="hours after which what waits is learned, however little; 0: off"
    )
    at: str = Field(default="", description="time of day (UTC, 02:30) at which what waits is learned; empty: off")
    drift_h: float = Field(
        default=0, ge=0, le=8760, description="hours that an alarm of drift stands before what waits is learned; 0: off"
    )
    unknown_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of answers that look unknown above which what waits is learned; 0: off",
    )
    unknown_h: float = Field(
        default=1, gt=0, le=168, description="hours that the share stays above before an increment starts"
    )
    min_distance_h: float = Field(
        default=6, ge=0, le=8760, description="hours between the beginnings of two increments at least"
    )
    quiet_hours: str = Field(
        default="", description="hours of the day (UTC, 08:00-18:00) in which none is started; empty: none"
    )
    trainer_s_per_day: float = Field(
        default=0, ge=0, description="seconds of training in any 24 hours beyond which none is started; 0: any"
    )

    @field_validator("at")
    @classmethod
    def _is_a_time(cls, at: str) -> str:
        if at and not re.fullmatch(_TIME, at):
            raise ValueError("should be a time of day such as 02:30")
        return at

    @field_validator("quiet_hours")
    @classmethod
    def _are_two_times(cls, hours: str) -> str:
        if hours and (not re.fullmatch(f"{_TIME}-{_TIME}", hours) or hours[:5] == hours[6:]):
            raise ValueError("should be two times of day such as 08:00-18:00")
        return hours

    @property
    def any(self) -> bool:
        """Whether anything here may start an increment."""
        return bool(self.pending_images or self.every_h or self.at or self.drift_h or self.unknown_share)


class Webhook(BaseModel):
    """Where notices are sent to (monitoring/webhooks.py); frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(max_length=1000)
    secret: SecretStr
    kinds: tuple[str, ...] = ()  # of notices; none: all

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        found = urlsplit(url)
        if found.scheme not in ("http", "https") or not found.hostname or not url.isprintable() or " " in url:
            raise ValueError("should be an http:// or https:// URL")
        return url

    @field_validator("secret")
    @classmethod
    def _is_long(cls, secret: SecretStr) -> SecretStr:
        if len(_key(secret)) < LEAST_SECRET:
            raise ValueError(f"should be whsec_ and base64 of, or itself have, {LEAST_SECRET} bytes at least")
        return secret

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"has {unknown[0]!r}; there are {', '.join(KINDS)}")
        return kinds

    @field_serializer("secret", when_used="json")
    def _masked(self, secret: SecretStr, info: SerializationInfo) -> str:
        """Masked, unless whoever dumps it says that it is for another process of this server."""
        whole = bool(info.context and info.context.get("secrets"))
        return secret.get_secret_value() if whole else str(secret)

    @property
    def key(self) -> bytes:
        """What signatures are made with."""
        return _key(self.secret)

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it: user, password, query."""
        found = urlsplit(self.url)
        host = found.hostname or ""
        host = f"[{host}]" if ":" in host else host
        return f"{found.scheme}://{host}{f':{found.port}' if found.port else ''}{found.path}"


def _key(secret: SecretStr) -> bytes:
    """The bytes of a secret: as Standard Webhooks write one (whsec_ and base64), else the text itself."""
    text = secret.get_secret_value()
    if not text.startswith("whsec_"):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("begins with whsec_, and what follows is not base64") from error
