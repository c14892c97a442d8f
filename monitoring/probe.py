"""Gate images sent through the live path: what sees forgetting, a broken decoder or a wrong version, with no label.

It is real HTTP, with the server's own key, by which it is told from traffic (serving/keys.py).
"""

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx
import sqlalchemy as sa

from lifelist.exporter.errors import Failed
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.monitoring import tables, times
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.feedback import groups, judge
from lifelist.monitoring.figures import DAY, HOUR, MINUTE, Figure, Group, add, stretch
from lifelist.monitoring.intervals import Change

AT_ONCE = 4  # images in a request: traffic hardly waits for them
REST_S = 0.02  # between requests
TIMEOUT_S = 30.0
KEPT_VERSIONS = 8  # of which the answers to gate images are kept


@dataclass(frozen=True, slots=True)
class GateImage:
    """An image that no model was trained on."""

    sha256: str
    class_id: int


@dataclass(frozen=True, slots=True)
class Probed:
    """What one image was taken for, and by which version."""

    image: GateImage
    version: int
    predicted: int


def choose(images: Sequence[GateImage], most: int) -> list[GateImage]:
    """At most so many, of all classes as alike as can be, and the same ones each time as long as the images are."""
    by_class: defaultdict[int, list[GateImage]] = defaultdict(list)
    for image in sorted(images, key=lambda found: found.sha256):
        by_class[image.class_id].append(image)
    in_turn = itertools.zip_longest(*(by_class[class_id] for class_id in sorted(by_class)))
    return [image for of_each in in_turn for image in of_each if image is not None][:most]


def ask(url: str, key: str, images: Sequence[GateImage], read: Callable[[str], bytes]) -> Iterator[Probed]:
    """What the server at `url` answers to images, whose files `read` gives. Failed if it does not."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, headers={"X-API-Key": key}, trust_env=False) as http:
        for start in range(0, len(images), AT_ONCE):
            chosen = images[start : start + AT_ONCE]
            files = [("images", (image.sha256, read(image.sha256))) for image in chosen]
            try:
                answer = http.post("/v1/classify", params={"top_k": 1}, files=files)
            except httpx.HTTPError as error:
                raise Failed(f"a probe of {len(chosen)} gate images was not answered: {error!r}") from error
            if answer.status_code != 200:
                raise Failed(
                    f"a probe of {len(chosen)} gate images was answered {answer.status_code}: {answer.text[:300]}"
                )
            said = answer.json()
            for image, one in zip(chosen, said["images"], strict=True):
                yield Probed(image, int(said["version"]), int(one["classes"][0]["id"]))
            time.sleep(REST_S)


def record(database: Database, registry: Registry, found: Sequence[Probed], at: float) -> None:
    """Keep what was answered, as figures and image by image."""
    asked: Counter[tuple[int, Group, int]] = Counter()  # by version, group and class id
    right: Counter[tuple[int, Group, int]] = Counter()
    confused: Counter[tuple[int, int, int]] = Counter()
    for version in sorted({one.version for one in found}):
        manifest = registry.manifest(version)
        counted, judged, instead = groups(manifest), judge(manifest), manifest.instead
        for one in (one for one in found if one.version == version):
            truth = one.image.class_id
            said = judged(one.predicted, truth)
            for group, class_id in counted(one.predicted, truth):
                asked[version, group, class_id] += 1
                right[version, group, class_id] += said == "correct"
            if said != "unseen":
                confused[version, instead.get(truth, truth) or truth, one.predicted] += 1
    figures = []
    for key, count in asked.items():
        seconds = HOUR if key[1] == "class" else MINUTE
        place = stretch(at, seconds), seconds, key[0], "probe"
        figures.append(Figure(*place, key[1], key[2], count, count, right[key], count))  # type: ignore[arg-type]
    rows = [
        {"version": p.version, "sha256": p.image.sha256, "truth": p.image.class_id, "predicted": p.predicted,
         "at": times.text(at)}
        for p in found
    ]  # fmt: skip
    days = [
        {"at": stretch(at, DAY), "version": v, "source": "probe", "truth": t, "predicted": p, "images": n}
        for (v, t, p), n in confused.items()
    ]
    c = tables.probes.c
    with database.writing() as connection:
        add(connection, figures)
        put(connection, tables.probes, rows)
        put(connection, tables.confusions, days, adding=("images",))
        latest = sa.select(sa.func.max(c.at).label("at"), c.version).group_by(c.version).subquery()
        kept = sa.select(latest.c.version).order_by(latest.c.at.desc()).limit(KEPT_VERSIONS)
        versions = [row.version for row in connection.execute(kept)]
        connection.execute(tables.probes.delete().where(c.version.not_in(versions)))


def held(version: Manifest, found: Sequence[Probed], promised: Mapping[int, float]) -> Iterator[tuple[bool, float]]:
    """(whether it was right, how often it should be) of each image that a version answered, of classes in `promised`.

    promised: by class id, the share of right answers that the version reached when it was made.
    """
    judged, instead = judge(version), version.instead
    for one in found:
        true = instead.get(one.image.class_id, one.image.class_id)
        if one.version == version.version and true is not None and true in promised:
            yield judged(one.predicted, one.image.class_id) == "correct", promised[true]


def change(database: Database, before: Manifest, now: Manifest) -> Change | None:
    """By how much accuracy on the classes that both can name differs, of images that both were probed with.

    None if there is no such image.
    """
    c = tables.probes.c
    query = sa.select(c.sha256, c.version, c.truth, c.predicted).where(c.version.in_([before.version, now.version]))
    with database.reading() as connection:
        rows = connection.execute(query).all()
    said: defaultdict[str, dict[int, bool]] = defaultdict(dict)
    judged = {manifest.version: judge(manifest) for manifest in (before, now)}
    for row in rows:
        found = judged[row.version](row.predicted, row.truth)
        if found != "unseen":
            said[row.sha256][row.version] = found == "correct"
    pairs = [both for both in said.values() if len(both) == 2]
    if not pairs or before.version == now.version:
        return None
    gained = sum(both[now.version] and not both[before.version] for both in pairs)
    lost = sum(both[before.version] and not both[now.version] for both in pairs)
    return Change.of(gained, lost, len(pairs))
