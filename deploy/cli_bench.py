"""`lifelist bench`: the published experiments, and how fast this is, on this machine."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import Follower, following, json_option, note, result, table
from lifelist.exporter.errors import BadInput

if TYPE_CHECKING:
    from lifelist.benchmarks.protocols import Protocol


@click.group()
def bench() -> None:
    """Repeat published experiments, and measure."""


@bench.command()
@click.option("--protocol", "name", default="tiny", show_default=True, help="cifar100-10x10, digits, tiny …")
@click.option("--data", help="The data set: a folder per class, or Parquet. The digits need none.")
@click.option("--method", "methods", default="bic,finetune", show_default=True, help="One, or several: bic,icarl,wa.")
@click.option("--seeds", default="0", show_default=True, help="One, or several: 0,1,2.")
@click.option("--order", help="Class order: facil and icarl (both seed 1993), source, or seed:N.")
@click.option("--schedule", type=click.Choice(["short", "paper"]), default="short", show_default=True)
@click.option("--memory", help="2000: in all. 20-per-class: of each. Unless given, the protocol's.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where runs and pages go.")
@json_option
@click.pass_obj
def accuracy(
    resolved: Resolved,
    name: str,
    data: str | None,
    methods: str,
    seeds: str,
    order: str | None,
    schedule: Any,
    memory: str | None,
    jobs: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Run class-incremental protocols and put the results beside the published ones.

    Makes a page, two pictures and results.json. Stopped at any moment, the same command goes on from the last epoch;
    runs that have ended are not run again.
    """
    protocol = _protocol(name, memory)
    order = order or ("facil" if protocol.data == "cifar100" else "source")

    from lifelist.benchmarks import accuracy as experiments
    from lifelist.benchmarks import accuracy_report as report
    from lifelist.benchmarks.protocols import order as class_order

    class_order(order)
    asked = experiments.Asked(
        protocol=protocol,
        data=_data(protocol, data),
        methods=methods.split(","),
        seeds=_numbers("--seeds", seeds),
        order=order,
        schedule=schedule,
        device=resolved.settings.training.device,
    )
    place = folder or resolved.settings.home / "bench" / f"{protocol.name}-{order}-{schedule}"
    try:
        with following() as show:
            runs = experiments.run_all(asked, place / "runs", jobs=jobs, on_event=_Shown(show))
    except KeyboardInterrupt:
        note("the same command goes on from the last epoch")
        raise
    pictures = ("accuracy.png", "confusion.png")
    report.curves_picture(place / pictures[0], runs, protocol)
    report.confusion_picture(place / pictures[1], runs)
    (place / "README.md").write_text(report.page(runs, protocol, pictures))
    facts = report.facts(runs, protocol)
    (place / "results.json").write_text(json.dumps(facts, indent=1))
    lines = []
    for each in report.tables(runs, protocol):
        lines += [each.heading, table(each.titles, each.lines), ""]
    lines.append(f"* the method's own answer; accuracy in %. The page: {place / 'README.md'}")
    result(facts, "\n".join(lines), as_json)


