"""Every option of training. Standard library only: these travel as JSON to a machine that has torch and little else."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How an increment is trained; frozen, JSON-able."""

    method: str = "bic"
