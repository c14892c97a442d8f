"""The watcher beside a running server (monitoring/watcher.py): how it asks replicas, what it probes, how it acts.

Two threads of the worker: one looks, and starts increments; the other calls webhooks, which may take their time.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from lifelist.deploy import examples, triggers, verdicts, withdrawn
from lifelist.deploy.settings import Settings
from lifelist.deploy.swap import ask_all
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import LifelistError
from lifelist.exporter.registry import Blobs
from lifelist.exporter.storage import open_storage
from lifelist.monitoring import probe
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.monitoring.review import Queue
from lifelist.monitoring.watcher import Outside, Watcher
from lifelist.monitoring.webhooks import Post
from lifelist.serving import keys, prediction
from lifelist.serving.observed import Observations
from lifelist.serving.prediction import key_in

NICENESS = 15  # answers come first, and what the rest of the worker does
TIMEOUT_S = 5.0  # for the replicas to hand over what they saw
MOST_PAUSE_S = 60.0  # between looks that fail
POST_EVERY_S = 1.0  # looks for notices to send

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

    def roll_back(version: int, generation: int) -> None:
        withdrawn.make_live(workshop, version, generation)

    return Outside(observe, asked, gate, roll_back)


def queue(settings: Settings, workshop: Workshop) -> Queue:
    """The images that wait for a person to label them."""
    key = key_in(settings.secret_file)
    images = Blobs(open_storage(settings.review_folder))
    return Queue(workshop.store, images, settings.review, lambda made: prediction.open(key, made).weight > 0)


def start(settings: Settings, workshop: Workshop) -> None:
    """Watch and act from now on, in threads that end with the process."""
    looks: dict[str, tuple[Callable[[float], object], float]] = {}
    looks["watch"] = watching(settings, workshop), settings.monitoring.every_s
    if settings.webhooks:
        looks["webhooks"] = Post(workshop.store, settings.webhooks, settings.url).look, POST_EVERY_S
    for name, (look, every_s) in looks.items():
        threading.Thread(target=_again_and_again, args=(name, look, every_s), name=name, daemon=True).start()


def watching(settings: Settings, workshop: Workshop) -> Callable[[float], None]:
    """What is done at each look; it is given the Unix time. It can be made before the database can be read."""
    watcher: Watcher | None = None
    starter = triggers.Starter(workshop)

    def look(at: float) -> None:
        nonlocal watcher
        if watcher is None:
            world = outside(settings, workshop)
            options, images = settings.monitoring, queue(settings, workshop)
            watcher = Watcher(workshop.store, workshop.registry, options, world, queue=images)
        verdicts.tell(workshop.store, at)  # before the swap that follows from one
        watcher.look(at)
        starter.look(at)

    return look


def _again_and_again(name: str, look: Callable[[float], object], every_s: float) -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    pause = every_s
    while True:
        time.sleep(pause)
        try:
            look(time.time())
            pause = every_s
        except Exception as error:  # a database that is away, a full disk: no answer waits for any of this
            pause = min(2 * pause, max(MOST_PAUSE_S, every_s))
            facts = {"reason": f"{type(error).__name__}: {error}", "again_in_s": pause}
            log.warning(f"{name}.missed", extra={"facts": facts}, exc_info=not isinstance(error, LifelistError))
