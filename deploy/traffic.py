"""A client that sends held-out images all the time and checks every answer."""

import itertools
import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from lifelist.exporter.errors import LifelistError
from lifelist.exporter.registry import Registry


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and what came of it. Exactly one of `failure` and `version` is set; `inconsistency` may join it."""

    began: float  # Unix time, seconds
    seconds: float
    truth: str  # the class that the image shows
    version: int | None = None  # that answered
    answer: str | None = None  # its top class
    prediction_id: str | None = None
    failure: str | None = None  # no answer, or a status other than 200
    inconsistency: str | None = None  # an answer that cannot be true of the version it names

    @property
    def right(self) -> bool:
        """Whether the top class is the true one."""
        return self.answer == self.truth


class Traffic:
    """Sends images round and round from `clients` threads until it is left, and keeps what came of each.

    images: (class name, image file bytes). Each answer must have status 200, name a version that the registry holds,
    and name only classes that this version knows, under the names it knows them by.
    """

    def __init__(
        self, url: str, registry: Registry, images: Sequence[tuple[str, bytes]], clients: int = 2, pause_s: float = 0.01
    ) -> None:
        self.url, self.registry, self.pause_s = url, registry, pause_s
        self.sent: list[Sent] = []
        self._known: dict[int, dict[int, str]] = {}
        self._stop = threading.Event()
        shuffled = random.Random(0).sample(list(images), len(images))
        self._threads = [
            threading.Thread(target=self._send_all, args=(shuffled[k::clients],), name=f"client-{k}", daemon=True)
            for k in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client finish the request that it is in."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send_all(self, images: Iterable[tuple[str, bytes]]) -> None:
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as http:
            for truth, data in itertools.cycle(images):
                if self._stop.is_set():
                    return
                self.sent.append(self._checked(http, truth, data))
                time.sleep(self.pause_s)

    def _checked(self, http: httpx.Client, truth: str, data: bytes) -> Sent:
        """Whatever goes wrong in sending or in checking is a finding, never the end of the client."""
        began, clock = time.time(), time.perf_counter()
        try:
            return self._send(http, truth, data)
        except Exception as error:  # noqa: BLE001
            seconds = time.perf_counter() - clock
            return Sent(began, seconds, truth, failure=f"the answer cannot be checked: {type(error).__name__}: {error}")

    def _send(self, http: httpx.Client, truth: str, data: bytes) -> Sent:
        began = time.time()
        clock = time.perf_counter()
        try:
            response = http.post("/v1/classify", content=data, headers={"Content-Type": "image/png"})
        except httpx.HTTPError as error:
            return Sent(began, time.perf_counter() - clock, truth, failure=f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - clock
        if response.status_code != 200:
            return Sent(began, seconds, truth, failure=f"{response.status_code} {response.text[:200]}")
        found = response.json()
        top = found["images"][0]["classes"][0]
        return Sent(
            began,
            seconds,
            truth,
            version=found["version"],
            answer=top["name"],
            prediction_id=found["images"][0]["prediction_id"],
            inconsistency=self._inconsistency(found),
        )

    def _inconsistency(self, found: dict[str, Any]) -> str | None:
        try:
            known = self._classes_of(found["version"])
        except LifelistError as error:
            return f"the answer names version {found['version']}: {error}"
        named = {c["id"]: c["name"] for image in found["images"] for c in image["classes"]}
        if strangers := {i: name for i, name in named.items() if known.get(i) != name}:
            return f"version {found['version']} does not know {strangers}"
        return None

    def _classes_of(self, version: int) -> dict[int, str]:
        if version not in self._known:  # a manifest never changes
            self._known[version] = {c.id: c.name for c in self.registry.manifest(version).classes}
        return self._known[version]
