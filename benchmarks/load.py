"""Closed-loop load from wrk, a compiled generator: each client sends its next request when the last was answered."""

import contextlib
import json
import math
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

# Reads every answer: one of a status other than 200, or of classes other than the expected, is wrong. A pattern
# captures the id of one class, or a list of ids.
SCRIPT = r"""
local function read(name) local f = io.open(name, "rb"); local all = f:read("*a"); f:close(); return all end
local folder, count = os.getenv("LOAD_BODIES"), tonumber(os.getenv("LOAD_COUNT"))
wrk.method, wrk.body = "POST", read(folder .. "/0")
if count > 1 then
  local requests, number = {}, 0
  function init(args)
    for k = 1, count do requests[k] = wrk.format(nil, nil, nil, read(folder .. "/" .. k - 1)) end
  end
  function request() number = number % count + 1; return requests[number] end
end
local pattern, expected = os.getenv("LOAD_PATTERN"), os.getenv("LOAD_EXPECTED")
local rest_ms = tonumber(os.getenv("LOAD_REST_MS"))
local threads = {}
wrong, first = 0, ""
local function is_right(status, body)
  if status ~= 200 then return false end
  if expected == "any" then return true end
  local found = {}
  for ids in string.gmatch(body, pattern) do
    for id in string.gmatch(ids, "%d+") do found[#found + 1] = id end
  end
  return table.concat(found, ",") == expected
end
function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
  if is_right(status, body) then return end
  if wrong == 0 then first = status .. " " .. string.gsub(string.sub(body, 1, 300), "[^\32-\126]", "?") end
  wrong = wrong + 1
end
if rest_ms > 0 then function delay() return math.random(0, 2 * rest_ms) end end
function done(summary, latency)
  local wrong, first = 0, ""
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
    if first == "" then first = thread:get("first") end
  end
  local e = summary.errors
  io.write(string.format('\nFIRST %s\nJSON {"requests": %d, "microseconds": %d, "wrong": %d, ' ..
    '"broken": %d, "p50": %f, "p99": %f}\n',
    first, summary.requests, summary.duration, wrong, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one stretch of load found."""

    requests: int  # that were answered
    right: int  # of them, by status 200 and the classes that were expected
    seconds: float
    errors: int  # the other answers, and connections that failed
    p50_ms: float
    p99_ms: float
    generator_cores: float  # that wrk itself kept busy
    first_error: str = ""  # status and the beginning of the body of the first answer that was not right

    @property
    def requests_per_second(self) -> float:
        """Right answers each second: an error may be quick, and counts for nothing."""
        return self.right / self.seconds


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
    others: Sequence[bytes] = (),
) -> Load:
    """Send `body` from so many clients at once, each on a connection of its own, for so many seconds (whole ones).

    pattern: a Lua pattern that captures the class ids in an answer, each alone or several in a list; expected: those
    that are right, in their order; None: any. rate: about so many requests a second, each client resting between two;
    None: as many as are answered. until: asked every now and then; as soon as it says so, the load ends before its
    time. others: bodies that are sent in turn with the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        script, bodies = Path(folder, "load.lua"), (body, *others)
        script.write_text(SCRIPT)
        for number, data in enumerate(bodies):
            Path(folder, str(number)).write_bytes(data)
        lines = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        how = ["-t1", f"-c{clients}", f"-d{math.ceil(seconds)}s", "--timeout", "30s", "-s", str(script)]
        command = [wrk(), *how, *lines, url]
        environment = {
            "LOAD_BODIES": folder,
            "LOAD_COUNT": str(len(bodies)),
            "LOAD_PATTERN": pattern,
            "LOAD_REST_MS": f"{1000 * clients / rate if rate else 0:.0f}",
            "LOAD_EXPECTED": "any" if expected is None else ",".join(map(str, expected)),
        }
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = _told(command, environment, until)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(_line(told, "JSON "))
    took = found["microseconds"] / 1e6
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(
        requests=found["requests"],
        right=found["requests"] - found["wrong"],
        seconds=took,
        errors=found["wrong"] + found["broken"],
        p50_ms=found["p50"] / 1000,
        p99_ms=found["p99"] / 1000,
        generator_cores=busy / took,
        first_error=_line(told, "FIRST "),
    )


def _line(told: str, head: str) -> str:
    """What the script wrote behind a word."""
    return next(line for line in told.splitlines() if line.startswith(head)).removeprefix(head)


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
