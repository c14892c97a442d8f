"""The commands that talk to a running server about images: classify, examples, feedback."""

from pathlib import Path
from typing import Any

import click

from lifelist.client.answers import Added, Named
from lifelist.client.images import images_in, labelled
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import connected, json_option, progress, result


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", type=int, help="Classes to name for each image; unless given, the server's own number.")
@click.option("--answer", help="linear or nearest_mean; unless given, what the live version says.")
@click.option("--unknown-at", type=float, help="Share of known images that may be called unknown, such as 0.05.")
@json_option
@click.pass_obj
def classify(
    resolved: Resolved,
    images: tuple[Path, ...],
    top_k: int | None,
    answer: str | None,
    unknown_at: float | None,
    as_json: bool,
) -> None:
    """Ask the server what is on IMAGES: files or folders."""
    files = [file for path in images for file in images_in(path)]
    limits = resolved.settings.serving
    value: list[dict[str, Any]] = []
    lines = []
    with connected(resolved.settings) as client, progress("classified", len(files), "image") as bar:
        found = client.classify_many(
            files,
            top_k,
            answer,
            unknown_at=unknown_at,
            batch=min(64, limits.max_images),
            batch_bytes=limits.max_body_bytes // 2,
        )
        for file, one in zip(files, found, strict=True):
            value.append({"file": str(file), **one})
            lines.append(_line(file, one))
            bar.by(1)
    result(value, "\n".join(lines), as_json)


def _line(file: Path, one: Named) -> str:
    classes = ", ".join(f"{scored['name']} {scored['score']:.3f}" for scored in one["classes"])
    unknown = "unknown; of known classes " if one.get("unknown") else ""
    by = f"(version {one['version']}, {one['answer']})"
    return f"{file}: {unknown}{classes}  {by}\n    prediction {one['prediction_id']}"


@click.group()
def examples() -> None:
    """Give the server images of known or new classes."""


@examples.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--class", "name", help="The class of all of them; unless given, a folder's name is its class.")
@json_option
@click.pass_obj
def add(resolved: Resolved, paths: tuple[Path, ...], name: str | None, as_json: bool) -> None:
    """Add the images in PATHS: files (with --class), folders of images, or a folder that has a folder per class."""
    found = labelled(paths, name)
    options = resolved.settings.examples
    total = sum(map(len, found.values()))
    with connected(resolved.settings) as client, progress("sent", total, "image") as bar:
        answers = [
            client.add_examples(
                title,
                files,
                lambda _: bar.by(1),
                batch=options.max_per_request,
                batch_bytes=options.max_request_bytes * 9 // 10,
            )
            for title, files in found.items()
        ]
    result(answers, "\n".join(_added(answer) for answer in answers), as_json)


def _added(answer: Added) -> str:
    counts = {status: [e for e in answer["examples"] if e["status"] == status] for status in ("duplicate", "refused")}
    known = f"answerable since version {answer['version']}" if answer["version"] else answer["class"]["state"]
    if answer["class"]["state"] == "trained":  # the version is the live one, which has not seen them
        known = f"trained, in version {answer['version']}: new images wait for the next increment"
    line = f"{answer['class']['name']} (class {answer['class']['id']}): {answer['accepted']} accepted"
    line += "".join(f", {len(those)} {status}" for status, those in counts.items() if those)
    line += f"; {known}" + "".join(f"\n  {e['file']}: {e.get('reason', '')}" for e in counts["refused"])
    return line + "".join(f"\n  warning: {warning}" for warning in answer["warnings"])


@click.command()
@click.argument("prediction_id")
@click.argument("true_class")
@json_option
@click.pass_obj
def feedback(resolved: Resolved, prediction_id: str, true_class: str, as_json: bool) -> None:
    """Say that the image of PREDICTION_ID was of TRUE_CLASS."""
    with connected(resolved.settings) as client:
        found = client.feedback(prediction_id, true_class)
    verdict = "right" if found["correct"] else f"wrong: it answered {found['predicted']['name']}"
    result(found, f"version {found['version']} was {verdict}; the truth is {found['truth']['name']}", as_json)
