"""The watcher beside a running server (monitoring/watcher.py): how it asks replicas, and what a probe is sent to."""

import logging
import threading
import time
from collections.abc import Sequence

from lifelist.deploy import examples
from lifelist.deploy.settings import Settings
from lifelist.deploy.swap import ask_all
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import LifelistError
from lifelist.monitoring import probe
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.monitoring.watcher import Outside, Watcher
from lifelist.serving import keys
from lifelist.serving.observed import Observations
from lifelist.serving.prediction import key_in

TIMEOUT_S = 5.0  # for the replicas to hand over what they saw
MOST_PAUSE_S = 60.0  # between looks that fail

log = logging.getLogger(__name__)


def outside(settings: Settings, workshop: Workshop) -> Outside:
    """The replicas of the Ray Serve that this process is part of, and the server at the settings' address."""
    own = keys.own(key_in(settings.secret_file))

    def observe() -> Sequence[Observations]:
        found = ask_all(TIMEOUT_S, "observed")
        return [one for of_replica in found if isinstance(of_replica, list) for one in of_replica]

    def gate() -> Sequence[GateImage]:
        kept = examples.learned(workshop.store, workshop.live)
        return [GateImage(found.sha256, found.class_id) for found in kept if found.role == "gate"]

    def asked(images: Sequence[GateImage]) -> Sequence[Probed]:
        return list(probe.ask(settings.url, own, images, workshop.images.get))

    return Outside(observe, asked, gate)


def start(settings: Settings, workshop: Workshop) -> None:
    """Watch from now on, in a thread that ends with the process. Nothing happens if the settings say so."""
    if not settings.monitoring.enabled:
        return
    threading.Thread(target=_watch, args=(settings, workshop), name="watch", daemon=True).start()


def _watch(settings: Settings, workshop: Workshop) -> None:
    watcher, pause = None, settings.monitoring.every_s
    while True:
        time.sleep(pause)
        try:
            watcher = watcher or Watcher(
                workshop.store, workshop.registry, settings.monitoring, outside(settings, workshop)
            )
            watcher.look(time.time())
            pause = settings.monitoring.every_s
        except Exception as error:  # a database that is away, a full disk: no answer waits for any of this
            pause = min(2 * pause, max(MOST_PAUSE_S, settings.monitoring.every_s))
            facts = {"reason": f"{type(error).__name__}: {error}", "again_in_s": pause}
            log.warning("watch.missed", extra={"facts": facts}, exc_info=not isinstance(error, LifelistError))
