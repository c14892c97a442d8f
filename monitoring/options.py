"""Every option of watching."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DAY_S = 86_400.0


class MonitoringOptions(BaseModel):
    """How answers are watched; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    enabled: bool = Field(default=True, description="watch the answers: probes, estimated accuracy, drift")
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
        description="seconds after classes changed during which drift raises no alarm; accuracy and errors do",
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
