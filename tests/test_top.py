"""`lifelist top`: one frame, as text and as JSON, and live in a terminal."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts_dashboard import Asking, a_day
from parts_operator import Server, serving
from parts_server import LIFELIST

from lifelist.client.answers import Doubt
from lifelist.client.blocking import Client
from lifelist.deploy import cli_top
from lifelist.deploy.cli import main
from lifelist.deploy.pulse import Pulse, quantile


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("home")) as made:
        a_day(made)
        yield made


def metrics(requests: dict[str, int], buckets: dict[str, int], replica: str = "one") -> str:
    lines = [
        "# TYPE lifelist_requests counter",
        *(f'lifelist_requests_total{{code="{c}",replica="{replica}"}} {n}' for c, n in requests.items()),
    ]
    lines += ["# TYPE lifelist_request_duration_seconds histogram"]
    lines += [
        f'lifelist_request_duration_seconds_bucket{{le="{le}",replica="{replica}"}} {n}' for le, n in buckets.items()
    ]
    return "\n".join([*lines, ""])


def test_traffic_is_what_the_counters_gained_whatever_replicas_come_and_go() -> None:
    pulse = Pulse()
    assert pulse.look(metrics({"200": 1000}, {"0.1": 900, "+Inf": 1000}), 10.0) is None
    now = pulse.look(metrics({"200": 1090, "400": 6, "503": 4}, {"0.1": 990, "+Inf": 1100}), 20.0)
    assert now is not None
    assert (now.rate, now.errors, now.refused) == (10.0, 0.04, 0.06)
    assert now.p50 == pytest.approx(0.1 * 50 / 90)
    assert now.p99 == pytest.approx(0.1)  # in the last bucket, which has no upper end
    again = pulse.look(metrics({"200": 30}, {"0.1": 30, "+Inf": 30}), 30.0)  # it was started anew
    assert again is not None
    assert again.rate == 3.0
    quiet = pulse.look(metrics({"200": 30}, {"0.1": 30, "+Inf": 30}), 40.0)
    assert quiet is not None
    assert (quiet.rate, quiet.errors, quiet.p50, quiet.p99) == (0.0, 0.0, None, None)


def test_quantiles_are_read_by_straight_lines() -> None:
    assert quantile(0.5, {0.1: 10, 0.2: 30, float("inf"): 30}) == pytest.approx(0.125)
    assert quantile(0.99, {}) is None


def test_a_frame_has_what_the_api_says(site: Server, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--port", site.port, "--home", str(site.settings.home)]
    with Asking(site):
        assert main(["top", "--once", *where]) == 0
        text = capsys.readouterr().out
        assert main(["top", "--json", *where]) == 0
        found = json.loads(capsys.readouterr().out)
    live = site.workshop.live
    assert live is not None
    with Client(site.url) as client:
        figures = [one for one in client.quality()["figures"] if one["version"] == live.version]
    assert f"version {live.version} is live: 10 classes" in text
    for one in figures:
        if one["group"] in cli_top.GROUPS and one["ratio"] is not None:
            assert f"{one['ratio']:.1%} ({one['low']:.1%} … {one['high']:.1%}), n {one['images']:,}" in text
    assert "drift" in text
    assert "main 7/20" in text
    assert found["traffic"]["rate"] > 5
    assert found["traffic"]["errors"] == 0


def test_a_frame_says_when_the_estimate_of_what_is_live_is_to_be_doubted() -> None:
    doubts: list[Doubt] = [{"version": 2, "message": "the audit is apart"}, {"version": 1, "message": "it was then"}]
    found = cli_top.Standing("", "24h", {}, None, [], doubts, [], [], [], [])
    found.live = {"version": "2", "answer": "linear", "provider": "cpu", "precision": "fp32", "classes": "3"}
    text = "\n".join(cli_top.frame(found, [], 100))
    assert "doubt the estimate: the audit is apart" in text
    assert "it was then" not in text


def test_it_goes_on_in_a_terminal_of_any_size_and_ends_by_ctrl_c(site: Server, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    arguments = [*LIFELIST, "top", "--every", "0.5", "--port", site.port, "--home", str(site.settings.home)]
    process = subprocess.Popen(
        arguments,
        stdout=child,
        stderr=child,
        stdin=child,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "60", "LINES": "20"},
    )
    os.close(child)
    seen, deadline = b"", time.monotonic() + 60
    while seen.count(cli_top.HOME.encode()) < 3:
        assert time.monotonic() < deadline, seen
        seen += os.read(parent, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while more := os.read(parent, 65536):
            seen += more
    except OSError:  # the other end is closed: it ended
        pass
    assert process.wait(20) == 0
    os.close(parent)
    text = seen.decode()
    assert text.endswith(cli_top.LEAVE)
    second = text.split(cli_top.HOME)[2].replace(cli_top.REST_OF_LINE, "").split("\r\n")
    assert len(second) == 20
    assert all(len(cli_top.COLOUR.sub("", line).replace(cli_top.REST, "")) <= 60 for line in second)
    assert "requests/s" in text
