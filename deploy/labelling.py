"""True classes of answers, as they arrive over HTTP: recorded and counted."""

import time

from lifelist.client.answers import Judged
from lifelist.deploy.desk import Desk
from lifelist.deploy.naming import names
from lifelist.exporter.errors import BadInput, LifelistError, Missing
from lifelist.monitoring import feedback
from lifelist.serving import prediction


def label(desk: Desk, prediction_id: str, truth: str | int, via: str = "") -> Judged:
    """Record what class, by name or id, an answered image really was; via: `feedback.REVIEW`, if that asked for it.

    BadInput for an id that is none of this server's, or of too old an answer; Missing for a class that nobody knows.
    """
    workshop, counted = desk.workshop, desk.quality.labels
    try:
        made = prediction.open(desk.key, prediction_id)
        version = workshop.registry.manifest(made.version)
        titles = {entry.id: entry.name for entry in version.classes}
        if made.class_id not in titles:  # the registry is another than when it was answered
            raise BadInput(
                f"prediction_id {prediction_id[:80]!r} is of an answer with class {made.class_id}, which version "
                f"{made.version} in this registry does not have; was the registry replaced since?"
            )
    except LifelistError:
        counted.labels("orphan").inc()
        raise
    try:
        known = names(workshop, workshop.live).meant(truth)
    except Missing:  # not recorded, and told by its rate: many of them are a class to add
        if not via:
            counted.labels("unnamed").inc()
        raise
    at, days = time.time(), workshop.settings.monitoring.label_days
    try:
        is_news = feedback.record(workshop.store, prediction_id, made, known.id, days, at, via)
    except BadInput:
        counted.labels("late").inc()
        raise
    outcome = feedback.judge(version)(made.class_id, known.id)
    told = outcome if is_news else "duplicate"
    desk.quality.labelled(prediction_id, told, at - made.at, audit=is_news and made.weight > 0 and not via)
    return {
        "version": made.version,
        "predicted": {"id": made.class_id, "name": titles[made.class_id]},
        "truth": {"id": known.id, "name": known.name},
        "correct": outcome == "correct",
    }
