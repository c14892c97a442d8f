"""What watching costs: a real server with it and without, in turn, under the same load."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lifelist.benchmarks import load
from lifelist.benchmarks.contenders import LIFELIST, Kind, started
from lifelist.benchmarks.models import Model
from lifelist.benchmarks.serving import SETTLE_S, WARM_S
from lifelist.exporter.errors import Failed
from lifelist.exporter.preprocess import decode
from lifelist.exporter.registry import Registry

CLIENTS = 64
IMAGES = 200  # are sent in turn
PROBE_S = 20  # between probes, so that each load has one; by default it is five minutes
KINDS: tuple[Kind, ...] = ("file", "tensor")

Facts = dict[str, Any]


def measure(home: Path, files: Sequence[bytes], repeats: int, seconds: float, tell: Callable[[str], None]) -> Facts:
    """Answers a second and latency with watching and without it, and the medians of the ratios within a repeat.

    home: of a server with a live version, which keeps gate images; files: images to ask about, in turn.
    """
    load.wrk()
    model = _model(home, files)
    contender = replace(LIFELIST, command=lambda model, precision, port, folder: _command(home, precision, port))
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for watched in (True, False) if repeat % 2 else (False, True):
            flags = ["--monitoring.enabled", str(watched).lower(), "--monitoring.probe-every-s", str(PROBE_S)]
            with started(contender, model, "fp32", flags) as url:
                time.sleep(SETTLE_S)
                for kind in KINDS:
                    rows.append(
                        {"repeat": repeat, "watched": watched, "kind": kind} | _loaded(url, model, kind, seconds)
                    )
                    tell("repeat {repeat}: {kind}, watched {watched}: {per_second:,.0f} answers/s, "
                         "p99 {p99_ms:.1f} ms".format(**rows[-1]))  # fmt: skip
    facts: Facts = {"rows": rows, "repeats": repeats, "seconds": seconds, "clients": CLIENTS, "ratios": {}}
    for kind in KINDS:
        facts["ratios"][kind] = {
            "throughput": _ratio(rows, kind, "per_second"), "p50": _ratio(rows, kind, "p50_ms"),
            "p99": _ratio(rows, kind, "p99_ms"),
        }  # fmt: skip
    facts["throughput_ratio"] = round(min(one["throughput"] for one in facts["ratios"].values()), 3)
    facts["p99_ratio"] = round(max(one["p99"] for one in facts["ratios"].values()), 3)
    return facts


def _ratio(rows: Sequence[dict[str, Any]], kind: str, name: str) -> float:
    """With watching to without it: the median over repeats."""
    found = {(row["repeat"], row["watched"]): float(row[name]) for row in rows if row["kind"] == kind}
    return median(found[repeat, True] / found[repeat, False] for repeat, watched in found if watched)


def _loaded(url: str, model: Model, kind: Kind, seconds: float) -> dict[str, Any]:
    sent = [LIFELIST.sent(model, kind, [number]) for number in range(len(model.files))]
    first, bodies = sent[0], [one.body for one in sent]

    def run(for_seconds: float) -> load.Load:
        return load.run(
            url + first.path, bodies[0], first.headers, clients=CLIENTS, seconds=for_seconds, others=bodies[1:]
        )

    run(WARM_S)
    found = run(seconds)
    if found.errors:
        raise Failed(f"{found.errors} of {found.requests} requests were not answered: {found.first_error}")
    return {"per_second": found.requests_per_second, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms}


def _model(home: Path, files: Sequence[bytes]) -> Model:
    registry = Registry(str(home / "registry"))
    ref = registry.ref("live")
    assert ref is not None
    preprocess = registry.manifest(ref.version).preprocess
    pixels = np.stack([decode(data, preprocess) for data in files])
    return Model("trained", registry.url, ref.version, pixels, tuple(files))


def _command(home: Path, precision: str, port: int) -> Sequence[str]:
    return [
        sys.executable, "-m", "lifelist.deploy.cli", "serve", "--home", str(home), "--port", str(port),
        "--serving.provider", "cpu", "--serving.precision", precision,
    ]  # fmt: skip
