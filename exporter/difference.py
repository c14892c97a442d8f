"""In what two versions differ: plain data, for people who ask what an increment changed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lifelist.exporter.manifest import Manifest

_APART = (
    "version",
    "created_at",
    "classes",
    "former",
    "files",
    "schema",
)  # told in another way, or different by nature
_SAID = ("aliases", "retired", "merged_into")


def difference(first: Manifest, second: Manifest) -> dict[str, Any]:
    """What changed from `first` to `second`; an empty part is left out, so two equal versions give {}.

    {"classes": {"added": [names], "removed": …, "trained": …, "renamed": {old: new},
                 and by name what else is said of a class: "said": {name: {field: {"from": …, "to": …}}}},
     "files": {"changed": [names], "added": …, "removed": …}, and each field that changed: {"from": …, "to": …}}
    """
    one, two = dataclasses.asdict(first), dataclasses.asdict(second)
    fields = {name: _change(one[name], two[name]) for name in one if name not in _APART}
    return _without_empty({"classes": _classes(first, second), "files": _files(first, second)} | fields)


def _classes(first: Manifest, second: Manifest) -> dict[str, Any]:
    one, two = {c.id: c for c in first.classes}, {c.id: c for c in second.classes}
    was, now = ({c.id: c for c in version.entries} for version in (first, second))
    both = one.keys() & two.keys()
    return {
        "added": [c.name for c in second.classes if c.id not in one],
        "removed": [c.name for c in first.classes if c.id not in two],
        "trained": [c.name for c in second.trained if c.id in one and one[c.id].state == "enrolled"],
        "renamed": {one[i].name: two[i].name for i in sorted(both) if one[i].name != two[i].name},
        "said": {
            now[i].name: {what: _change(getattr(was[i], what), getattr(now[i], what)) for what in _SAID}
            for i in sorted(was.keys() & now.keys())
        },
    }


def _files(first: Manifest, second: Manifest) -> dict[str, list[str]]:
    one, two = {f.name: f.sha256 for f in first.files}, {f.name: f.sha256 for f in second.files}
    return {
        "changed": sorted(name for name in one.keys() & two.keys() if one[name] != two[name]),
        "added": sorted(two.keys() - one.keys()),
        "removed": sorted(one.keys() - two.keys()),
    }


def _change(one: Any, two: Any) -> Any:
    """{"from", "to"} of a value that changed, key by key where both are objects; None where they are the same."""
    if one == two:
        return None
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return {str(key): _change(one.get(key), two.get(key)) for key in sorted({*one, *two}, key=str)}
    return {"from": one, "to": two}


def _without_empty(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without the parts in which nothing changed."""
    inner = {
        k: _without_empty(v) if isinstance(v, Mapping) and v.keys() != {"from", "to"} else v for k, v in value.items()
    }
    return {k: v for k, v in inner.items() if v not in (None, [], {})}
