"""What the page shows in tests and in the pictures of the docs: made-up days of a server, by seed.

    python tests/parts_dashboard.py FOLDER        the pictures for docs/monitoring

Versions, routes, traffic and the page are real ones; the figures of the day before, which no test can wait for, are
not: they are drawn from set shares of right answers.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from browser import Page, browsing
from parts import DIM, PREPROCESS, encoded, tiny_model
from parts_operator import Server, bird, play, serving, take_step, tell_epoch

from lifelist import Client
from lifelist.deploy import tables as deploy_tables
from lifelist.deploy.story import DIGITS
from lifelist.deploy.watch import queue
from lifelist.deploy.workshop import EVALUATION, EXEMPLARS, Workshop
from lifelist.exporter import index, session
from lifelist.exporter.fold import unit
from lifelist.exporter.imagery import looks
from lifelist.exporter.manifest import SURE_POINTS, Check, ClassEntry, Confidence, Confidences, FileEntry, Manifest
from lifelist.exporter.preprocess import decode
from lifelist.monitoring import figures, notices, seen, tables, times
from lifelist.monitoring.database import put
from lifelist.monitoring.drift import TESTS
from lifelist.monitoring.figures import DAY, HOUR, NONE, Figure, Group, Source, stretch
from lifelist.monitoring.options import ReviewOptions

FIRST = 101  # class ids, above those of the birds that the server begins with
SURE = tuple(float(share) for share in np.linspace(0.1, 1, SURE_POINTS))

SHARPNESS = 8.0  # of the logits: how sure the answers look
CONSENT = ReviewOptions(keep_images=True)  # settings of a server whose day has images to label

# source → how many images it judges in ten minutes of a day, of all classes
JUDGED: dict[Source, int] = {"feedback": 80, "audit": 50, "probe": 200, "estimated": 900}


def version(
    workshop: Workshop,
    names: Sequence[str],
    increments: Sequence[int],
    images: Mapping[str, Sequence[bytes]] | None = None,
    *,
    parent: int | None = None,
    passed: bool = True,
    tells: bool = False,
    seed: int = 0,
) -> Manifest:
    """Publish a real version that knows these classes, with ids from FIRST, and keeps these images as exemplars.

    tells: it can tell them apart, as far as the tiny network can; else its answers are by chance.
    """
    random = np.random.default_rng(seed)
    rows = random.normal(size=(len(names), DIM))
    weight, bias, means = _telling(names, images) if images and tells else (rows, np.zeros(len(names)), rows)
    _register(workshop, names)
    entries = tuple(
        ClassEntry(FIRST + k, name, "trained", n) for k, (name, n) in enumerate(zip(names, increments, strict=True))
    )
    kept = {
        str(entry.id): [workshop.images.put(one) for one in (images or {}).get(entry.name, [])] for entry in entries
    }
    content = {
        "model.onnx": tiny_model(weight.astype(np.float32), bias.astype(np.float32)),
        "class_means.faiss": index.build([entry.id for entry in entries], unit(means)),
        "checkpoint.safetensors": b"",
        EXEMPLARS: json.dumps({"exemplars": kept, "holdout": {}}).encode(),
        EVALUATION: json.dumps(_evaluation(entries, random)).encode(),
    }
    draft = Manifest(
        version=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="increment",
        parent=parent,
        method="bic",
        network="tiny",
        embedding_dim=DIM,
        default_answer="linear",
        preprocess=PREPROCESS,
        confidences=Confidences(linear=Confidence(400, 1.0, SURE, SURE), nearest_mean=None),
        classes=entries,
        gate=(
            Check("old_accuracy", passed, 0.01 if passed else 0.2, 0.05, "as asked" if passed else "old classes lose"),
        ),
        exemplars_sha256=FileEntry.of(EXEMPLARS, content[EXEMPLARS]).sha256,
    )
    return workshop.registry.publish(draft, content)


def _telling(names: Sequence[str], images: Mapping[str, Sequence[bytes]]) -> tuple[Any, Any, Any]:
    """A last layer, C×8 and C, that tells these images apart, by least squares; and the means of the classes, C×8."""
    bare, _ = session.open_session(tiny_model(np.eye(DIM, dtype=np.float32), np.zeros(DIM, np.float32)), provider="cpu")
    pixels = np.stack([decode(one, PREPROCESS) for name in names for one in images[name]])
    features, embedding = bare.run(["logits", "embedding"], {"images": pixels})
    truth = np.repeat(np.eye(len(names)), [len(images[name]) for name in names], axis=0)
    solved = np.linalg.lstsq(np.c_[features, np.ones(len(features))], SHARPNESS * truth, rcond=None)[0]
    return solved[:-1].T, solved[-1], truth.T @ embedding


def _register(workshop: Workshop, names: Sequence[str]) -> None:
    known = {one.id for one in workshop.store.classes()}
    rows = [
        {"id": FIRST + k, "name": name, "created_at": times.now()}
        for k, name in enumerate(names)
        if FIRST + k not in known
    ]
    if rows:
        with workshop.store.writing() as connection:
            connection.execute(deploy_tables.classes.insert(), rows)


def _evaluation(entries: Sequence[ClassEntry], random: np.random.Generator) -> dict[str, Any]:
    """Confusions of held-out images: before correction a fifth of old ones is taken for a new class."""
    latest = max(entry.increment for entry in entries)
    ids = [entry.id for entry in entries]
    new = [entry.id for entry in entries if entry.increment == latest]

    def confusion(right: float, to_new: float) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for class_id in ids:
            shares = np.full(len(ids), (1 - right) / len(ids))
            shares[[ids.index(one) for one in new]] += to_new / len(new)
            shares[ids.index(class_id)] += right
            drawn = random.multinomial(40, shares / shares.sum())
            found[str(class_id)] = {str(k): int(n) for k, n in zip(ids, drawn, strict=True) if n}
        return found

    return {
        "linear_uncorrected": {"confusion": confusion(0.75, 0.2)},
        "linear": {"confusion": confusion(0.92, 0.01)},
        "nearest_mean": {"confusion": confusion(0.88, 0.0)},
    }


def judged(workshop: Workshop, of: Manifest, begins: float, ends: float, *, loss: float = 0.0, seed: int = 0) -> None:
    """What every source said of a version in a time, Unix times: old classes are right on `loss` less than before."""
    random = np.random.default_rng(seed)
    right = {entry.id: float(np.clip(random.normal(0.93, 0.04), 0.6, 0.995)) for entry in of.answerable}
    right |= {class_id: share - loss for class_id, share in right.items() if class_id not in of.newest}
    groups: list[tuple[Group, list[int]]] = [
        ("all", list(right)),
        ("old", [k for k in right if k not in of.newest]),
        ("new", [k for k in right if k in of.newest]),
    ]
    found: list[Figure] = []
    for source, images in JUDGED.items():
        for at in np.arange(begins, ends, 600.0):
            for group, ids in groups:
                n = round(images * len(ids) / len(right))
                if n:
                    share = float(np.mean([right[k] for k in ids])) - (0.03 if source == "feedback" else 0.0)
                    found.append(_figure(stretch(at, 600), 600, of.version, source, group, NONE, n, share, random))
        for at in np.arange(begins, ends, HOUR):
            for class_id, share in right.items():
                n = max(1, int(6 * images / len(right)))
                found.append(_figure(stretch(at, HOUR), HOUR, of.version, source, "class", class_id, n, share, random))
    ids, rounds = list(right), len(np.arange(begins, ends, 600.0))
    confused = [
        {"at": stretch(ends - 1, DAY), "version": of.version, "source": "probe", "truth": truth, "predicted": predicted,
         "images": int(n) * rounds}
        for truth, predicted, n in _confused(ids, right, random)
    ]  # fmt: skip
    with workshop.store.writing() as connection:
        for start in range(0, len(found), 1000):
            figures.add(connection, found[start : start + 1000])
        put(connection, tables.confusions, confused, adding=("images",))


def _figure(
    at: str,
    seconds: int,
    of: int,
    source: Source,
    group: Group,
    class_id: int,
    n: int,
    share: float,
    random: np.random.Generator,
) -> Figure:
    weight = 20.0 if source == "audit" else 1.0
    hits = float(random.binomial(n, share))
    return Figure(at, seconds, of, source, group, class_id, n, n * weight, hits * weight, n * weight**2)


def _confused(
    ids: Sequence[int], right: Mapping[int, float], random: np.random.Generator
) -> list[tuple[int, int, int]]:
    rows = []
    for k, class_id in enumerate(ids):
        hits = int(random.binomial(200, right[class_id]))
        other = ids[(k + 1 + int(random.integers(3))) % len(ids)]
        rows += [(class_id, class_id, hits)] + (
            [(class_id, other, 200 - hits)] if hits < 200 and other != class_id else []
        )
    return rows


def happened(workshop: Workshop, of: Manifest, swapped: Sequence[tuple[float, int]]) -> None:
    """Swaps at those times, drift as it was tested last, and two alarms, of which one is raised."""
    now, random = time.time(), np.random.default_rng(1)
    rows = [
        {"at": times.text(at), "kind": "swap", "version": number, "data": {"at": times.text(at)},
         "message": f"version {number} is live, after version {number - 1}"}
        for at, number in swapped
    ]  # fmt: skip
    tested = [
        {"at": times.text(now - 60), "version": of.version, "window": window, "test": test, "images": images,
         "score": float(random.uniform(0.01, 0.08)), "p_value": float(random.uniform(0.05, 0.9)), "rejected": False}
        for window, images in (("short", 150), ("long", 500))
        for test in TESTS
        if (window, test) != ("long", "classes")
    ]  # fmt: skip
    tested[-1] |= {"score": 0.31, "p_value": 0.0001, "rejected": True}
    with workshop.store.writing() as connection:
        connection.execute(tables.notices.insert(), rows)
        put(connection, tables.drift, tested)
    alarms = notices.Alarms(workshop.store)
    alarms.look("accuracy.probe", False, "", of.version)
    message = f"{TESTS[-2]} of the last 1500 answers is not as it was: 0.310, p 0.0001"
    alarms.look(f"drift.{TESTS[-2]}.long", True, message, of.version)


def digits(first: int = 0, count: int = 12) -> dict[str, list[bytes]]:
    """Image files of each of scikit-learn's handwritten digits: `count` of each, from the `first` one on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (255 * found.images / 16).round().astype(np.uint8).repeat(2, 1).repeat(2, 2)[..., None].repeat(3, 3)
    return {
        name: [encoded(one) for one in pixels[found.target == k][first : first + count]]
        for k, name in enumerate(DIGITS)
    }


