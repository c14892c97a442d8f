"""A locked database and a full disk: answers go on, what is lost is counted, and it is told when it works again."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from parts import encoded, images, tiny_images, tiny_version
from parts_operator import serving
from parts_server import Load, eventually, started
from test_review import CALIBRATED, shown, wide

from lifelist import Client
from lifelist.client.errors import Unavailable
from lifelist.deploy import tables
from lifelist.deploy.store import Store
from lifelist.exporter import session
from lifelist.exporter.registry import Blobs, Registry
from lifelist.exporter.storage import open_storage
from lifelist.monitoring import figures, notices
from lifelist.monitoring.options import MonitoringOptions
from lifelist.monitoring.review import Queue
from lifelist.monitoring.watcher import Outside, Watcher
from lifelist.serving.live import Answer
from lifelist.serving.observed import MOST_BYTES, MOST_SAMPLES, Observations, Observed

NOON = 1_800_000_000.0
OPTIONS = MonitoringOptions(probe_images=0, window=50, long_window=400)


class World:
    """Replicas that have always answered something."""

    def __init__(self, loaded: session.Loaded) -> None:
        self.loaded, self.handed_over = loaded, 0

    def outside(self) -> Outside:
        def observe() -> list[Observations]:
            self.handed_over += 10
            return [shown(self.loaded, images(10, seed=self.handed_over), first=self.handed_over)[0]]

        return Outside(observe, lambda chosen: [], list)


@pytest.fixture
def loaded(tmp_path: Path) -> session.Loaded:
    registry = Registry(str(tmp_path / "registry"))
    made = tiny_version(registry, live=True, changes={"confidences": CALIBRATED})
    return session.load(registry, made.version, provider="cpu")


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process holds the write lock of a database."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30); "
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read(); c.execute('ROLLBACK')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"locked\n"
        yield
    finally:
        process.stdin.close()
        process.wait(10)


def test_what_nobody_could_write_down_is_counted_and_told_when_the_lock_is_gone(
    tmp_path: Path, loaded: session.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BUSY_TIMEOUT_MS", 100)  # in place of 30 s, for which a watcher waits
    store, world = Store(f"sqlite:///{tmp_path / 'lifelist.db'}"), World(loaded)
    watcher = Watcher(store, Registry(str(tmp_path / "registry")), OPTIONS, world.outside(), seed=0)
    watcher.look(NOON)
    with locked(tmp_path / "lifelist.db"):
        for k in range(1, 4):
            with pytest.raises(sa.exc.OperationalError, match="locked"):
                watcher.look(NOON + k)
    assert world.handed_over == 20  # the first in vain; then replicas kept what they saw, which is a fair sample
    watcher.look(NOON + 10)
    assert notices.lost(store) == {"answers": 10, "images": 0}
    (told,) = notices.told(store, kinds=("lost",))
    assert "10 answers could not be looked at" in told.message
    assert told.data["answers"] == 10
    watcher.look(NOON + 20)
    assert len(notices.told(store, kinds=("lost",))) == 1
    counted = figures.over(figures.read(store, 0, 2 * NOON, sources=("estimated",), groups=("all",)), None)
    assert counted[0].images == world.handed_over - 10  # and all others were looked at


def fill_up(home: Path, results: Any) -> None:
    """Watch while nothing can be written to any file, as on a full disk; then while it can."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store, registry = Store(f"sqlite:///{home / 'lifelist.db'}"), Registry(str(home / "registry"))
    world = World(session.load(registry, 1, provider="cpu"))
    queue = Queue(store, Blobs(open_storage(home / "review")), wide(per_hour=10_000))
    watcher = Watcher(store, registry, OPTIONS, world.outside(), seed=0, queue=queue)
    watcher.look(NOON)
    kept = len(queue.waiting(10_000))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    failed = 0
    for k in range(1, 6):
        try:
            watcher.look(NOON + k)
        except sa.exc.OperationalError:
            failed += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    watcher.look(NOON + 10)
    watcher.look(NOON + 11)
    told = [one.message for one in notices.told(store, kinds=("lost",))]
    results.put((failed, kept, len(queue.waiting(10_000)), notices.lost(store), told, store_is_sound(store)))


