"""The two applications of a server as Ray Serve runs them: the classifier, and the operator with everything else."""

import logging
from collections.abc import Sequence
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from lifelist.deploy import events, operator
from lifelist.deploy.settings import Settings
from lifelist.deploy.swap import over_replicas
from lifelist.deploy.workshop import open_workshop
from lifelist.exporter.registry import Registry
from lifelist.serving import app, classify
from lifelist.serving.catalog import Catalog
from lifelist.serving.keys import Guard, own
from lifelist.serving.replicas import APPLICATION, Broadcast


@serve.ingress()
class Operator:
    """One process for whatever is not a query: what it does takes no time from those that answer."""

    def __init__(self, settings: Settings, nonce: str, guard: Guard) -> None:
        log_events()
        registry = Registry(settings.registry_url)
        swap = over_replicas(registry, settings.serving.prepare_timeout_s)
        catalog = Catalog(
            registry, Broadcast(load_timeout_s=settings.serving.prepare_timeout_s), settings.serving, nonce
        )
        self.made = operator.app(open_workshop(settings, swap=swap), catalog, guard)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self.made


def log_events() -> None:
    """Events of this process go to its error stream, which Ray keeps in its session's folder of logs."""
    events.to_stderr(logging.INFO)


def targets(settings: Settings, key: bytes, nonce: str) -> Sequence[serve.RunTarget]:
    """Both applications; the longer prefix wins."""
    operating: Any = serve.deployment(
        Operator,
        name="Operator",
        num_replicas=1,
        max_ongoing_requests=app.UNBOUNDED,
        max_queued_requests=-1,
        ray_actor_options={"num_cpus": 0, "num_gpus": 0},
        graceful_shutdown_timeout_s=settings.serving.drain_s + 5,
        graceful_shutdown_wait_loop_s=0.2,
    )
    quiet = {"enable_access_log": False}
    guard = Guard(settings.keys_file, anonymous=settings.is_open, own=own(key))
    watched = settings.monitoring.enabled
    classifier = app.application(settings.registry_url, settings.serving, key, guard, log_events, watched)
    return [
        serve.RunTarget(classifier, APPLICATION, classify.PATH, logging_config=quiet),
        serve.RunTarget(operating.bind(settings, nonce, guard), "operator", "/", logging_config=quiet),
    ]
