"""The commands about versions. What only reads goes to the registry itself, and so works without a server."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from lifelist.client.answers import Moved
from lifelist.deploy.cli_classes import standing
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import connected, flat, json_option, result, table, verdict
from lifelist.exporter.errors import Corrupt
from lifelist.exporter.manifest import Int8, Manifest
from lifelist.exporter.registry import Registry

REFS = ("live", "candidate", "previous")


@click.group()
def versions() -> None:
    """List, check and compare versions; put one live."""


@versions.command(name="list")
@json_option
@click.pass_obj
def list_(resolved: Resolved, as_json: bool) -> None:
    """List all versions, the oldest first."""
    registry = Registry(resolved.settings.registry_url)
    refs = _refs(registry)
    found = [_summary(registry.manifest(number), refs) for number in registry.versions()]
    head = ("version", "refs", "kind", "method", "parent", "classes", "accuracy", "gate", "created_at")
    rows = [tuple(", ".join(one[k]) if k == "refs" else one[k] for k in head) for one in found]
    result(
        {"versions": found, "refs": refs},
        table(head, rows) if rows else "no version yet: `lifelist base DATA`",
        as_json,
    )


@versions.command()
@click.argument("number", type=int)
@json_option
@click.pass_obj
def show(resolved: Resolved, number: int, as_json: bool) -> None:
    """Show what version NUMBER says of itself."""
    registry = Registry(resolved.settings.registry_url)
    manifest = registry.manifest(number)
    value = asdict(manifest) | {"refs": _summary(manifest, _refs(registry))["refs"]}
    result(value, _told(manifest, value["refs"]), as_json)


@versions.command()
@click.argument("numbers", nargs=-1, type=int)
@json_option
@click.pass_obj
def verify(resolved: Resolved, numbers: tuple[int, ...], as_json: bool) -> None:
    """Check every byte of the versions NUMBERS, or of all."""
    registry = Registry(resolved.settings.registry_url)
    problems = {number: registry.verify(number) for number in numbers or registry.versions()}
    lines = [f"version {n}: {'sound' if not found else '; '.join(found)}" for n, found in problems.items()]
    result(problems, "\n".join(lines), as_json)
    if bad := [n for n, found in problems.items() if found]:
        raise Corrupt(f"{len(bad)} of {len(problems)} versions are not what their manifests say: {bad}")


@versions.command()
@click.argument("first", type=int)
@click.argument("second", type=int)
@json_option
@click.pass_obj
def diff(resolved: Resolved, first: int, second: int, as_json: bool) -> None:
    """Show in what version SECOND differs from version FIRST."""
    found = Registry(resolved.settings.registry_url).diff(first, second)
    lines = flat({name: change for name, change in found.items() if name != "gate"})
    for side, checks in found.get("gate", {}).items():
        lines += [f"gate.{side}: {check['name']} {verdict(check)}" for check in checks]
    result(found, "\n".join(lines) or f"versions {first} and {second} say the same", as_json)


@versions.command()
@json_option
@click.pass_obj
def gc(resolved: Resolved, as_json: bool) -> None:
    """Remove what no version refers to, such as the files of a publication that was cut off."""
    removed = Registry(resolved.settings.registry_url).collect_garbage()
    result(removed, "\n".join(removed) or "nothing to remove", as_json)


@versions.command()
@click.argument("number", type=int)
@click.option("--force", is_flag=True, help="Even if the gate refused it.")
@json_option
@click.pass_obj
def promote(resolved: Resolved, number: int, force: bool, as_json: bool) -> None:
    """Make version NUMBER live, on all replicas."""
    with connected(resolved.settings) as client:
        _moved(client.promote(number, force), as_json)


@click.command()
@json_option
@click.pass_obj
def rollback(resolved: Resolved, as_json: bool) -> None:
    """Make the previous version live again."""
    with connected(resolved.settings) as client:
        _moved(client.rollback(), as_json)


def _moved(found: Moved, as_json: bool) -> None:
    before = "" if found["previous"] is None else f"; before: version {found['previous']}"
    result(found, f"version {found['live']} is live{before}", as_json)


def _refs(registry: Registry) -> dict[str, int]:
    found = {name: registry.ref(name) for name in REFS}
    return {name: ref.version for name, ref in found.items() if ref is not None}


def _summary(manifest: Manifest, refs: Mapping[str, int]) -> dict[str, Any]:
    results = manifest.results.get(manifest.default_answer, {})
    return {
        "version": manifest.version,
        "refs": [name for name, version in refs.items() if version == manifest.version],
        "kind": manifest.kind,
        "method": manifest.method,
        "parent": manifest.parent,
        "classes": len(manifest.answerable),
        "accuracy": results.get("all"),
        "gate": ("passed" if manifest.passed else "refused") if manifest.gate else None,  # an enrolment is not judged
        "created_at": manifest.created_at,
    }


def _told(manifest: Manifest, refs: list[str]) -> str:
    stand = [(c, standing(asdict(c))) for c in manifest.classes]
    stand += [(c, standing(asdict(c) | {"state": "former"})) for c in manifest.former]
    rows = [(c.id, c.name, state, c.increment) for c, state in stand]
    checks = [(c.name, "passed" if c.passed else "REFUSED", c.found, c.limit, c.message) for c in manifest.gate]
    files = [(f.name, f.size, f.sha256) for f in manifest.files]
    results = {kind: found for kind, found in manifest.results.items() if isinstance(found, Mapping)}
    kinds = [(kind, r.get("all"), r.get("old"), r.get("new")) for kind, r in results.items()]
    size = manifest.preprocess.size
    named = f" ({', '.join(refs)})" if refs else ""
    parts = [
        f"version {manifest.version}{named}: {manifest.kind} by {manifest.method} "
        f"from version {manifest.parent}, {manifest.created_at}",
        f"{manifest.network}, {size}×{size} pixels, answers by {manifest.default_answer}",
        table(["id", "class", "state", "increment"], rows),
        table(["answer", "all", "old", "new"], kinds) if kinds else "",
        table(["gate", "verdict", "found", "limit", ""], checks) if checks else "",
        _int8(manifest.int8),
        f"unknown scores are calibrated on {known.images} held-out images" if (known := manifest.known_scores) else "",
        table(["file", "bytes", "sha256"], files),
    ]
    return "\n\n".join(part for part in parts if part)


def _int8(found: Int8 | None) -> str:
    """What was measured of the graph in 8 bits, and so decided."""
    if found is None:
        return ""
    titles = ["8 bits", "fp32", "int8", "agreement", "most lost of a class", ""]
    names = ("fp32", "int8", "agreement", "worst_class_loss", "worst_class")
    rows = [(kind, *(figures[name] for name in names)) for kind, figures in found.answers.items()]
    return f"{table(titles, rows)}\n{'serves on a CPU' if found.used else 'is not used'}: {found.message}"
