"""Prometheus beside a running server: its files, and the process itself; and the files for containers."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from lifelist.deploy import ground
from lifelist.deploy.settings import Settings
from lifelist.exporter.errors import Failed
from lifelist.monitoring.boards import boards

FOLDER = "prometheus"  # in home
CONFIGURATION, RULES, KEY = "prometheus.yaml", "rules.yaml", "key"
FOR_CONTAINERS = ("compose.yaml", "datasources.yaml", "dashboards.yaml")
RUNBOOK = "docs/monitoring/runbook.md"
HOST = "127.0.0.1"
START_S, END_S = 60, 20
JOB = "lifelist"


def write_boards(folder: Path) -> list[Path]:
    """The four boards as JSON files, as Grafana imports and provisions them; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, board in boards().items():
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n")
    return made


def write_prometheus(folder: Path, settings: Settings, every_s: float, runbook: str = RUNBOOK) -> Path:
    """Prometheus's configuration for the server of `settings`, and the rules beside it; where the first is.

    The API key, if the settings have one, is in a file of its own that only its owner reads. runbook: where alerts say
    that docs/monitoring/runbook.md is found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = urlsplit(settings.url)
    scraped: dict[str, Any] = {
        "job_name": JOB,
        "scheme": url.scheme,
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [url.netloc]}],
    }
    key = folder / KEY
    key.unlink(missing_ok=True)
    if secret := settings.api_key.get_secret_value():
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret)
        scraped["authorization"] = {"credentials_file": KEY}
    interval = f"{round(1000 * every_s)}ms"
    made = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [RULES],
        "scrape_configs": [scraped],
    }
    (folder / RULES).write_text(_data(RULES).replace(RUNBOOK, runbook))
    (folder / CONFIGURATION).write_text(json.dumps(made, indent=2) + "\n")  # JSON is YAML
    return folder / CONFIGURATION


def write_compose(folder: Path, settings: Settings, every_s: float, runbook: str = RUNBOOK) -> list[Path]:
    """All that `docker compose up` needs for Prometheus and Grafana with the boards; where it is."""
    made = [write_prometheus(folder, settings, every_s, runbook), folder / RULES, *write_boards(folder / "boards")]
    (folder / "data").mkdir(exist_ok=True)
    for name in FOR_CONTAINERS:
        (folder / name).write_text(_data(name).replace("UID:GID", f"{os.getuid()}:{os.getgid()}"))
        made.append(folder / name)
    return made


def _data(name: str) -> str:
    return files("lifelist.deploy").joinpath("monitoring", name).read_text()


def executable() -> str:
    """Where Prometheus is. Failed, with what to do, if it is nowhere."""
    if (found := shutil.which("prometheus")) is None:
        raise Failed(
            "there is no prometheus on PATH. Install it (Debian and Ubuntu: apt install prometheus), or let containers "
            "do it: lifelist monitoring compose FOLDER"
        )
    return found


@contextmanager
def running(
    settings: Settings, port: int, every_s: float, runbook: str = RUNBOOK
) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """(URL, process) of a Prometheus that is ready and scrapes the server of `settings`, for the time of a block.

    What it collected is kept in home. Failed if there is no Prometheus or it does not come up; Conflict if the port is
    in use. Whatever happens, it has ended when the block has.
    """
    program = executable()
    ground.check_port(HOST, port, "--prometheus-port", "lifelist monitoring up")
    folder = settings.home / FOLDER
    configuration = write_prometheus(folder, settings, every_s, runbook)
    log, url = folder / "prometheus.log", f"http://{HOST}:{port}"
    arguments = [
        program,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=30d",
        f"--web.listen-address={HOST}:{port}",
    ]
    with log.open("wb") as out:  # in a session of its own: ctrl-C is for this process, which passes it on in its way
        process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait(url, process, log)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_scraped(url: str, within_s: float) -> bool:
    """Whether the Prometheus at `url` reached the server by then."""
    deadline = time.monotonic() + within_s
    with httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
        while True:
            found = http.get("/api/v1/query", params={"query": f'up{{job="{JOB}"}}'}).json()["data"]["result"]
            if found and found[0]["value"][1] == "1":
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines()
                said = ([line for line in lines if " err=" in line] or lines or ["nothing"])[-1]
                status = process.returncode
                raise Failed(f"Prometheus ended at once, with status {status} (see {log}). It said: {said}")
            try:
                if http.get("/-/ready").status_code == 200:
                    return
            except httpx.TransportError:  # it does not listen yet
                pass
            time.sleep(0.1)
    raise Failed(f"Prometheus was not ready within {START_S} s; see {log}")
