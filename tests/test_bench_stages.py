"""Where the time of a query goes: what is timed inside the replica agrees with what is timed outside of it."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from lifelist.benchmarks import marks, models, stages, stages_report

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")
TENSOR, PNG = (case for case in stages.CASES if case.model == "resnet32")


@needs_wrk
def test_the_stages_of_a_query_add_up_to_its_latency() -> None:
    asked = stages.Asked(cases=[TENSOR, PNG], clients=[1, 8], repeats=1, seconds=1, idle_s=1, settle_s=0)
    facts = stages.measure(asked, print)
    assert [(cell["case"], cell["clients"]) for cell in facts["cells"]] == [
        (case.name, clients) for case in (TENSOR, PNG) for clients in (1, 8)
    ]
    for cell in facts["cells"]:
        found, latency = cell["stages_us"], cell["latency_us"]
        assert cell["errors"] == 0
        assert sum(found.values()) == pytest.approx(latency)
        # the whole is known from the rate alone, since each client asks again at once; some were unanswered at the end
        assert latency == pytest.approx(1e6 * cell["clients"] / cell["requests_per_second"], rel=0.02)
        # whatever is counted twice, or outside of where it belongs, makes what is left of the whole negative
        inside = {name: us for name, us in found.items() if name not in ("sockets", "proxy")}
        assert min(inside.values()) >= 0, inside
        assert found["sockets"] + found["proxy"] > 0
        assert 0.1 * latency < found["model"] < 0.95 * latency
        assert (found["decode"] > 5) == (cell["case"] == PNG.name)
        cores = cell["cores_us"]
        assert min(cores[who] for who in ("generator", "proxy", "loop", "lanes", "others")) > 1, cores
        assert cores["decoders"] < 5  # an image so little is decoded by the event loop
        assert cores["nobody"] > -0.05 * sum(cores.values())  # no more was spent than there is
    assert 0 < sum(facts["idle_cores"].values()) < 2


def test_marks_are_on_for_as_long_as_they_are_asked_for(tmp_path: Path) -> None:
    model = models.resnet32(tmp_path)
    with stages.served(model, "fp32") as server, httpx.Client(base_url=server.url, trust_env=False) as http:

        def ask() -> None:
            assert http.post("/v1/classify", content=model.files[0]).json()["images"][0]["classes"][0]["id"] == 0

        def told(query: str) -> Any:
            return http.get(f"{marks.PATH}?{query}").json()

        ask()
        assert told("")["queries"] == 0
        with server.marked() as inside:
            assert inside == {}
            ask()
            assert http.post("/v1/classify", content=b"no image").status_code == 400
            assert told("")["queries"] == 2
        assert inside["decode"] > 0
        assert inside["model"] > 0
        ask()
        assert told("off")["queries"] == 0


def cell(case: str, clients: int, model: float) -> dict[str, Any]:
    return {
        "case": case, "clients": clients, "latency_us": model + 13, "latency_spread_us": [model, model + 20],
        "requests_per_second": 1000.0, "unmarked_requests_per_second": 1010.0, "errors": 0,
        "stages_us": dict.fromkeys(stages.STAGES, 1.0) | {"model": model},
        "cores_us": dict.fromkeys(stages.WHO, 2.0) | {"lanes": model, "nobody": 7.0},
    }  # fmt: skip


FACTS: dict[str, Any] = {
    "cells": [cell("a tensor", 1, 1500), cell("a tensor", 32, 3000), cell("a file", 1, 50), cell("a file", 32, 60)],
    "idle_cores": {"raylet": 0.02, "gcs_server": 0.01},
    "repeats": 3,
    "seconds": 5.0,
    "machine": {"cores": 2, "processor": "Some CPU", "date": "2026-01-01"},
}


def test_the_page_shows_every_stage(tmp_path: Path) -> None:
    text = stages_report.page(FACTS, "stages.png", "lifelist bench stages")
    assert "| model: ONNX Runtime, for the whole batch | 1,500 | 50 |" in text
    assert "| latency | 3,013 | 73 |" in text
    assert "| all cores | 3,019 | 79 |" in text
    assert "| all | 0.030 |" in text
    assert "none of them failed" in text
    assert stages_report.line(FACTS) == {
        "beside_model_us": {"a tensor": 13, "a file": 13},
        "cores_beside_model_us": {"a tensor": 12, "a file": 12},
        "idle_cores": 0.03,
    }
    stages_report.shares_picture(tmp_path / "stages.png", FACTS)
    assert (tmp_path / "stages.png").stat().st_size > 5000
