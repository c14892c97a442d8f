"""`lifelist monitoring`: Prometheus beside a server, the boards, and the files for containers."""

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from parts_operator import Server, serving
from parts_prometheus import alerts, needs_prometheus, needs_promtool, promtool
from parts_server import LIFELIST, eventually, free_port

from lifelist.deploy.cli import main
from lifelist.monitoring.boards import boards
from lifelist.serving import keys


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    with serving(home) as made:
        yield made


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    return keys.add(server.settings.keys_file, "prometheus", ["read"])


def started(server_port: str, home: Path, key: str = "", **environment: str) -> "tuple[subprocess.Popen[str], str]":
    """`lifelist monitoring up` and the URL at which its Prometheus will be."""
    port = free_port()
    flags = ["--prometheus-port", str(port), "--every", "0.5", "--home", str(home), "--port", server_port]
    process = subprocess.Popen(
        [*LIFELIST, "monitoring", "up", *flags, *(["--api-key", key] if key else [])],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, f"http://127.0.0.1:{port}"


def asked(url: str, path: str, **parameters: str) -> Any:
    return httpx.get(f"{url}{path}", params=parameters, trust_env=False, timeout=5).json()["data"]


@needs_prometheus
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_command_brings_up_prometheus_and_ends_it(
    server: Server, key: str, tmp_path: Path, number: signal.Signals
) -> None:
    process, url = started(server.port, tmp_path, key)
    try:
        lines: list[str] = []
        assert process.stdout is not None
        while "ctrl-C ends it" not in "".join(lines[-1:]):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read() if process.stderr else ""
        said = "".join(lines)
        assert f"Prometheus is ready at {url}" in said
        assert f"scrapes    {server.url}/metrics\n" in said  # and it answers
        assert eventually(lambda: asked(url, "/api/v1/query", query="lifelist_replicas_reporting")["result"])
        loaded = {rule["name"] for group in asked(url, "/api/v1/rules")["groups"] for rule in group["rules"]}
        assert set(alerts()) <= loaded
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/-/ready", trust_env=False)
    file = tmp_path / "prometheus" / "key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in (tmp_path / "prometheus" / "prometheus.yaml").read_text()


@needs_prometheus
def test_a_server_that_is_not_there_yet_is_said_to_be_none(tmp_path: Path) -> None:
    process, _ = started(str(free_port()), tmp_path)
    assert process.stdout is not None
    line = next(line for line in process.stdout if "scrapes" in line)
    assert "does not answer yet" in line
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_without_prometheus_it_says_what_to_do(tmp_path: Path) -> None:
    process, _ = started("8000", tmp_path, PATH=str(tmp_path))
    assert process.wait(60) == 1
    assert process.stderr is not None
    said = process.stderr.read()
    assert "there is no prometheus on PATH. Install it" in said
    assert "lifelist monitoring compose FOLDER" in said
    assert "Traceback" not in said


@needs_prometheus
def test_a_port_in_use_is_named_with_a_flag_for_another(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitoring", "up", "--prometheus-port", server.port, "--home", str(tmp_path)]) == 1
    assert "lifelist monitoring up --prometheus-port" in capsys.readouterr().err


@needs_prometheus
def test_a_prometheus_that_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prometheus").mkdir()
    (tmp_path / "prometheus" / "data").write_text("not a folder")
    flags = ["--prometheus-port", str(free_port()), "--home", str(tmp_path)]
    assert main(["monitoring", "up", *flags]) == 1
    said = capsys.readouterr().err
    assert "Prometheus ended at once" in said
    assert "not a directory" in said


def test_the_boards_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitoring", "boards", str(tmp_path / "made"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["boards"]
    assert [json.loads(Path(path).read_text()) for path in made] == list(boards().values())


def test_the_compose_file_finds_all_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = "https://example.org/runbook.md"
    flags = ["--port", "8123", "--api-key", "lifelist_secret", "--runbook", there]
    assert main(["monitoring", "compose", str(tmp_path), *flags]) == 0
    assert "docker compose" in capsys.readouterr().out
    composed = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]
    assert set(composed) == {"prometheus", "grafana"}
    assert composed["prometheus"]["user"] == f"{os.getuid()}:{os.getgid()}"
    mounts = [volume.split(":")[0] for service in composed.values() for volume in service["volumes"]]
    for place in (mount for mount in mounts if mount.startswith(".")):
        assert (tmp_path / place).exists(), place
    assert {path.stem for path in (tmp_path / "boards").iterdir()} == set(boards())
    provided = yaml.safe_load((tmp_path / "dashboards.yaml").read_text())["providers"][0]["options"]["path"]
    assert any(volume.split(":")[1] == provided for volume in composed["grafana"]["volumes"])
    said = yaml.safe_load((tmp_path / "prometheus.yaml").read_text())
    assert said["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:8123"]}]
    assert (tmp_path / "key").read_text() == "lifelist_secret"
    rules = (tmp_path / "rules.yaml").read_text()
    assert f"runbook_url: {there}#lifelistnoreplica" in rules
    assert "docs/monitoring/runbook.md#" not in rules


@needs_promtool
@pytest.mark.parametrize("key", ["", "lifelist_secret"])
def test_prometheus_takes_the_configuration(key: str, tmp_path: Path) -> None:
    assert main(["monitoring", "compose", str(tmp_path), *(["--api-key", key] if key else [])]) == 0
    checked = promtool("check", "config", tmp_path / "prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (tmp_path / "key").exists() == bool(key)