def a_day(server: Server) -> list[Manifest]:
    """A day with two swaps, the second of which cost old classes some points; an increment done, and one that runs."""
    shop, pictures, now = server.workshop, digits(), time.time()
    base = version(shop, DIGITS[:6], [0] * 6, pictures, parent=1, tells=True, seed=1)
    second = version(shop, DIGITS[:8], [0] * 6 + [1] * 2, pictures, parent=base.version, tells=True, seed=2)
    third = version(shop, DIGITS, [0] * 6 + [1] * 2 + [2] * 2, pictures, parent=second.version, tells=True, seed=3)
    refused = version(shop, DIGITS, [0] * 6 + [1] * 2 + [2] * 2, pictures, parent=second.version, passed=False, seed=4)
    judged(shop, base, now - 40 * HOUR, now - 14 * HOUR, seed=1)
    judged(shop, second, now - 14 * HOUR, now - 5 * HOUR, seed=2)
    judged(shop, third, now - 5 * HOUR, now, loss=0.06, seed=3)
    done, running = (shop.store.add_rollout("bic", ids) for ids in ([FIRST + 8, FIRST + 9], [FIRST]))
    assert done.id == 1  # which `play` plays
    play(server)
    with Client(server.url) as client:
        for number in (base.version, second.version, third.version):
            client.promote(number)
    running = take_step(shop, take_step(shop, running, "intake"), "train")
    shop.store.begin_step(running)
    tell_epoch(shop, running, 7, 20)
    happened(shop, third, [(now - 14 * HOUR, second.version), (now - 5 * HOUR, third.version)])
    return [base, second, third, refused]


