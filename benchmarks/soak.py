"""Hours at half load with a swap each minute: failures, memory and latency, minute by minute.

Clients send one image each, evenly spread, at half of what the server did at most; each minute the previous version is
made live again. A row is one minute; the picture shows that memory and p99 stay flat, or do not.
"""

import http.client
import itertools
import json
import statistics
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifelist.benchmarks.fuzz import memory

CLIENTS = 8
PEAK_S = 10  # in which the most is found that the server does
SWAP_AT = 0.5  # of each minute
TYPE = {"Content-Type": "image/png"}


@dataclass(frozen=True, slots=True)
class Minute:
    """What one minute brought."""

    number: int
    answers: int
    failures: int
    p50_ms: float
    p99_ms: float
    memory_bytes: int  # of all processes that answer
    versions: tuple[int, ...]  # that answered


@dataclass(frozen=True, slots=True)
class _Sent:
    seconds: float
    version: int  # 0: it failed
    problem: str = ""


def soak(
    url: str,
    image: bytes,
    minutes: int,
    swap: Callable[[], object],
    tell: Callable[[str], None],
    *,
    minute_s: float = 60,
) -> tuple[float, list[Minute], list[str]]:
    """(requests a second that were sent, a row for each minute, what failed). `swap` makes another version live."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        peak = len(_closed(pool, url, image, PEAK_S)) / PEAK_S
        rate = peak / 2
        tell(f"{peak:.0f} requests a second at most; {rate:.0f} from here on")
        rows, problems = list[Minute](), list[str]()
        for number in range(1, minutes + 1):
            swapping = threading.Timer(SWAP_AT * minute_s, _noting(swap, problems))
            swapping.start()
            sent = _open(pool, url, image, minute_s, rate)
            swapping.join()
            rows.append(_row(number, sent, url))
            problems += [one.problem for one in sent if one.problem]
            row = rows[-1]
            tell(
                f"minute {number}: {row.answers:,} answers, {row.failures} failures, p99 {row.p99_ms:.1f} ms, "
                f"{row.memory_bytes / 2**20:,.0f} MiB, by {', '.join(map(str, row.versions))}"
            )
    return rate, rows, problems


def line(rate: float, rows: Sequence[Minute], problems: Sequence[str]) -> dict[str, Any]:
    """The summary: the last fifth of the minutes beside the first, but for the very first, which warms up."""
    share = max(1, len(rows) // 5)
    early, late = rows[1 : 1 + share] or rows, rows[-share:]
    ratio = {
        name: statistics.median(getattr(row, name) for row in late)
        / (statistics.median(getattr(row, name) for row in early) or 1)  # 0: nothing was answered, or it is elsewhere
        for name in ("memory_bytes", "p99_ms")
    }
    return {
        "bench": "soak",
        "minutes": len(rows),
        "requests_per_second": round(rate, 1),
        "answers": sum(row.answers for row in rows),
        "failures": len(problems),
        "swaps": sum(len(row.versions) - 1 for row in rows if row.versions),
        "memory_ratio": round(ratio["memory_bytes"], 3),
        "p99_ratio": round(ratio["p99_ms"], 3),
        "rows": [asdict(row) for row in rows],
    }


def picture(file: Path, rows: Sequence[Minute]) -> None:
    """Memory and latency by minute."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    minutes = [row.number for row in rows]
    upper.plot(minutes, [row.p99_ms for row in rows], label="p99")
    upper.plot(minutes, [row.p50_ms for row in rows], label="median")
    upper.set(ylabel="milliseconds", ylim=(0, 1.1 * max(row.p99_ms for row in rows)))
    upper.legend()
    memory = [row.memory_bytes / 2**20 for row in rows]
    lower.plot(minutes, memory)
    lower.set(ylabel="MiB that replicas have", xlabel="minute, with a swap in each", ylim=(0, 1.1 * max(memory)))
    figure.savefig(file, dpi=120)


def _row(number: int, sent: Sequence[_Sent], url: str) -> Minute:
    took = sorted(one.seconds * 1000 for one in sent if one.version) or [0.0]
    versions = tuple(dict.fromkeys(one.version for one in sent if one.version))
    total = sum(size for _, size in memory(url).values())
    failures = sum(1 for one in sent if not one.version)
    return Minute(
        number, len(sent) - failures, failures, took[len(took) // 2], took[len(took) * 99 // 100], total, versions
    )


def _noting(swap: Callable[[], object], problems: list[str]) -> Callable[[], None]:
    def swapping() -> None:
        try:
            swap()
        except Exception as error:  # noqa: BLE001  a thread: it would end unheard
            problems.append(f"swap: {error!r}")

    return swapping


# ------------------------------------------------------------------------------------------------------------- load


def _closed(pool: ThreadPoolExecutor, url: str, image: bytes, seconds: float) -> list[_Sent]:
    """Each client asks again as soon as it is answered."""
    end = time.perf_counter() + seconds

    def client() -> list[_Sent]:
        asker, found = _Asker(url, image), list[_Sent]()
        while time.perf_counter() < end:
            found.append(asker.ask(time.perf_counter()))
        return found

    return [one for done in [pool.submit(client) for _ in range(CLIENTS)] for one in done.result()]


def _open(pool: ThreadPoolExecutor, url: str, image: bytes, seconds: float, rate: float) -> list[_Sent]:
    """Requests at moments that do not depend on the answers; latency counts from the moment that was meant."""
    began = time.perf_counter()
    moments = iter([began + k / rate for k in range(int(seconds * rate))])
    lock = threading.Lock()

    def client() -> list[_Sent]:
        asker, found = _Asker(url, image), list[_Sent]()
        while True:
            with lock:
                moment = next(moments, None)
            if moment is None:
                return found
            time.sleep(max(0, moment - time.perf_counter()))
            found.append(asker.ask(moment))

    each = [done.result() for done in [pool.submit(client) for _ in range(CLIENTS)]]
    return [one for row in itertools.zip_longest(*each) for one in row if one is not None]  # about as they were sent


class _Asker:
    """One client, with a connection that it keeps."""

    def __init__(self, url: str, image: bytes) -> None:
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=30)
        self.image = image

    def ask(self, since: float) -> _Sent:
        """Send the image; how long it took since that moment, and by which version."""
        try:
            self.connection.request("POST", "/v1/classify", self.image, TYPE)
            answer = self.connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return _Sent(time.perf_counter() - since, 0, repr(error))
        took = time.perf_counter() - since
        if answer.status != 200:
            return _Sent(took, 0, f"{answer.status} {body[:200]!r}")
        return _Sent(took, int(json.loads(body)["version"]))