def store_is_sound(store: Store) -> bool:
    with store.reading() as connection:
        return bool(connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok")


def test_a_full_disk_costs_what_cannot_be_written_and_no_more(tmp_path: Path, loaded: session.Loaded) -> None:
    forks = multiprocessing.get_context("spawn")
    results = forks.Queue()
    process = forks.Process(target=fill_up, args=(tmp_path, results))
    process.start()
    failed, kept, kept_after, lost, told, sound = results.get(timeout=120)
    process.join(30)
    assert sound
    assert failed > 0
    assert kept_after > kept > 0  # it goes on
    assert lost["answers"] > 0
    assert len(told) == 1
    assert "it works again" in told[0]


def try_on_a_full_disk(url: str, results: Any) -> None:
    """Whether the database is writable while it is, while no file can grow, and again after that."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store, found = Store(url), []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (hard, 0, 0, hard, hard):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        found.append(store.is_writable())
    results.put((found, store_is_sound(store)))


def test_a_full_disk_is_seen_while_it_is_full_and_no_longer(tmp_path: Path) -> None:
    forks = multiprocessing.get_context("spawn")
    results = forks.Queue()
    process = forks.Process(target=try_on_a_full_disk, args=(f"sqlite:///{tmp_path / 'lifelist.db'}", results))
    process.start()
    found, sound = results.get(timeout=60)
    process.join(30)
    assert found == [True, False, False, True, True]
    assert sound


def test_to_try_a_write_takes_a_second_and_leaves_other_writers_their_patience(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'lifelist.db'}")
    with locked(tmp_path / "lifelist.db"):
        began = time.monotonic()
        assert not store.is_writable()
        assert time.monotonic() - began < 5  # in place of 30
    assert store.is_writable()
    with store.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == tables.BUSY_TIMEOUT_MS


def mounted(folder: Path, size: str) -> bool:
    """Whether a small tmpfs could be mounted there."""
    folder.mkdir()
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode
        == 0
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs")
def test_images_for_review_on_a_full_disk_are_counted_and_nothing_else_is_lost(
    tmp_path: Path, loaded: session.Loaded
) -> None:
    small = tmp_path / "small"
    if not mounted(small, "64k"):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        store, world = Store(f"sqlite:///{tmp_path / 'lifelist.db'}"), World(loaded)
        queue = Queue(store, Blobs(open_storage(small)), wide(per_hour=10_000))
        watcher = Watcher(store, Registry(str(tmp_path / "registry")), OPTIONS, world.outside(), seed=0, queue=queue)
        for k in range(8):
            watcher.look(NOON + k)  # raises nothing
        assert notices.lost(store)["images"] > 0
        assert notices.lost(store)["answers"] == 0
        waits = queue.waiting(1000)
        assert 0 < len(waits) < world.handed_over
        assert all(queue.image(one.prediction_id) for one in waits)  # no row without its image
        counted = figures.over(figures.read(store, 0, 2 * NOON, sources=("estimated",), groups=("all",)), None)
        assert counted[0].images == world.handed_over
        assert any("images could not be" in one.message for one in notices.told(store, kinds=("lost",)))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_what_a_replica_holds_is_bounded_whatever_answers_and_however_long_nobody_asks(tmp_path: Path) -> None:
    registry, observed = Registry(str(tmp_path / "registry")), Observed()
    answered = 0
    for number in range(3 * MOST_SAMPLES):
        loaded = session.load(registry, tiny_version(registry, seed=number).version, provider="cpu")
        pixels = images(64, seed=number)
        logits, embedding = loaded.run(pixels)
        rankings = loaded.linear(logits, 1)
        answer = Answer(loaded, pixels, [16] * len(pixels), "linear", rankings, logits, embedding, None, 0, 0)
        for _ in range(20):
            observed.note(answer, [str(k) for k in range(64)])
            answered += 64
    taken = observed.take()
    assert len(taken) == MOST_SAMPLES
    assert {one.key[0] for one in taken} == set(range(3 * MOST_SAMPLES - MOST_SAMPLES + 1, 3 * MOST_SAMPLES + 1))
    assert all(one.answered == 20 * 64 for one in taken)
    held = sum(len(row[3]) + len(row[4]) + len(row[5]) for one in taken for row in one.rows)
    assert held <= MOST_SAMPLES * MOST_BYTES


def test_the_operator_says_503_while_the_database_is_locked_and_metrics_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BUSY_TIMEOUT_MS", 100)
    with serving(tmp_path / "home") as server, Client(server.url, patience_s=0) as client:
        made = client.classify(encoded(tiny_images()[0]))["images"][0]["prediction_id"]
        with locked(server.settings.home / "lifelist.db"):
            with pytest.raises(Unavailable, match="the database cannot be used now: locked, full, or away"):
                client.feedback(made, "heron")
            assert client.classify(encoded(tiny_images()[0]))["version"] == 1
            page = client.metrics()
            assert "lifelist_database_up 1.0" in page  # it can be read
            assert "lifelist_database_writable 0.0" in page
        assert client.feedback(made, "heron")["correct"]
        eventually(lambda: "lifelist_database_writable 1.0" in client.metrics())
        for name in ("lifelist.db", "lifelist.db-wal"):
            file = server.settings.home / name
            file.write_bytes(b"no database at all" * 1000)
        server.workshop.store.close()
        page = client.metrics()
        assert "lifelist_database_up 0.0" in page
        assert 'lifelist_requests_total{code="200",replica="one"} 2.0' in page


def test_a_database_that_is_locked_for_long_costs_no_answer_of_a_real_server(tmp_path: Path) -> None:
    """Two replicas under load; another process holds the database's lock for ten seconds."""
    home = tmp_path / "home"
    tiny_version(Registry(str(home / "registry")), live=True)
    with started(home, "--serving.replicas", "2", "--monitoring.every-s", "0.2") as server:
        with Load(server, clients=2) as load:
            eventually(lambda: len(load.answered) > 50)
            with locked(home / "lifelist.db"):
                begins = time.time()
                time.sleep(10)
                ends = time.time()
            time.sleep(2)
        assert load.failures == []
        during = [seconds for at, _, seconds in load.answered if begins <= at <= ends]
        before = [seconds for at, _, seconds in load.answered if at < begins]
        assert len(during) > 100
        assert np.quantile(during, 0.99) < max(1.0, 3 * np.quantile(before, 0.99))
        with Client(server.url) as client:
            assert "lifelist_database_up 1.0" in client.metrics()
