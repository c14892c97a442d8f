"""`lifelist demo`: a served classifier learns new classes under traffic, told in the commands a user would type."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from lifelist.client.blocking import Client
from lifelist.deploy import ground
from lifelist.deploy.cli_increments import follow
from lifelist.deploy.report import Increment, Phase, Step, accuracy_table, picture, traffic_table, waiting_table
from lifelist.deploy.sources import Resolved, as_toml
from lifelist.deploy.story import Story, digits, own_images
from lifelist.deploy.terminal import progress
from lifelist.deploy.traffic import Sent, Traffic
from lifelist.exporter.errors import Conflict, Failed
from lifelist.exporter.registry import Registry

QUIET_S = 3.0  # without an update, so that there is something to compare with
READY = "listening at"  # what `lifelist serve` says once it answers
FOR_DIGITS = {"training.image_size": 16, "training.flip": False, "training.memory_total": 200}  # never mirrored
MARK = ".made-by-lifelist-demo"  # only a folder that has it is ever replaced


def run(resolved: Resolved, *, keep: bool, data: Path | None) -> int:
    """Play the whole story in ./lifelist-demo; 0 only if no request failed and no answer was inconsistent."""
    began, settings = time.monotonic(), resolved.settings
    ground.check_port(settings.serving.host, settings.serving.port)
    folder = _fresh_folder(Path("lifelist-demo"))
    say(f"Everything this demo makes is in {folder}/.")
    story = digits(folder) if data is None else own_images(data, folder, settings)
    _write_settings(folder, resolved, digits=data is None)
    lifelist = [sys.executable, "-m", "lifelist.deploy.cli", "--config", str(folder / "lifelist.toml")]

    chapter(f"1. A base version on {len(story.base)} classes: {', '.join(story.base)}")
    base_folder = folder / "base"
    base_folder.mkdir()
    for name in story.base:
        (base_folder / name).symlink_to((story.learn / name).resolve(), target_is_directory=True)
    command(lifelist, "base", str(base_folder))

    chapter("2. Ray Serve, and a client that sends held-out images all the time and checks every answer")
    registry = Registry(str(folder / "data" / "registry"))
    url = settings.url
    with _Server(lifelist, folder) as server, Client(url) as client, Traffic(url, registry, story.held_out) as traffic:
        phases = [Phase("before", time.time(), time.time() + QUIET_S)]
        time.sleep(QUIET_S)

        base = client.increments()[-1]["id"]

        chapter(f"3. New classes through the HTTP API: {', '.join(story.arriving[0])}")
        first = _learn_by_http(client, story, traffic, phases)

        chapter(f"4. New classes through the command line: {', '.join(story.arriving[1])}")
        second = _learn_by_command(lifelist, client, story, traffic, phases)

        chapter("5. Feedback: true labels for some of the answers, and the live accuracy that results")
        _send_feedback(client, traffic)
        traffic.stop()

        chapter("6. What came of it")
        from lifelist.deploy.measure import measure  # with torch: seconds that the story does without until here

        learned = {base: 1, first.rollout: first.version, second.rollout: second.version}
        steps = measure(registry, folder / "data" / "work", story, learned)
        problems = _conclude(folder, story, steps, traffic.sent, phases, [first.waiting, second.waiting])
        say(f"{time.monotonic() - began:.0f} seconds in all.")
        if keep:
            server.keep = True
            _say_what_to_try(lifelist, story, url, server)
    return 1 if problems else 0


# ------------------------------------------------------------------------------------------------------- telling


def say(text: str) -> None:
    """One paragraph of the story."""
    click.echo(text)


def chapter(title: str) -> None:
    """A heading."""
    click.echo()
    click.secho(title, bold=True)


def command(lifelist: Sequence[str], *arguments: str) -> None:
    """Show a command as the user would type it, run it, and let it speak for itself."""
    click.secho("  $ lifelist " + shlex.join(arguments), fg="cyan")
    if code := subprocess.run([*lifelist, *arguments], env=_environment()).returncode:
        raise Failed(f"`lifelist {shlex.join(arguments)}` ended with exit code {code}; what it said is above")


def _environment() -> dict[str, str]:
    """Without LIFELIST_*: the demo's commands go by its own settings file alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LIFELIST_")}