@bench.command()
@click.option("--data", default="turned-digits", show_default=True, help="CIFAR-100 as Parquet, or other images.")
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True, help="Of the increment.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--image-size", type=click.IntRange(8), default=32, show_default=True, help="Pixels in each direction.")
@click.option("--workers", type=click.IntRange(0), help="Of the reference's DataLoader. Unless given, the best here.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the page and the picture go.")
@json_option
@click.pass_obj
def training(
    resolved: Resolved,
    data: str,
    epochs: int,
    repeats: int,
    image_size: int,
    workers: int | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Time an increment beside a plain loop as other libraries write it, and beside its own bare arithmetic.

    Makes a page, a picture and results.json. The last line is one of JSON; with --json, the only one.
    """
    from lifelist.benchmarks import training_report as report
    from lifelist.benchmarks import training_speed as speed

    asked = speed.Asked(
        data=data,
        epochs=epochs,
        repeats=repeats,
        image_size=image_size,
        workers=workers,
        device=resolved.settings.training.device,
    )
    facts = speed.measure(asked, note)
    place = folder or resolved.settings.home / "bench" / "training"
    place.mkdir(parents=True, exist_ok=True)
    report.phases_picture(place / "profile.png", facts)
    (place / "README.md").write_text(report.page(facts, "profile.png", _command(folder, data)))
    (place / "results.json").write_text(json.dumps(facts, indent=1))
    if not as_json:
        lines = [table(report.TITLES, report.rows(facts)), "", table(report.PHASE_TITLES, report.phase_rows(facts))]
        click.echo("\n".join([*lines, "", f"The page: {place / 'README.md'}", ""]))
    click.echo(json.dumps(facts["line"]))


@bench.command()
@click.option("--decoded-gb", type=click.FloatRange(0.01), default=0.75, show_default=True, help="Of images, decoded.")
@click.option(
    "--limit-gb", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Of memory; torch has half."
)
@click.option("--image-size", type=click.IntRange(8), default=128, show_default=True, help="Pixels in each direction.")
@click.option("--kind", type=click.Choice(["folder", "parquet"]), default="folder", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@json_option
def streaming(decoded_gb: float, limit_gb: float, image_size: int, kind: Any, repeats: int, as_json: bool) -> None:
    """Train on images that memory cannot hold, beside the same images in memory.

    Images are drawn. Shows, too, that a loader which holds them all dies of the limit. The last line is one of JSON.
    """
    from lifelist.benchmarks.streaming import Asked, measure

    asked = Asked(
        decoded_bytes=int(decoded_gb * 2**30),
        limit_bytes=int(limit_gb * 2**30),
        image_size=image_size,
        kind=kind,
        repeats=repeats,
    )
    facts = measure(asked, note)
    if not as_json:
        rows = [
            (name, f"{facts[key]:.2f}", f"{facts[key + '_from_disk']:.2f}")
            for name, key in (("epoch of training", "ratio"), ("features", "ratio_features"))
        ]
        click.echo(table(["images/s, streamed : in memory", "as it comes", "page cache emptied"], rows) + "\n")
    click.echo(json.dumps(facts))


@bench.command()
@click.option("--cases", default="", help="Only those whose name has this in it: resnet18, int8, learning …")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=3.0, show_default=True, help="Of load in each cell.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="LitServe, BentoML and MLServer too.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the page, and what it needs, go.")
@json_option
@click.pass_obj
def serving(
    resolved: Resolved, cases: str, repeats: int, seconds: float, peers: bool, folder: Path | None, as_json: bool
) -> None:
    """Load this server, the least that one can be, and others, beside ONNX Runtime alone; and this one while it learns.

    Makes a page, a picture and results.json. Takes about 45 minutes with peers and three repeats, of which learning
    takes seven. Peers are installed from the package index, each in an environment of its own. The load comes from wrk.
    The last line is one of JSON.
    """
    from lifelist.benchmarks import beside
    from lifelist.benchmarks import serving as speed
    from lifelist.benchmarks import serving_report as report
    from lifelist.benchmarks.contenders import BARE, LIFELIST
    from lifelist.benchmarks.peers import contenders

    place = (folder or resolved.settings.home / "bench" / "serving").absolute()  # servers run in folders of their own
    place.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in speed.CASES if cases in case.name]
    if not chosen and cases not in beside.CASE:
        names = [*(case.name for case in speed.CASES), beside.CASE]
        raise BadInput(f"no case has {cases!r} in its name; there are {'; '.join(names)}")
    others = contenders(place / "environments", note) if peers and chosen else []
    asked = speed.Asked(
        contenders=[BARE, LIFELIST, *others], cases=chosen, repeats=repeats, seconds=seconds, folder=place / "models"
    )
    facts = speed.measure(asked, note)
    results = place / "results.json"
    results.write_text(json.dumps(facts, indent=1))  # before anything that may fail: it took half an hour
    if cases in beside.CASE:
        facts["beside"] = beside.measure(beside.Asked(repeats=repeats, seconds=4 * seconds), note)
        results.write_text(json.dumps(facts, indent=1))
    if chosen:
        report.rates_picture(place / "rates.png", facts)
    (place / "README.md").write_text(report.page(facts, "rates.png", _command(folder)))
    if not as_json:
        for case in facts["raw"]:
            click.echo(f"{case}\n{table(report.TITLES, report.rows(facts, case))}\n")
        if "beside" in facts:
            click.echo(f"{beside.CASE}\n{table(report.BESIDE_TITLES, report.beside_rows(facts))}\n")
        click.echo(f"The page: {place / 'README.md'}\n")
    click.echo(json.dumps(report.line(facts)))


@bench.command()
@click.option("--cases", default="", help="Only those whose name has this in it: resnet32, PNG, int8 …")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=5.0, show_default=True, help="Of each load.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the page and the picture go.")
@json_option
@click.pass_obj
def stages(resolved: Resolved, cases: str, repeats: int, seconds: float, folder: Path | None, as_json: bool) -> None:
    """Where the time of a query goes, from the generator through HAProxy and the replica and back, and the cores'.

    Makes a page, a picture and results.json. The load comes from wrk. The last line is one of JSON.
    """
    from lifelist.benchmarks import stages as by_stage
    from lifelist.benchmarks import stages_report as report

    chosen = [case for case in by_stage.CASES if cases in case.name]
    if not chosen:
        names = "; ".join(case.name for case in by_stage.CASES)
        raise BadInput(f"no case has {cases!r} in its name; there are {names}")
    place = (folder or resolved.settings.home / "bench" / "stages").absolute()
    place.mkdir(parents=True, exist_ok=True)
    facts = by_stage.measure(by_stage.Asked(cases=chosen, repeats=repeats, seconds=seconds), note)
    report.shares_picture(place / "stages.png", facts)
    (place / "README.md").write_text(report.page(facts, "stages.png", _command(folder)))
    (place / "results.json").write_text(json.dumps(facts, indent=1))
    if not as_json:
        for clients in sorted({cell["clients"] for cell in facts["cells"]}):
            click.echo(f"clients: {clients}, µs")
            click.echo(table(report.titles(facts, "stage"), report.stage_rows(facts, clients)) + "\n")
            click.echo(table(report.titles(facts, "who"), report.core_rows(facts, clients)) + "\n")
        click.echo(table(report.IDLE_TITLES, report.idle_rows(facts)) + f"\n\nThe page: {place / 'README.md'}\n")
    click.echo(json.dumps(report.line(facts)))


@bench.command()
@click.option("--swaps", type=click.IntRange(2), default=200, show_default=True, help="With each count of replicas.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True)
@click.option("--replicas", default="1,2", show_default=True, help="Counts of replicas.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the page and the picture go.")
@json_option
@click.pass_obj
def swap(resolved: Resolved, swaps: int, clients: int, replicas: str, folder: Path | None, as_json: bool) -> None:
    """Swap versions under load, and hold every answer against the version that it names.

    Makes a page, a picture and results.json. The last line is one of JSON.
    """
    from lifelist.benchmarks import swaps as under_load
    from lifelist.benchmarks import swaps_report as report

    asked = under_load.Asked(swaps=swaps, clients=clients, replicas=_numbers("--replicas", replicas))
    facts = under_load.measure(asked, note)
    place = folder or resolved.settings.home / "bench" / "swap"
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(json.dumps(facts, indent=1))
    report.picture(place / "swaps.png", facts)
    (place / "README.md").write_text(report.page(facts, "swaps.png", _command(folder)))
    if not as_json:
        click.echo(table(report.titles(facts), report.rows(facts)) + f"\n\nThe page: {place / 'README.md'}\n")
    click.echo(json.dumps(facts["line"]))


@bench.command(name="index")
@click.option("--dim", type=click.IntRange(1), default=64, show_default=True, help="Of an embedding.")
@click.option("--most", type=click.IntRange(10), default=1_000_000, show_default=True, help="Classes.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the page and the picture go.")
@json_option
@click.pass_obj
def index_(resolved: Resolved, dim: int, most: int, folder: Path | None, as_json: bool) -> None:
    """Measure the index of class means, and the last layer, from ten classes to a million.

    Makes a page, a picture and results.json. The last line is one of JSON.
    """
    from lifelist.benchmarks import index_report, index_size

    counts = [10**k for k in range(1, 7) if 10**k <= most]
    facts = index_size.measure(index_size.Asked(counts=counts, dim=dim), note)
    place = folder or resolved.settings.home / "bench" / "index"
    place.mkdir(parents=True, exist_ok=True)
    index_report.curves(place / "index.png", facts)
    (place / "README.md").write_text(index_report.page(facts, "index.png", _command(folder)))
    (place / "results.json").write_text(json.dumps(facts, indent=1))
    if not as_json:
        click.echo(table(index_report.TITLES, index_report.rows(facts)) + f"\n\nThe page: {place / 'README.md'}\n")
    click.echo(json.dumps({"chosen": facts["chosen"], "rows": facts["rows"]}))


@bench.command()
@click.option("--data", default="turned-digits", show_default=True, help="CIFAR-100 as Parquet, or other images.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Of the base.")
@click.option("--images", default="5,20,100", show_default=True, help="Of a class that is enrolled: counts.")
@click.option("--image-size", type=click.IntRange(8), default=32, show_default=True, help="Pixels in each direction.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the base, the page and the picture go.")
@json_option
@click.pass_obj
def newclasses(
    resolved: Resolved, data: str, epochs: int, images: str, image_size: int, folder: Path | None, as_json: bool
) -> None:
    """Leave a fifth of the classes out: are they told from known ones, and named once they are enrolled?

    Makes a page, a picture and results.json. Stopped at any moment, the same command goes on from the last epoch of the
    base. The last line is one of JSON.
    """
    from lifelist.benchmarks import newclasses as experiment
    from lifelist.benchmarks import newclasses_report as report

    asked = experiment.Asked(
        data=data,
        epochs=epochs,
        image_size=image_size,
        images=_numbers("--images", images),
        device=resolved.settings.training.device,
    )
    place = folder or resolved.settings.home / "bench" / "newclasses"
    place.mkdir(parents=True, exist_ok=True)
    with following() as show:
        facts = experiment.measure(asked, place, note, lambda event: show(event["kind"], event))
    report.picture(place / "newclasses.png", facts)
    (place / "README.md").write_text(report.page(facts, "newclasses.png", _command(folder, data)))
    (place / "results.json").write_text(json.dumps(facts, indent=1))
    if not as_json:
        parts = [table(report.UNKNOWN_TITLES, report.unknown_rows(facts))]
        parts += [table(report.ENROLLED_TITLES, report.enrolled_rows(facts)), f"The page: {place / 'README.md'}", ""]
        click.echo("\n\n".join(parts))
    click.echo(json.dumps(facts["line"]))


@bench.command()
@click.option("--data", default="turned-digits", show_default=True, help="CIFAR-100 as Parquet, or other images.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Of the base.")
@click.option("--image-size", type=click.IntRange(8), default=32, show_default=True, help="Pixels in each direction.")
@click.option("--cases", default="", help="Only scenarios whose name has this in it: noise, unseen, increment …")
@click.option("--windows", type=click.IntRange(1), default=200, show_default=True, help="In which nothing happens.")
@click.option("--oracle/--no-oracle", default=True, show_default=True, help="Estimates by NannyML too.")
@click.option("--load/--no-load", "loads", default=True, show_default=True, help="What watching costs a server.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of the load.")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Of each load.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the versions, the page and the picture go.")
@json_option
@click.pass_obj
def monitoring(
    resolved: Resolved,
    data: str,
    epochs: int,
    image_size: int,
    cases: str,
    windows: int,
    oracle: bool,
    loads: bool,
    repeats: int,
    seconds: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Let things go wrong that are known: is the right alarm raised, how soon, what else; how right is the estimate?

    Makes a page, a picture and results.json. Stopped at any moment, the same command goes on from the last epoch of the
    versions. NannyML is installed from the package index, in an environment of its own; the load comes from wrk. The
    last line is one of JSON.
    """
    from lifelist.benchmarks import monitoring as experiment
    from lifelist.benchmarks import monitoring_cost, monitoring_oracle
    from lifelist.benchmarks import monitoring_report as report
    from lifelist.deploy.store import Store
    from lifelist.deploy.trial import digits_home
    from lifelist.training.sources import encoded

    asked = experiment.Asked(
        data=data,
        epochs=epochs,
        image_size=image_size,
        cases=cases,
        windows=windows,
        device=resolved.settings.training.device,
    )
    place = (folder or resolved.settings.home / "bench" / "monitoring").absolute()
    place.mkdir(parents=True, exist_ok=True)
    with following() as show:
        facts, scores = experiment.measure(
            asked, place, lambda path: Store(f"sqlite:///{path}"), note, lambda event: show(event["kind"], event)
        )
    results = place / "results.json"
    results.write_text(json.dumps(facts, indent=1))  # before what may fail: a network, a load generator
    if oracle:
        facts["oracle"] = monitoring_oracle.compare(scores, place / "environments", note)
    if loads:
        files = [image.data for image in encoded("digits")][: monitoring_cost.IMAGES]
        with digits_home(resolved.settings, note) as home:
            facts["cost"] = monitoring_cost.measure(home, files, repeats, seconds, note)
    facts["line"] = experiment.line(facts)
    report.picture(place / "monitoring.png", facts)
    (place / "README.md").write_text(report.page(facts, "monitoring.png", _command(folder, data)))
    results.write_text(json.dumps(facts, indent=1))
    if not as_json:
        parts = [table(report.BAR_TITLES, report.bars(facts)), table(report.TITLES, report.rows(facts))]
        parts += [table(report.ORACLE_TITLES, report.oracle_rows(facts))] if oracle else []
        parts += [table(report.COST_TITLES, report.cost_rows(facts))] if loads else []
        click.echo("\n\n".join([*parts, f"The page: {place / 'README.md'}", ""]))
    click.echo(json.dumps(facts["line"]))


def _command(folder: Path | None, data: str = "") -> str:
    """What was typed, without this machine's paths."""
    names = {str(folder): "FOLDER"} | ({data: "PATH"} if Path(data).exists() else {})
    return shlex.join(["lifelist", *(names.get(word, word) for word in sys.argv[1:])])


@bench.command()
@click.option("--minutes", type=click.IntRange(1), default=60, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the picture and results.json go.")
@json_option
@click.pass_obj
def soak(resolved: Resolved, minutes: int, folder: Path | None, as_json: bool) -> int:
    """Serve the digits at half load with a swap in each minute: failures, memory and latency by minute.

    Starts a server of its own in a new folder, at serving.port. Makes a picture and results.json. The last line is one
    of JSON; the exit code is 1 if anything failed.
    """
    from lifelist.deploy.soak import run

    place = folder or resolved.settings.home / "bench" / "soak"
    facts = run(resolved.settings, minutes, place, note)
    if not as_json:
        titles = ["minute", "answers", "failures", "p50 ms", "p99 ms", "MiB"]
        names = ("number", "answers", "failures", "p50_ms", "p99_ms")
        rows = [(*(row[name] for name in names), round(row["memory_bytes"] / 2**20)) for row in facts["rows"]]
        click.echo("\n".join([table(titles, rows), "", f"The picture: {place / 'soak.png'}", ""]))
    click.echo(json.dumps({name: value for name, value in facts.items() if name != "rows"}))
    return 1 if facts["failures"] else 0


@bench.command()
@click.option("--inputs", type=click.IntRange(1), default=50_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="The same one sends the same inputs.")
@click.option("--only", default="", help="Generators, with commas: image,form,infer,message …")
@json_option
@click.pass_obj
def fuzz(resolved: Resolved, inputs: int, seed: int, only: str, as_json: bool) -> int:
    """Send what nobody should to a server: no 5xx, no dead process, no memory that grows.

    Starts a server of its own in a new folder, with two replicas, at serving.port, and gRPC beside it. The last line is
    one of JSON; the exit code is 1 if anything failed.
    """
    from lifelist.benchmarks import fuzz as bad_requests
    from lifelist.deploy.trial import digits_server

    serving = resolved.settings.serving
    grpc_port = serving.grpc_port or serving.port + 1
    chosen = bad_requests.chosen(only, grpc=True)
    with digits_server(resolved.settings, note, replicas=2, grpc_port=grpc_port) as server:
        found = bad_requests.run(server.url, inputs, seed, grpc_address=server.grpc, only=chosen, tell=note)
    for failure in () if as_json else found.failures[:100]:
        click.echo(failure)
    click.echo(json.dumps({"bench": "fuzz", "seed": seed} | found.line()))
    return 1 if found.failures else 0


class _Shown:
    """Shows the events of one run after the other, or of several at a time."""

    def __init__(self, show: Follower) -> None:
        self.show, self.run = show, ""

    def __call__(self, run: str, event: Mapping[str, Any]) -> None:
        if run != self.run:
            self.run = run
            note(f"— {run}")
        self.show(event["kind"], event)


def _protocol(name: str, memory: str | None) -> "Protocol":
    from lifelist.benchmarks.protocols import PROTOCOLS

    if name not in PROTOCOLS:
        raise BadInput(f"protocol {name!r} does not exist; there are {', '.join(PROTOCOLS)}")
    if memory is None:
        return PROTOCOLS[name]
    count, _, each = memory.partition("-")
    if not count.isdecimal() or each not in ("", "per-class"):
        raise BadInput(f"--memory takes a number of images, or as in 20-per-class; not {memory!r}")
    total, per_class = (0, int(count)) if each else (int(count), 0)
    return replace(PROTOCOLS[name], memory_total=total, memory_per_class=per_class)


def _data(protocol: "Protocol", given: str | None) -> str:
    if given is not None:
        return given
    if protocol.data.endswith("digits"):
        return protocol.data
    raise BadInput(
        f"protocol {protocol.name} needs --data PATH: {protocol.data} as Parquet with encoded images and labels "
        "(the usual public layout), or as a folder per class in train/ and test/"
    )


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"{flag} takes a number, or several as in 0,1,2; not {text!r}") from error