def unsure(server: Server, count: int = 6) -> int:
    """So many digits of each kind are asked, and those wait for a label that the watcher would keep; how many."""
    server.observed()  # what was asked before
    with Client(server.url) as client:
        for of_class in digits(12, count).values():
            client.classify(of_class)
    waits, kept = queue(server.settings, server.workshop), 0
    for one in server.observed():
        loaded = session.load(server.workshop.registry, one.version, provider="cpu")
        found, _ = seen.see(loaded, one.kind, one.logits, one.embedding, looks(one.images, one.sides))
        kept += waits.keep(loaded, one, found, time.time())
    return kept


class Asking:
    """Clients that ask for as long as the block lasts, a few of them wrongly."""

    def __init__(self, server: Server, pause_s: float = 0.02) -> None:
        self.server, self.pause_s, self._stop = server, pause_s, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        turn = 0
        with httpx.Client(base_url=self.server.url, trust_env=False) as http:
            while not self._stop.wait(self.pause_s):
                turn += 1
                http.post("/v1/classify", content=b"no image" if turn % 50 == 0 else bird(turn % 3))


def settled(page: Page) -> None:
    """Everything of the page has come."""
    page.wait("document.querySelectorAll('#traffic-now strong').length === 6")
    page.wait("document.querySelectorAll('#classes-table tbody th').length > 0")
    for chart in ("latency", "accuracy"):
        page.wait(f"document.querySelector('#chart-{chart} svg') !== null")
    page.wait("[...document.querySelectorAll('.pictures img')].every(image => !image.hidden && image.complete)")


def pictures(folder: Path) -> list[Path]:
    """The page by light, by dark, and on a phone."""
    folder.mkdir(parents=True, exist_ok=True)
    shots = {
        "dashboard-light.png": (1400, 900, False, False),
        "dashboard-dark.png": (1400, 900, True, False),
        "dashboard-phone.png": (390, 844, False, True),
    }
    with tempfile.TemporaryDirectory() as home, serving(Path(home), review=CONSENT) as server, browsing() as page:
        a_day(server)
        unsure(server)
        with Asking(server):
            page.view(1400, 900)
            page.open(f"{server.url}/dashboard")
            settled(page)
            time.sleep(30)  # of traffic, to have something to draw
            for name, (width, height, dark, phone) in shots.items():
                page.view(width, height, dark=dark, phone=phone)
                page.run("document.querySelector('#review-part').scrollIntoView()")  # it shows an image once it is seen
                page.wait("document.querySelector('#review-image img')?.complete")
                page.run("scrollTo(0, 0)")
                time.sleep(4)
                page.picture(folder / name, whole=True)
    return [folder / name for name in shots]


if __name__ == "__main__":
    print(*pictures(Path(sys.argv[1])), sep="\n")
