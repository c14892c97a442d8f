"""What tests of watching share: labels of answers, and a page of metrics."""

from prometheus_client import CollectorRegistry

from lifelist.monitoring import feedback
from lifelist.monitoring.database import Database
from lifelist.serving.prediction import Prediction


def label(
    database: Database,
    prediction_id: str,
    version: int,
    predicted: int,
    truth: int,
    at: float,
    *,
    after_s: float = 0,
    weight: float = 0.0,
    via: str = "",
) -> bool:
    """Somebody says what class an answer was really of, which a version gave at a time; weight: above 0 if audited."""
    made = Prediction(version, predicted, "linear", at, weight)
    return feedback.record(database, prediction_id, made, truth, 90, at + after_s, via)


def values(page: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a metric, by the values of their labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in page.collect()
        for sample in family.samples
        if sample.name == name
    }
