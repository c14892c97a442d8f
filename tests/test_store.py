"""The database of the update path, on SQLite and on a real PostgreSQL: what two processes at once cannot break."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from parts_postgres import new_database, postgres

from lifelist.deploy import tables
from lifelist.deploy.records import Rollout, now
from lifelist.deploy.store import Store
from lifelist.exporter.errors import BadSetting, Conflict, Missing, Moved


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    with postgres() as place:
        yield place


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'lifelist.db'}"
    return new_database(request.getfixturevalue("server"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    with opened.writing() as connection:
        for name in ("heron", "gull", "swift"):
            connection.execute(tables.classes.insert().values(name=name, created_at=now()))
    yield opened
    opened.close()


def started(store: Store, *class_ids: int, key: str | None = None) -> Rollout:
    """A rollout that its carrier has taken from the queue."""
    return store.move(store.add_rollout("bic", class_ids or (1,), key), "intake")


def test_class_ids_rise_from_one_and_a_failed_transaction_gives_none_twice(store: Store) -> None:
    assert [known.id for known in store.classes()] == [1, 2, 3]
    with contextlib.suppress(ZeroDivisionError), store.writing() as connection:
        connection.execute(tables.classes.insert().values(name="lost", created_at=now()))
        raise ZeroDivisionError
    with store.writing() as connection:
        connection.execute(tables.classes.insert().values(name="wren", created_at=now()))
    assert (store.classes()[-1].name, store.classes()[-1].id >= 4) == ("wren", True)
    assert "lost" not in [known.name for known in store.classes()]


def test_the_id_of_a_class_whose_row_is_gone_is_not_given_again(store: Store) -> None:
    """No code of ours deletes one; an operator may."""
    with store.writing() as connection:
        connection.execute(tables.classes.insert().values(name="wren", created_at=now()))
    last = store.classes()[-1].id
    with store.writing() as connection:
        connection.execute(tables.classes.delete().where(tables.classes.c.id == last))
        connection.execute(tables.classes.insert().values(name="owl", created_at=now()))
    assert store.classes()[-1].name == "owl"
    assert store.classes()[-1].id > last


def test_of_two_who_move_the_same_rollout_one_is_told_that_it_moved(store: Store) -> None:
    rollout, won, lost = started(store), [], []
    begin = threading.Barrier(6)

    def move(number: int) -> None:
        begin.wait()
        try:
            won.append(store.move(rollout, "train", {"by": number}))
        except Moved as error:
            lost.append(str(error))

    threads = [threading.Thread(target=move, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    assert store.rollout(rollout.id).facts == won[0].facts
    assert [event.data["state"] for event in store.events(rollout.id)] == ["queued", "intake", "train"]


def test_facts_of_finished_steps_are_merged_and_the_steps_say_when_and_how_often_they_began(store: Store) -> None:
    rollout = started(store)
    assert [store.begin_step(rollout) for _ in range(3)] == [(1, 0), (2, 0), (3, 0)]  # killed twice
    assert [store.fail_step(rollout) for _ in range(2)] == [1, 2]  # apart from the kills
    assert store.begin_step(rollout) == (4, 2)
    rollout = store.move(rollout, "train", {"teacher": 7})
    assert store.begin_step(rollout) == (1, 0)
    rollout = store.move(rollout, "export", {"seconds": 1.5}, version=3)
    assert rollout.facts == {"teacher": 7, "seconds": 1.5}
    assert rollout.version == 3
    steps = store.steps(rollout.id)
    assert [(s.state, s.attempts, s.facts) for s in steps] == [
        ("intake", 4, {"teacher": 7}),
        ("train", 1, {"seconds": 1.5}),
    ]
    assert all(s.ended_at is not None and s.began_at <= s.ended_at for s in steps)


def test_a_line_of_the_trainer_becomes_an_event_once(store: Store) -> None:
    rollout = started(store)
    with ThreadPoolExecutor(6) as pool:
        new = list(pool.map(lambda _: store.tell(rollout.id, "epoch", {"epoch": 1}, position=0), range(6)))
    assert sorted(new) == [False] * 5 + [True]
    assert store.tell(rollout.id, "epoch", {"epoch": 2}, position=80)
    assert store.last_position(rollout.id) == 80
    assert [e.data["epoch"] for e in store.events(rollout.id) if e.kind == "epoch"] == [1, 2]
    latest = store.latest_event(rollout.id, "epoch")
    assert latest is not None
    assert latest.data == {"epoch": 2}


def test_a_reader_who_asks_for_events_after_the_last_it_saw_misses_none_while_others_write(store: Store) -> None:
    rollout, seen = started(store), []
    done = threading.Event()

    def read() -> None:
        last = 0
        while True:
            ending = done.is_set()
            for event in store.events(rollout.id, after=last):
                last = event.id
                seen.append(event.id)
            if ending:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: store.tell(rollout.id, "epoch", {"epoch": k}), range(40)))
    done.set()
    reader.join()
    assert seen == [event.id for event in store.events(rollout.id)]
    assert len(seen) == 42


def test_a_queued_rollout_is_cancelled_at_once_and_again_is_the_same(store: Store) -> None:
    rollout = store.add_rollout("bic", [1])
    assert store.request_cancel(rollout.id).state == "cancelled"
    assert store.request_cancel(rollout.id).state == "cancelled"
    assert [event.kind for event in store.events(rollout.id)] == ["state", "cancel-requested", "ended"]
    with pytest.raises(Missing, match="no increment has id 99"):
        store.request_cancel(99)


def test_once_cancellation_is_asked_for_a_rollout_can_only_end(store: Store) -> None:
    rollout = started(store)
    assert store.request_cancel(rollout.id).cancel_requested
    with pytest.raises(Moved, match="is to be cancelled"):
        store.move(rollout, "train")
    assert store.move(rollout, "cancelled").state == "cancelled"


@pytest.mark.parametrize(("state", "why"), [("swap", "going live"), ("tidy", "going live"), ("done", "ended")])
def test_what_is_going_live_or_has_ended_cannot_be_cancelled(store: Store, state: str, why: str) -> None:
    rollout = store.move(started(store), state)
    with pytest.raises(Conflict, match=rf"cannot be cancelled in state '{state}': it .*{why}"):
        store.request_cancel(rollout.id)
    assert not store.rollout(rollout.id).cancel_requested


def test_the_same_key_asked_eight_times_at_once_queues_one_rollout(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store.add_rollout("bic", [1, 2], "key"), range(8)))
    assert {rollout.id for rollout in found} == {found[0].id}
    assert len(store.rollouts()) == 1


def test_a_class_is_in_one_open_rollout_at_most(store: Store) -> None:
    first = store.add_rollout("bic", [1, 2])
    with pytest.raises(Conflict, match=rf"\[2\] are already in increment {first.id} \(queued\)"):
        store.add_rollout("bic", [2, 3])
    store.request_cancel(first.id)
    second = store.add_rollout("bic", [2, 3])
    assert [rollout.id for rollout in store.open_rollouts()] == [second.id]


def _hold(url: str, held: "multiprocessing.synchronize.Event") -> None:
    with Store(url).exclusive() as got:
        assert got
        held.set()
        signal.pause()


def test_one_process_carries_rollouts_and_a_kill_frees_its_place(store: Store, url: str) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(url, held))
    holder.start()
    assert held.wait(60)
    with store.exclusive() as got:
        assert not got
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    for _ in range(100):  # PostgreSQL notices the lost connection a moment later
        with store.exclusive() as got:
            if got:
                break
        threading.Event().wait(0.05)
    assert got
    with store.exclusive() as again:
        assert again


def test_four_processes_open_a_new_database_at_once(url: str) -> None:
    code = f"from lifelist.deploy.store import Store; Store({url!r}).add_rollout('bic', [])"
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1].decode()[-300:] for process in running] == [""] * 4
    assert len(Store(url).rollouts()) == 4


def test_a_database_of_another_schema_is_refused(store: Store, url: str) -> None:
    with store.writing() as connection:
        connection.execute(sa.update(tables.schema).values(version=99))
    with pytest.raises(Conflict, match=f"schema 99; this program reads {tables.SCHEMA_VERSION}"):
        Store(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense", "oracle9://x"])
def test_a_database_that_cannot_be_opened_or_would_not_last_is_a_bad_setting(url: str) -> None:
    with pytest.raises(BadSetting, match=r"sqlite:///<file>"):
        Store(url)


def test_a_reader_does_not_wait_for_a_writer(store: Store) -> None:
    rollout = started(store)
    with store.writing() as connection:
        connection.execute(tables.rollouts.update().values(reason="not yet"))
        assert store.rollout(rollout.id).reason is None  # answered at once, from before the writer's transaction
