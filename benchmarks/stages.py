"""Where the time of a query goes, stage by stage from the generator and back, and where that of the cores.

The server is the one that `lifelist serve` starts, with HAProxy and Ray. In each repeat it is loaded three times: as it
is; with the marks of benchmarks/marks.py on; and, with these, past HAProxy. Latencies are the generator's. What of them
no mark covers is a stage of its own, so that the stages add up to the latency: `layers` inside the replica, `sockets`
outside of it, and `proxy`, which is what of the latter there is more of through HAProxy than past it.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from lifelist.benchmarks import load, marks, models
from lifelist.benchmarks.contenders import LIFELIST, Sent, started
from lifelist.benchmarks.machine import machine
from lifelist.benchmarks.models import Model
from lifelist.benchmarks.serving import CASES as SERVING_CASES
from lifelist.benchmarks.serving import SETTLE_S, WARM_S, Case
from lifelist.exporter.errors import Failed

STAGES = {  # in the order in which a query goes through them
    "sockets": "the generator, the kernel's sockets, and waking up",
    "proxy": "HAProxy",
    "parsing": "uvicorn, from the first byte of the head until the application has its turn",
    "layers": "request id, keys, limits, metrics, and what no other stage has",
    "body": "the body arrives and is checked",
    "decoder": "waiting for a thread that decodes, and for what it returns",
    "decode": "the image file becomes pixels",
    "lane": "waiting for a lane of the model",
    "model": "ONNX Runtime, for the whole batch",
    "scores": "softmax or nearest means, the best classes",
    "back": "from the lane back to the event loop",
    "answer": "names, rounding, and the sealed prediction id",
    "JSON": "the answer as JSON",
    "sending": "uvicorn, from the answer to the socket",
}
WHO = {  # what works at a time
    "generator": "wrk",
    "proxy": "HAProxy",
    "loop": "the replica's event loop: HTTP, limits, answers, and little images",
    "decoders": "the replica's threads that decode",
    "lanes": "the replica's threads that run the model",
    "rest": "the replica's other threads: ONNX Runtime's own, Ray's",
    "others": "Ray's processes, the operator, `lifelist serve`",
    "nobody": "idle, or at work for another program",
}
CASES = tuple(case for case in SERVING_CASES if case.images == 1)
CLIENTS = (1, 32)
IDLE_S = 5.0
HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
SITE = f"""\
import os
if {HOOK!r} in os.environ:
    os.environ[{HOOK!r}] = "lifelist.benchmarks.marks.middleware"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    cases: Sequence[Case] = CASES
    clients: Sequence[int] = CLIENTS
    repeats: int = 3
    seconds: float = 5.0  # of each load
    settle_s: float = SETTLE_S  # after a start
    idle_s: float = IDLE_S
    folder: Path | None = None  # where models are kept; unless given, for this once


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the page and the line of JSON say."""
    load.wrk()
    cells: list[dict[str, Any]] = []
    idle: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        for name, precision in dict.fromkeys((case.model, case.precision) for case in asked.cases):
            model: Model = getattr(models, name)(folder)
            with served(model, precision) as server:
                time.sleep(asked.settle_s)
                idle = idle or server.idle(asked.idle_s)
                for case in (case for case in asked.cases if (case.model, case.precision) == (name, precision)):
                    sent = LIFELIST.sent(model, case.kind, [0])
                    for clients in asked.clients:
                        cell = _cell(server, sent, clients, asked)
                        cells.append({"case": case.name, "clients": clients} | cell)
                        tell(
                            f"{case.name}, {clients} clients: {cell['latency_us']:,.0f} µs a query, "
                            f"{cell['stages_us']['model']:,.0f} of them in the model"
                        )
    return {
        "bench": "stages",
        "cells": cells,
        "idle_cores": idle,
        "repeats": asked.repeats,
        "seconds": asked.seconds,
        "machine": machine(),
    }


def _cell(server: "Server", sent: Sent, clients: int, asked: Asked) -> dict[str, Any]:
    """Means of the repeats, which add up as each repeat does."""
    _loaded(server.url, sent, clients, WARM_S)
    rounds = [_round(server, sent, clients, asked.seconds) for _ in range(asked.repeats)]
    latencies = [sum(one["stages_us"].values()) for one in rounds]
    return {
        "latency_us": mean(latencies),
        "latency_spread_us": [min(latencies), max(latencies)],
        "requests_per_second": mean(one["requests_per_second"] for one in rounds),
        "unmarked_requests_per_second": mean(one["unmarked_requests_per_second"] for one in rounds),
        "errors": sum(one["errors"] for one in rounds),
        "stages_us": {stage: mean(one["stages_us"][stage] for one in rounds) for stage in STAGES},
        "cores_us": {who: mean(one["cores_us"][who] for one in rounds) for who in WHO},
    }


def _round(server: "Server", sent: Sent, clients: int, seconds: float) -> dict[str, Any]:
    unmarked = _loaded(server.url, sent, clients, seconds)
    before, began = server.spent(), time.perf_counter()
    with server.marked() as inside:
        through = _loaded(server.url, sent, clients, seconds)
    after, took = server.spent(), time.perf_counter() - began
    with server.marked() as inside_past:
        past = _loaded(server.direct_url, sent, clients, seconds)
    sockets = _latency(past, clients) - sum(inside_past.values())
    proxy = _latency(through, clients) - sum(inside.values()) - sockets
    cores = {who: after[who] - before[who] for who in after} | {
        "generator": through.generator_cores * through.seconds,
    }
    cores["nobody"] = took * len(os.sched_getaffinity(0)) - sum(cores.values())
    return {
        "requests_per_second": through.requests_per_second,
        "unmarked_requests_per_second": unmarked.requests_per_second,
        "errors": unmarked.errors + through.errors + past.errors,
        "stages_us": {"sockets": sockets, "proxy": proxy} | inside,
        "cores_us": {who: seconds / through.requests * 1e6 for who, seconds in cores.items()},
    }


def _latency(found: load.Load, clients: int) -> float:
    """Mean µs of the queries that were answered, by their count, since each client asks again at once; wrk corrects its
    own mean. Those that are unanswered at the end have had half of their time by then.
    """
    usual = clients * found.seconds / found.requests
    return 1e6 * (usual - clients * usual / 2 / found.requests)


def _loaded(url: str, sent: Sent, clients: int, seconds: float) -> load.Load:
    """Image 0 is of class 0: an answer of another one is an error."""
    return load.run(
        url + sent.path, sent.body, sent.headers,
        clients=clients, seconds=seconds, pattern=LIFELIST.pattern, expected=[0],
    )  # fmt: skip


# --------------------------------------------------------------------------------------- the server, and its processes


@contextmanager
def served(model: Model, precision: str) -> Iterator["Server"]:
    """A server as `lifelist serve` starts it, in whose replica marks can be put."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SITE)  # Python runs that first, in each process

        def command(*arguments: Any) -> Sequence[str]:
            return ["env", f"PYTHONPATH={folder}", *LIFELIST.command(*arguments)]

        with started(replace(LIFELIST, command=command), model, precision) as url:
            yield Server(url, folder)


