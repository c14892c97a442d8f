"""What starts an increment by itself: nothing unless it is set, and never twice with the same images."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from parts_operator import files, serving
from parts_rollout import add, prepared

from lifelist import Client
from lifelist.deploy import cli_quality, examples, rollout, tables, triggers, verdicts, watch
from lifelist.deploy.cli import main
from lifelist.deploy.settings import GateCheck
from lifelist.deploy.sources import load
from lifelist.deploy.triggers import Decision, Situation, Starter, decide, dry_run
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import BadSetting
from lifelist.monitoring import notices, times, unknowns
from lifelist.monitoring.figures import DAY, HOUR
from lifelist.monitoring.options import MonitoringOptions, TriggerOptions
from lifelist.monitoring.unknowns import Stretch

NOON = 1_800_000_000.0 - 1_800_000_000.0 % DAY + 12 * HOUR
QUIET = Situation(waiting=0, fresh=0)


def options(**given: Any) -> TriggerOptions:
    return TriggerOptions(**given)


def test_nothing_starts_an_increment_unless_it_is_set() -> None:
    busy = Situation(waiting=10_000, fresh=10_000, first_at=0, drifts=[("drift.embedding.long", 0)], unknown_since=0)
    assert decide(TriggerOptions(), busy, NOON) == Decision()
    assert not TriggerOptions().any


WAITS = Situation(waiting=50, fresh=50, first_at=NOON - 2 * HOUR)


@pytest.mark.parametrize(
    ("given", "situation", "starts"),
    [
        ({"pending_images": 50}, WAITS, True),
        ({"pending_images": 51}, WAITS, False),
        ({"every_h": 2}, WAITS, True),
        ({"every_h": 2.1}, WAITS, False),
        ({"every_h": 2}, replace(WAITS, last_began=NOON - HOUR), False),
        ({"every_h": 2}, QUIET, False),
        ({"at": "11:30"}, WAITS, True),
        ({"at": "12:30"}, replace(WAITS, first_at=NOON - HOUR), False),  # it was yesterday, before they came
        ({"at": "09:59"}, WAITS, False),
        ({"drift_h": 3}, replace(WAITS, drifts=[("drift.embedding.long", NOON - 3 * HOUR)]), True),
        ({"drift_h": 3}, replace(WAITS, drifts=[("drift.embedding.long", NOON - 2 * HOUR)]), False),
        ({"unknown_share": 0.2}, replace(WAITS, unknown_since=NOON - HOUR), True),
        ({"unknown_share": 0.2, "unknown_h": 2}, replace(WAITS, unknown_since=NOON - HOUR), False),
    ],
)
def test_each_trigger_speaks_when_it_should(given: dict[str, Any], situation: Situation, starts: bool) -> None:
    assert decide(options(**given), situation, NOON).starts == starts


@pytest.mark.parametrize(
    ("given", "change", "obstacle"),
    [
        ({}, {"running": True}, "running"),
        ({"drift_h": 1}, {"waiting": 0, "fresh": 0, "drifts": [("drift.margin.long", 0.0)]}, "no-images"),
        ({}, {"fresh": 0}, "nothing-new"),
        ({"min_distance_h": 6}, {"last_began": NOON - 5 * HOUR}, "distance"),
        ({"min_distance_h": 6}, {"last_began": NOON - 6 * HOUR}, None),
        ({"quiet_hours": "08:00-18:00"}, {}, "quiet-hours"),
        ({"quiet_hours": "22:00-12:01"}, {}, "quiet-hours"),
        ({"quiet_hours": "22:00-12:00"}, {}, None),
        ({"trainer_s_per_day": 100}, {"trained_s": 60.0, "expected_s": 41.0}, "budget"),
        ({"trainer_s_per_day": 100}, {"trained_s": 60.0, "expected_s": 40.0}, None),
    ],
)
def test_what_is_in_the_way_holds_it(given: dict[str, Any], change: dict[str, Any], obstacle: str | None) -> None:
    found = decide(options(**({"pending_images": 50} | given)), replace(WAITS, **change), NOON)
    assert found.because
    assert found.obstacle == obstacle
    assert bool(found.held) == (obstacle is not None)


@pytest.mark.parametrize(
    ("rows", "since"),
    [
        ([(0, 100, 10), (600, 100, 30), (1200, 100, 30)], 600),
        ([(0, 100, 30), (600, 100, 10), (1200, 100, 30)], 1200),
        ([(0, 100, 30), (600, 5, 0), (1200, 100, 30)], 0),  # too few to say
        ([(0, 100, 30), (600, 100, 30), (1200, 100, 20)], None),
        ([(0, 100, 30), (7200, 100, 30)], 7200),  # an hour of silence ends it
        ([], None),
    ],
)
def test_since_when_the_share_of_unknown_answers_is_above_the_level(
    rows: list[tuple[int, int, int]], since: int | None
) -> None:
    last = rows[-1][0] if rows else 0
    assert triggers.unknown_since([Stretch(*row) for row in rows], 0.2, last + 600) == since
    assert (
        triggers.unknown_since([*(Stretch(*row) for row in rows), Stretch(last + 600, 900, 0)], 0.2, last + 1199)
        == since
    )
    assert triggers.unknown_since([Stretch(*row) for row in rows], 0.2, last + 3 * HOUR) is None


def moved(workshop: Workshop, by_s: float) -> None:
    """All that was noted is so much older."""
    columns = [(tables.examples, "added_at"), (tables.rollouts, "created_at"), (tables.rollouts, "updated_at"),
               (tables.steps, "began_at"), (tables.steps, "ended_at")]  # fmt: skip
    with workshop.store.writing() as connection:
        for table, name in columns:
            key = next(iter(table.primary_key))
            for row in connection.execute(sa.select(key, table.c[name]).where(table.c[name].is_not(None))).all():
                older = times.text(times.unix(row[1]) - by_s)
                connection.execute(table.update().where(key == row[0]).values({name: older}))


def with_triggers(home: Path, gate: tuple[GateCheck, ...] | None = None, **given: Any) -> Workshop:
    return prepared(home, triggers=options(**given), **({} if gate is None else {"gate": gate}))


def test_enough_images_start_one_increment_which_says_so(tmp_path: Path) -> None:
    workshop = with_triggers(tmp_path, pending_images=10, min_distance_h=0)
    starter = Starter(workshop)
    assert not starter.look(time.time()).because
    add(workshop, ["blue"], count=20)  # 14 to train on
    assert starter.look(time.time() + 120).starts
    (started,) = workshop.store.open_rollouts()
    assert started.class_ids == (3,)
    (told,) = notices.told(workshop.store, kinds=("trigger",))
    assert told.data == {"because": "14 images wait; triggers.pending_images is 10", "increment": started.id}
    for k in range(2, 6):
        assert starter.look(time.time() + 120 * k).obstacle == "running"
    assert rollout.carry_all(workshop)[-1].state == "done"
    assert not starter.look(time.time() + 2000).because
    assert len(workshop.store.rollouts()) == 2


def test_triggers_and_verdicts_do_not_hang_on_whether_answers_are_watched(tmp_path: Path) -> None:
    given = {"triggers": options(pending_images=10, min_distance_h=0), "monitoring": MonitoringOptions(enabled=False)}
    workshop = prepared(tmp_path, **given)
    look = watch.watching(workshop.settings, workshop)
    look(time.time())
    add(workshop, ["blue"], count=20)
    look(time.time() + 120)
    assert [started.class_ids for started in workshop.store.open_rollouts()] == [(3,)]
    rollout.carry_all(workshop)
    look(time.time() + 240)
    assert [notice.kind for notice in notices.told(workshop.store)][:3] == ["swap", "gate", "trigger"]


def test_a_clock_that_is_set_back_holds_up_no_trigger(tmp_path: Path) -> None:
    workshop = with_triggers(tmp_path, pending_images=10, min_distance_h=0)
    starter = Starter(workshop)
    assert not starter.look(time.time() + 7200).because
    add(workshop, ["blue"], count=20)
    assert starter.look(time.time() + 60).starts


def test_an_increment_that_was_refused_is_not_started_again_with_the_same_images(tmp_path: Path) -> None:
    refusing = (GateCheck(check="new_class_accuracy", limit=1.01),)
    workshop = with_triggers(tmp_path, refusing, pending_images=10, min_distance_h=0)
    add(workshop, ["blue"], count=20)
    starter = Starter(workshop)
    assert starter.look(time.time()).starts
    assert rollout.carry_all(workshop)[-1].state == "rejected"
    for k in range(1, 5):
        assert starter.look(time.time() + 3600 * k).obstacle == "nothing-new"
    add(workshop, ["yellow"], count=5)
    assert starter.look(time.time() + 20_000).starts


def test_what_cannot_be_started_is_told_and_not_tried_again_at_once(tmp_path: Path) -> None:
    workshop = with_triggers(tmp_path, pending_images=10, min_distance_h=1)
    moved(workshop, 10 * HOUR)
    add(workshop, ["blue"], count=20)
    small = replace(workshop, settings=workshop.settings.model_copy(
        update={"training": replace(workshop.settings.training, memory_total=1)}))  # fmt: skip
    starter = Starter(small)
    starter.look(time.time())
    (told,) = notices.told(workshop.store, kinds=("trigger",))
    assert told.message.startswith("no increment could be started although 14 images wait")
    assert starter.look(time.time() + 120).obstacle == "distance"
    assert len(notices.told(workshop.store, kinds=("trigger",))) == 1


def test_the_dry_run_says_what_would_have_happened_and_starts_nothing(tmp_path: Path) -> None:
    """Base ten days ago; 14 images of blue came four days ago, 14 of yellow two days ago."""
    workshop = prepared(tmp_path)
    moved(workshop, 6 * DAY)
    add(workshop, ["blue"], count=20)
    moved(workshop, 2 * DAY)
    add(workshop, ["yellow"], count=20)
    moved(workshop, 2 * DAY)
    now = time.time()

    def days(**given: Any) -> list[tuple[str, float]]:
        rows = dry_run(workshop, options(**given), now)
        return [(row.decision.obstacle or "start", round((now - row.at) / DAY, 1)) for row in rows]

    assert days(pending_images=10, min_distance_h=1) == [("start", 4.0), ("start", 2.0)]
    assert days(pending_images=20, min_distance_h=1) == [("start", 2.0)]
    assert days(pending_images=10, min_distance_h=72) == [("start", 4.0), ("distance", 2.0), ("start", 1.0)]
    assert days(every_h=24, min_distance_h=0) == [("start", 3.0), ("start", 1.0)]
    assert days() == []
    assert workshop.store.open_rollouts() == []
    assert not notices.told(workshop.store, kinds=("trigger",))


def test_the_dry_run_knows_of_images_that_waited_and_were_deleted_once_learned(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, memory_total=6)
    moved(workshop, 10 * DAY)
    add(workshop, ["blue"], count=20)
    moved(workshop, 5 * DAY)
    rollout.start(workshop)
    assert rollout.carry_all(workshop)[-1].state == "done"
    kept = [one for one in examples.kept(workshop.store) if one.role == "training" and one.class_id == 3]
    assert len(kept) < 10
    first = dry_run(workshop, options(pending_images=10, min_distance_h=0), time.time())[0]
    assert (first.decision.starts, first.waiting) == (True, 14)


def test_the_dry_run_knows_when_alarms_stood_and_answers_looked_unknown(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    moved(workshop, 10 * DAY)
    add(workshop, ["blue"], count=20)
    moved(workshop, 5 * DAY)
    now = time.time()
    with workshop.store.writing() as connection:
        rows = [("alarm", 3.0), ("cleared", 2.0)]
        for kind, age in rows:
            row = {
                "at": times.text(now - age * DAY),
                "kind": kind,
                "version": 1,
                "message": "",
                "data": {"alarm": "drift.margin.long"},
            }
            connection.execute(notices.tables.notices.insert().values(row))
    for k in range(12):
        scores = triggers.np.array([0.99] * 5 + [0.5] * 5)
        unknowns.note(workshop.store, scores, 100, now - 1 * DAY + 600 * k)
    by_drift = dry_run(workshop, options(drift_h=12, min_distance_h=0), now)
    assert [round((now - row.at) / DAY, 1) for row in by_drift if row.decision.starts] == [2.5]
    assert {row.decision.obstacle for row in by_drift[1:]} <= {"no-images", None}
    by_share = dry_run(workshop, options(unknown_share=0.3, unknown_h=1, min_distance_h=0), now)
    assert [round((now - row.at) / HOUR) for row in by_share if row.decision.starts] == [23]
    assert dry_run(workshop, options(unknown_share=0.5, unknown_h=1), now) == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--triggers.at=25:00", "should be a time of day such as 02:30"),
        ("--triggers.quiet-hours=8-18", "should be two times of day such as 08:00-18:00"),
        ("--triggers.quiet-hours=08:00-08:00", "should be two times of day"),
    ],
)
def test_times_that_are_none_are_refused(flag: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=message):
        load([flag], {}, tmp_path)


def test_each_verdict_of_the_gate_is_told_once_also_after_a_restart(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    verdicts.tell(workshop.store, time.time())
    verdicts.tell(workshop.store, time.time())
    (base,) = notices.told(workshop.store, kinds=("gate",))
    assert base.message == "the gate passed increment 1"
    assert {"classes", "parity_top1"} <= {check["name"] for check in base.data["checks"]}
    refusing = (GateCheck(check="new_class_accuracy", limit=1.01),)
    again = prepared(tmp_path, gate=refusing)
    add(again, ["blue"])
    rollout.start(again)
    assert rollout.carry_all(again)[-1].state == "rejected"
    verdicts.tell(again.store, time.time())
    latest, _ = notices.told(again.store, kinds=("gate",))
    assert latest.data["passed"] is False
    assert latest.message.startswith("the gate refused increment 2: ")
    moved(again, 3 * DAY)  # long ago: who starts to watch now is not told
    with again.store.writing() as connection:
        connection.execute(notices.tables.notices.delete())
    verdicts.tell(again.store, time.time())
    assert notices.told(again.store, kinds=("gate",)) == []


def test_the_command_and_the_route_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with serving(home, triggers=options(pending_images=2)) as server, Client(server.url) as client:
        client.add_examples("wren", files(3, 12))
        found = client.triggers()
        assert (found["enabled"], found["waiting"]) == (True, 8)
        assert found["now"] is not None
        assert found["now"]["action"] == "start"
        assert found["now"]["because"] == "8 images wait; triggers.pending_images is 2"
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert main(["triggers", "--home", str(home), "--triggers.pending-images", "2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["now"]["because"] == found["now"]["because"]
        assert main(["triggers", "--home", str(home)]) == 0
        out = capsys.readouterr().out
        assert "8 images wait; nothing speaks for an increment now" in out
        assert "no trigger is set" in out
        assert server.workshop.store.open_rollouts() == []


@pytest.mark.parametrize(("until", "shown"), [("2026-11-28T14:55", "14:55"), ("2026-12-01T14:55", "2026-12-01T14:55")])
def test_a_stretch_that_ends_on_another_day_says_which(until: str, shown: str) -> None:
    row: Any = {"at": "2026-11-28T09:00:00.000Z", "until": f"{until}:00.000Z"}
    assert cli_quality._between(row) == ("2026-11-28T09:00", shown)
