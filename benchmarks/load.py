"""Closed-loop load from wrk, a compiled generator: each client sends its next request when the last was answered."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lifelist.exporter.errors import Failed, Missing

LOOK_S = 0.25  # between two looks whether a load is to end

# Reads every answer: a status other than 200, or classes other than the expected, count as wrong.
SCRIPT = r"""
local function read(name) local f = io.open(name, "rb"); local all = f:read("*a"); f:close(); return all end
wrk.method, wrk.body = "POST", read(os.getenv("LOAD_BODY"))
local pattern, expected = os.getenv("LOAD_PATTERN"), os.getenv("LOAD_EXPECTED")
local rest_ms = tonumber(os.getenv("LOAD_REST_MS"))
local threads = {}
wrong, failed = 0, 0
function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
  if status ~= 200 then failed = failed + 1; return end
  local found = {}
  for id in string.gmatch(body, pattern) do found[#found + 1] = id end
  if expected ~= "any" and table.concat(found, ",") ~= expected then wrong = wrong + 1 end
end
if rest_ms > 0 then function delay() return math.random(0, 2 * rest_ms) end end
function done(summary, latency)
  local wrong, failed = 0, 0
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("wrong"); failed = failed + thread:get("failed") end
  local e = summary.errors
  io.write(string.format(
    '\nJSON {"requests": %d, "microseconds": %d, "wrong": %d, "failed": %d, ' ..
    '"socket_errors": %d, "p50": %f, "p99": %f}\n',
    summary.requests, summary.duration, wrong, failed, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one stretch of load found."""

    requests: int  # that were answered
    seconds: float
    errors: int  # answers of another status or class than the right one, and connections that failed
    p50_ms: float
    p99_ms: float
    generator_cores: float  # that wrk itself kept busy

    @property
    def requests_per_second(self) -> float:
        """Answers each second, right ones and others."""
        return self.requests / self.seconds


def wrk() -> str:
    """The path of the load generator. Missing, with what to do, if there is none."""
    if (found := shutil.which("wrk")) is None:
        raise Missing("the load comes from wrk, which is not on PATH; install it: apt-get install wrk")
    return found


def run(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    clients: int,
    seconds: float,
    pattern: str = "",
    expected: Sequence[int] | None = None,
    rate: float | None = None,
    until: Callable[[], bool] | None = None,
) -> Load:
    """Send `body` from so many clients at once, each on a connection of its own, for so many seconds.

    pattern: a Lua pattern that captures the class ids in an answer; expected: those that are right, in their order;
    None: any. rate: about so many requests a second, each client resting between two; None: as many as are answered.
    until: asked every now and then; as soon as it says so, the load ends before its time.
    """
    with tempfile.TemporaryDirectory() as folder:
        script, file = Path(folder, "load.lua"), Path(folder, "body")
        script.write_text(SCRIPT)
        file.write_bytes(body)
        lines = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        command = [wrk(), "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), *lines, url]
        environment = {
            "LOAD_BODY": str(file),
            "LOAD_PATTERN": pattern,
            "LOAD_REST_MS": f"{1000 * clients / rate if rate else 0:.0f}",
            "LOAD_EXPECTED": "any" if expected is None else ",".join(map(str, expected)),
        }
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = _told(command, environment, until)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next(line for line in told.splitlines() if line.startswith("JSON "))
    found = json.loads(line.removeprefix("JSON "))
    took = found["microseconds"] / 1e6
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(
        requests=found["requests"],
        seconds=took,
        errors=found["wrong"] + found["failed"] + found["socket_errors"],
        p50_ms=found["p50"] / 1000,
        p99_ms=found["p99"] / 1000,
        generator_cores=busy / took,
    )


def _told(command: Sequence[str], environment: Mapping[str, str], until: Callable[[], bool] | None) -> str:
    """What the generator prints. Interrupted, it still sums up what it has seen."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment)) as process:
        try:
            while until is not None and process.poll() is None and not until():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
            if process.poll() is None and until is not None:
                process.send_signal(signal.SIGINT)
            out, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise Failed(f"wrk ended with {process.returncode}: {out[-500:]}")
    return out
