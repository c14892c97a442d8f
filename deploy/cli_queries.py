"""The commands that talk to a running server about images: classify, examples, feedback."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from lifelist.deploy.answers import Added, Classified
from lifelist.deploy.client import Client, url_of
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import json_option, progress, result
from lifelist.exporter.errors import BadInput

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", type=int, help="Classes to name for each image; unless given, the server's own number.")
@click.option("--answer", help="linear or nearest_mean; unless given, what the live version says.")
@json_option
@click.pass_obj
def classify(
    resolved: Resolved, images: tuple[Path, ...], top_k: int | None, answer: str | None, as_json: bool
) -> None:
    """Ask the server what is on IMAGES: files or folders."""
    files = [file for path in images for file in images_in(path)]
    limits = resolved.settings.serving
    answers: list[Classified] = []
    with Client(url_of(resolved.settings)) as client, progress("classified", len(files), "image") as bar:
        for some in batches(files, min(64, limits.max_images), limits.max_body_bytes // 2):
            answers.append(client.classify(some, top_k, answer))
            bar.by(len(some))
    found = [(at["version"], at["answer"], image) for at in answers for image in at["images"]]
    value = [
        {"file": str(file), "version": version, "answer": kind, **image}
        for file, (version, kind, image) in zip(files, found, strict=True)
    ]
    lines = [
        f"{one['file']}: " + ", ".join(f"{c['name']} {c['score']:.3f}" for c in one["classes"])  # type: ignore[attr-defined]
        + f"  (version {one['version']}, {one['answer']})\n    prediction {one['prediction_id']}"
        for one in value
    ]  # fmt: skip
    result(value, "\n".join(lines), as_json)


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
    answers: list[Added] = []
    with Client(url_of(resolved.settings)) as client, progress("sent", total, "image") as bar:
        for title, files in found.items():
            # one request for each class where it fits: each answer comes with a version of its own
            for some in batches(files, options.max_per_request, options.max_request_bytes * 9 // 10):
                answers.append(client.add_examples(title, some, lambda size: bar.by(1)))
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
    with Client(url_of(resolved.settings)) as client:
        found = client.feedback(prediction_id, true_class)
    verdict = "right" if found["correct"] else f"wrong: it answered {found['predicted']['name']}"
    result(found, f"version {found['version']} was {verdict}; the truth is {found['truth']['name']}", as_json)


def images_in(path: Path) -> list[Path]:
    """The image files that a path names: itself, or those in the folder, sorted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput(f"{path} does not exist")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES and file.is_file())
    if not found:
        raise BadInput(f"{path} has no image; files that end in {', '.join(sorted(IMAGES))} count")
    return found


def labelled(paths: Sequence[Path], name: str | None) -> dict[str, list[Path]]:
    """Class name → image files. Without a name, a folder's own name is the class of the images in it."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        if name is not None:
            found.setdefault(name, []).extend(images_in(path))
        elif path.is_dir():
            below = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
            for folder in below or [path]:
                found.setdefault(folder.absolute().name, []).extend(images_in(folder))
        elif path.exists():
            raise BadInput(f"{path} is a file, so its class is not clear; say --class NAME")
        else:
            raise BadInput(f"{path} does not exist")
    return found


def batches(files: Sequence[Path], most: int, most_bytes: int) -> Iterator[list[Path]]:
    """The files in order, in lists of at most so many images and bytes; one too big for that goes alone."""
    some: list[Path] = []
    size = 0
    for file in files:
        more = file.stat().st_size + 500  # what multipart adds
        if some and (len(some) == most or size + more > most_bytes):
            yield some
            some, size = [], 0
        some.append(file)
        size += more
    if some:
        yield some