PATIENCE_S = 30


class Server:
    """What runs, as its marks and the kernel see it."""

    def __init__(self, url: str, mark: str) -> None:
        self.url, self.mark = url, mark
        deadline = time.monotonic() + PATIENCE_S
        # until HAProxy knows of the replica, Ray's own proxy answers, which has the marks as well but no lanes
        while "versions_0" not in (told := self._ask(""))["threads"].values():
            if time.monotonic() > deadline:
                raise Failed(f"{url} is answered by process {told['process_id']}, and by no replica")
            time.sleep(0.1)
        self.replica: int = told["process_id"]
        self.direct_url = f"http://127.0.0.1:{told['port']}"

    @contextmanager
    def marked(self) -> Iterator[dict[str, float]]:
        """Put the marks in for the time of a `with` block; then it holds microseconds of a query by stage."""
        self._ask("on")
        found: dict[str, float] = {}
        try:
            yield found
        finally:
            told = self._ask("off")
        inside = [stage for stage in STAGES if stage not in ("sockets", "proxy")]
        found.update({stage: told["seconds"].get(stage, 0.0) / max(1, told["queries"]) * 1e6 for stage in inside})

    def spent(self) -> dict[str, float]:
        """Seconds of the cores that each of WHO has had since it began, but for the generator."""
        told = self._ask("")
        found = dict.fromkeys((who for who in WHO if who not in ("generator", "nobody")), 0.0)
        for process in self.processes():
            seconds = _of_process(process)
            if process == self.replica:
                for thread, name in told["threads"].items():
                    of_thread = _of_thread(process, int(thread))
                    kinds = {"loop": "loop", "decode": "decoders", "model": "lanes"}
                    found[kinds.get(name.split("_")[0], "rest")] += of_thread
                    seconds -= of_thread
                found["rest"] += seconds
            else:
                found["proxy" if _name(process) == "haproxy" else "others"] += seconds
        return found

    def idle(self, seconds: float) -> dict[str, float]:
        """Cores that each process keeps busy while nobody asks for anything; the most first."""
        before = {process: _of_process(process) for process in self.processes()}
        time.sleep(seconds)
        found: defaultdict[str, float] = defaultdict(float)
        for process in self.processes():
            if process in before:
                found[_name(process)] += (_of_process(process) - before[process]) / seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def processes(self) -> list[int]:
        """All that were started for this server: the mark is in what they were started with, or one above them was. (A
        process that gives itself a long title, as Ray's do, may write over what it was started with.)
        """
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        parents = {number: int((_fields(number) or [b"0"] * 2)[1]) for number in numbers}
        ours = {number for number in numbers if self.mark.encode() in _read(number, "environ")}
        while more := {number for number, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sorted(ours)

    def _ask(self, query: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}{marks.PATH}?{query}", timeout=30, trust_env=False)
        if answer.status_code != 200:
            raise Failed(f"the replica's marks answered {answer.status_code}: {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found


def _read(process: int, file: str) -> bytes:
    """A file of /proc; empty if the process has ended."""
    try:
        return Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        return b""


def _of_process(process: int) -> float:
    """Seconds of the cores that it has had, with threads that have ended."""
    return sum(map(int, _fields(process)[11:13])) / os.sysconf("SC_CLK_TCK")


def _fields(process: int) -> list[bytes]:
    """What the kernel tells of it, from its state on; nothing if it has ended."""
    return _read(process, "stat").rpartition(b")")[2].split()


def _of_thread(process: int, thread: int) -> float:
    return int((_read(process, f"task/{thread}/schedstat") or b"0").split()[0]) / 1e9


def _name(process: int) -> str:
    """How it is called in the table."""
    words = _read(process, "cmdline").decode(errors="replace").split("\0")
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0].strip()
    script = next((word for word in words[1:] if word.endswith(".py") or word.startswith("lifelist.")), words[0])
    return Path(script).name