# --------------------------------------------------------------------------------------------------------- folder


def _fresh_folder(folder: Path) -> Path:
    if folder.exists():
        if not (folder / MARK).exists():
            raise Conflict(f"{folder}/ exists and was not made by this demo; move it away, or run the demo elsewhere")
        with ground.lock(folder / "data"):  # Conflict if an earlier demo's server is still there
            pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / MARK).touch()
    return folder


def _write_settings(folder: Path, resolved: Resolved, *, digits: bool) -> None:
    """The settings file of the demo's commands: what was given, and where that says nothing, what suits the digits.

    Over what was given go the places where things are kept, all in `folder`, and that all images are: the contrast with
    fine-tuning at the end needs them. What was given and is not followed is told.
    """
    own = {"home": str(folder / "data"), "registry": "", "database": "", "examples.keep": True}
    given = resolved.given
    if lost := [name for name, value in own.items() if given.get(name, value) != value]:
        say(f"It keeps everything in {folder}/, so these settings are not followed: {', '.join(lost)}.")
    values = (FOR_DIGITS if digits else {}) | given | own
    (folder / "lifelist.toml").write_text(as_toml(values), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- server


class _Server:
    """`lifelist serve` as a process of its own, its messages in server.log; left, it ends as ctrl-C would end it."""

    def __init__(self, lifelist: Sequence[str], folder: Path) -> None:
        self.arguments, self.log, self.keep = [*lifelist, "serve"], folder / "server.log", False

    def __enter__(self) -> Self:
        click.secho("  $ lifelist serve", fg="cyan")
        with self.log.open("wb") as out:  # in a session of its own, so that ctrl-C reaches the demo alone
            self.process = subprocess.Popen(
                self.arguments, env=_environment(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.keep:
            self._stop()

    def _wait_until_ready(self, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while READY not in (text := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the server did not start; its last words:\n{text[-2000:]}")
            time.sleep(0.2)
        say("  " + text.strip().replace("\n", "\n  "))

    def _stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(90)


# ------------------------------------------------------------------------------------------------------- learning


@dataclass(frozen=True, slots=True)
class Learned:
    """One increment of the story, done."""

    version: int  # the trained version that went live
    rollout: int
    waiting: Increment


def _learn_by_http(client: Client, story: Story, traffic: Traffic, phases: list[Phase]) -> Learned:
    names = story.arriving[0]
    posted = time.time()
    for name in names:
        began = time.time()
        files = sorted((story.learn / name).iterdir())
        click.secho(f"  POST /v1/examples  class={name}  {len(files)} images", fg="cyan")
        found = client.add_examples(name, files)
        phases.append(Phase("enrolling", began, time.time()))
        say(f"    {found['accepted']} accepted; answerable by nearest class mean in version {found['version']}")
    click.secho("  POST /v1/increments  {}", fg="cyan")
    rollout = client.start_increment()["id"]
    follow(client, rollout, as_json=False)
    return _learned(client, rollout, names, posted, traffic, phases)


def _learn_by_command(
    lifelist: Sequence[str], client: Client, story: Story, traffic: Traffic, phases: list[Phase]
) -> Learned:
    names = story.arriving[1]
    posted = time.time()
    command(lifelist, "examples", "add", *(str(story.learn / name) for name in names))
    phases.append(Phase("enrolling", posted, time.time()))
    command(lifelist, "increment", "start", "--watch")
    newest = max(i["id"] for i in client.increments())
    return _learned(client, newest, names, posted, traffic, phases)


def _learned(
    client: Client, rollout: int, names: tuple[str, ...], posted: float, traffic: Traffic, phases: list[Phase]
) -> Learned:
    """What became of the increment, and how long everything took."""
    found = client.increment(rollout)
    version = found["version"]
    if found["state"] != "done" or version is None:
        raise Failed(f"increment {rollout} ended as {found['state']}: {found['reason']}")
    times = {step["state"]: (_unix(step["began"]), _unix(step["ended"])) for step in found["steps"] if step["ended"]}
    phases += [Phase("training", *times["train"]), Phase("swapping", *times["swap"])]
    swapped_s = times["swap"][1] - posted
    say(f"  version {version} is live, {swapped_s:.1f} s after the first example was posted")
    time.sleep(QUIET_S)  # for the client to see it answer
    first_right = {name: _first_right(traffic.sent, name, posted) for name in names}
    return Learned(version, rollout, Increment(names, posted, first_right, swapped_s))


def _first_right(sent: Sequence[Sent], name: str, posted: float) -> float | None:
    ends = [s.began + s.seconds for s in sent if s.truth == name and s.right]
    return min(ends) - posted if ends else None


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def _send_feedback(client: Client, traffic: Traffic, most: int = 200) -> None:
    """The true labels of the latest answers, as people would send them some time later."""
    latest = [(s.prediction_id, s.truth) for s in list(traffic.sent) if s.prediction_id is not None][-most:]
    right = 0
    with progress("feedback", len(latest), "label") as bar:
        for prediction_id, truth in latest:
            right += client.feedback(prediction_id, truth)["correct"]
            bar.by(1)
    say(f"  sent {len(latest)} true labels, {right} confirmed the answer; the live accuracy, as /metrics has it:")
    for line in client.metrics().splitlines():
        if line.startswith("lifelist_accuracy"):
            say("    " + line)


# ----------------------------------------------------------------------------------------------------- concluding


def _conclude(
    folder: Path,
    story: Story,
    steps: Sequence[Step],
    sent: Sequence[Sent],
    phases: Sequence[Phase],
    waiting: Sequence[Increment],
) -> list[str]:
    """Print the tables, draw the picture, and name every request that failed or was answered inconsistently."""
    for table in (accuracy_table(steps), traffic_table(sent, phases), waiting_table(waiting)):
        say("\n" + table)
    path = folder / "demo.png"
    learned = sum(len(names) for names in story.arriving)
    failed = [s.failure for s in sent if s.failure]
    inconsistent = [s.inconsistency for s in sent if s.inconsistency]
    if not sent:
        failed.append("none was sent")
    requests = f"{len(sent):,} requests; {len(failed)} failed, {len(inconsistent)} inconsistent"
    title = f"{learned} classes learned under {requests}"
    picture(path, steps, sent, phases, title)
    say(f"\nThe picture: {path}")
    for what, found in (("failed", failed), ("was answered inconsistently", inconsistent)):
        for problem in found[:5]:
            click.secho(f"A request {what}: {problem}", fg="red")
    if not failed and not inconsistent:
        click.secho(f"{title}.", fg="green", bold=True)
    return [*failed, *inconsistent]


def _say_what_to_try(lifelist: Sequence[str], story: Story, url: str, server: _Server) -> None:
    """For the user with whom the server is left."""
    name, image = story.base[0], sorted((story.learn / story.base[0]).iterdir())[0]
    shown = shlex.join([str(Path(sys.executable).with_name("lifelist")), *lifelist[3:]])
    say(f"\nThe server goes on at {url}. To try:\n")
    for line in (
        f"curl --data-binary @{image} -H 'Content-Type: image/png' '{url}/v1/classify?top_k=3'   # {name}",
        f"{shown} classify {image}",
        f"{shown} versions list",
        f"{shown} rollback",
        f"{url}/docs and {url}/metrics in a browser",
        f"kill -INT {server.process.pid}   # ends it",
    ):
        say("  " + line)
