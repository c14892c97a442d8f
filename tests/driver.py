"""Runs in a process of its own, connected to a server's Ray: swaps as the rollout's worker makes them, and deaths.

python driver.py HOME STORY VERSION …      prints one JSON line
"""

import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray

from lifelist.deploy import ground
from lifelist.deploy.swap import ask_all, swap
from lifelist.exporter.errors import LifelistError
from lifelist.exporter.registry import Registry
from lifelist.serving.follow import Report, Status

ask = partial(ask_all, 60.0)


def told(registry: Registry, version: int, expected: int | None, asking: Any = ask) -> dict[str, Any]:
    """What came of a swap."""
    try:
        made = swap(registry, version, expected, asking)
    except LifelistError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"version": made.ref.version, "generation": made.ref.generation, "replicas": made.replicas}


def race(registry: Registry, versions: list[int]) -> Any:
    """Swaps to several versions at once, all from where live stands now."""
    ref = registry.ref("live")
    assert ref is not None
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda v=version: found.update({v: told(registry, v, ref.generation)}))
        for version in versions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def one() -> int:
    """The process of one replica."""
    return min(status.process_id for status in ask("status") if isinstance(status, Status))


def kill_in_prepare(registry: Registry, versions: list[int]) -> Any:
    """A replica is held at the moment of prepare, and killed while the swap waits for it."""
    ref = registry.ref("live")
    victim = one()
    os.kill(victim, signal.SIGSTOP)
    rounds: list[str] = []

    def asking(method: str, *arguments: Any) -> list[Any]:
        if method == "prepare" and not rounds:
            threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        found = ask(method, *arguments)
        rounds.append(f"{method} {sum(isinstance(one, Report) for one in found)} of {len(found)}")
        return found

    return told(registry, versions[0], ref and ref.generation, asking) | {"rounds": rounds, "victim": victim}


def kill_before_commit(registry: Registry, versions: list[int]) -> Any:
    """Every replica is prepared; then one is killed, before any hears of the commit."""
    ref = registry.ref("live")
    victim = one()
    rounds: list[str] = []

    def asking(method: str, *arguments: Any) -> list[Any]:
        if method == "commit" and "commit" not in str(rounds):
            os.kill(victim, signal.SIGKILL)
        found = ask(method, *arguments)
        rounds.append(f"{method} {sum(isinstance(one, Report) for one in found)} of {len(found)}")
        return found

    return told(registry, versions[0], ref and ref.generation, asking) | {"rounds": rounds, "victim": victim}


def join_after_prepare(registry: Registry, versions: list[int]) -> Any:
    """One replica alone is prepared; another joins then, with the old version, before the reference moves."""
    ref = registry.ref("live")
    gone = one()
    os.kill(gone, signal.SIGKILL)
    rounds: list[str] = []

    def processes() -> list[int]:
        return [status.process_id for status in ask("status") if isinstance(status, Status)]

    def asking(method: str, *arguments: Any) -> list[Any]:
        found = ask(method, *arguments)
        rounds.append(f"{method} {sum(isinstance(one, Report) for one in found)} of {len(found)}")
        while method == "prepare" and len(processes()) < 2:
            time.sleep(0.05)
        return found

    while len(ask("status")) > 1:
        time.sleep(0.05)
    (staying,) = processes()
    made = told(registry, versions[0], ref and ref.generation, asking)
    return made | {"rounds": rounds, "staying": staying, "gone": gone, "processes": processes()}


def missed_commit(registry: Registry, versions: list[int]) -> Any:
    """The reference moves and nobody is told: the process that swaps dies right after. Seconds until all follow."""
    ref = registry.ref("live")
    registry.promote(versions[0], ref and ref.generation)
    began = time.monotonic()
    while any(status.version != versions[0] for status in ask("status")):
        time.sleep(0.05)
    return {"seconds": time.monotonic() - began}


def main() -> None:
    """Connect, and play the story."""
    home, story, *versions = sys.argv[1:]
    record = ground.read(Path(home))
    assert record is not None
    ray.init(address=record.ray, namespace="lifelist", log_to_driver=False, logging_level="ERROR")
    found = globals()[story](Registry(str(Path(home) / "registry")), [int(version) for version in versions])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
