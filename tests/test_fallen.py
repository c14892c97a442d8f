"""A swap that costs accuracy is taken back by itself, once, and only if it is certain; an operator's word stands."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts_rollout import add, learn, prepared
from parts_watching import label, values
from prometheus_client import CollectorRegistry
from test_watcher import NOON, World, told, watcher

from lifelist.deploy import enrol, withdrawn
from lifelist.deploy.quality import Quality
from lifelist.deploy.workshop import Workshop
from lifelist.exporter import answering, index, session
from lifelist.exporter.errors import Moved, Unavailable
from lifelist.exporter.manifest import Manifest
from lifelist.monitoring import fallen, feedback, intervals, notices
from lifelist.monitoring.intervals import Change, Share
from lifelist.monitoring.watcher import Outside, Watcher


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return prepared(tmp_path, count=200)


class Acting(World):
    """The same world, which may be rolled back."""

    def outside(self) -> Outside:
        def roll_back(version: int, generation: int) -> None:
            withdrawn.make_live(self.workshop, version, generation)

        return replace(super().outside(), roll_back=roll_back)


@pytest.fixture
def world(workshop: Workshop) -> Acting:
    return Acting(workshop)


def live(world: World) -> int:
    found = world.workshop.live
    assert found is not None
    return found.version


def broken(workshop: Workshop, live: Manifest) -> Manifest:
    """A version that takes each class for another: their means are exchanged."""
    loaded = session.load(workshop.registry, live.version)
    files = {answering.MEANS: index.build(loaded.means.ids, loaded.means.means()[::-1])}
    draft = replace(live, version=0, kind="change", parent=live.version, default_answer="nearest_mean")
    shared = [entry for entry in live.files if entry.name not in files]
    return workshop.registry.publish(draft, files, reuse=shared)


def harm(world: World, looks: Watcher, at: float) -> int:
    """A version that takes one class for the other goes live, and is looked at."""
    before = world.workshop.live
    ref = world.workshop.registry.ref("live")
    assert before is not None
    assert ref is not None
    bad = broken(world.workshop, before)
    world.workshop.swap(bad.version, ref.generation)
    looks.look(at)
    return bad.version


def test_a_version_that_a_probe_finds_worse_is_rolled_back_and_says_so(world: Acting) -> None:
    page = CollectorRegistry()
    Quality(world.workshop.store, world.workshop.registry, page)
    looks = watcher(world, rollback="on")
    looks.look(NOON)
    bad = harm(world, looks, time.time())
    assert live(world) == 1
    assert values(page, "lifelist_notices_total")["rollback",] == 1  # the alert LifelistRolledBack asks for it
    kinds = [kind for kind, version in told(world) if version == bad]
    assert kinds.count("rollback") == 1
    notice = next(one for one in notices.told(world.workshop.store) if one.kind == "rollback")
    assert notice.data["source"] == "probe"
    assert notice.data["before"] == 1
    assert notice.data["high"] < -0.02
    assert "version 1 is live again, by itself" in notice.message
    lost = f"right {-100 * notice.data['change']:.1f} points less often than version 1"
    assert lost in notice.message  # a loss of 20 % could be one of 80 % to 64 %, too
    looks.look(time.time())
    assert live(world) == 1  # and what was before is not rolled back in turn


def test_an_operator_who_promotes_it_again_has_the_last_word(world: Acting) -> None:
    looks = watcher(world, rollback="on")
    looks.look(NOON)
    bad = harm(world, looks, time.time())
    assert live(world) == 1
    withdrawn.make_live(world.workshop, bad)
    for _ in range(3):
        looks.look(time.time() + 1)
    assert live(world) == bad
    add(world.workshop, ["blue"], count=20)  # what is made of it since stands, too
    enrolled = enrol.enrol(world.workshop)
    assert enrolled is not None
    looks.look(time.time() + 2)
    assert live(world) == enrolled.version
    assert [kind for kind, _ in told(world)].count("rollback") == 1


def test_with_tell_it_is_told_once_and_nothing_moves(world: Acting) -> None:
    looks = watcher(world, rollback="tell", probe_every_s=1)
    looks.look(NOON)
    bad = harm(world, looks, time.time())
    for k in range(1, 4):
        looks.look(time.time() + 2 * k)
    assert live(world) == bad
    assert [kind for kind, _ in told(world)].count("rollback-advised") == 1
    advice = next(one for one in notices.told(world.workshop.store) if one.kind == "rollback-advised")
    assert "lifelist versions promote 1" in advice.message


def test_with_off_nothing_is_told_but_the_alarm(world: Acting) -> None:
    looks = watcher(world, rollback="off")
    looks.look(NOON)
    bad = harm(world, looks, time.time())
    assert live(world) == bad
    assert not {"rollback", "rollback-advised"} & {kind for kind, _ in told(world)}


def test_after_the_set_time_a_swap_stays(world: Acting) -> None:
    looks = watcher(world, rollback="on", rollback_within_s=100)
    looks.look(NOON)
    bad = harm(world, looks, time.time() + 200)
    assert live(world) == bad


def test_enrolments_on_a_harmful_model_are_rolled_back_to_what_was_before_it(world: Acting) -> None:
    """The model that harms came one swap earlier: what is live is an enrolment upon it."""
    looks = watcher(world, rollback="on")
    looks.look(NOON)
    shop = world.workshop
    assert learn(shop, "blue", count=100).state == "done"
    assert fallen.swaps(shop.registry)[0].before.version == 1
    add(shop, ["yellow"], count=20)
    assert enrol.enrol(shop) is not None
    found = fallen.swaps(shop.registry)
    assert [(one.version.version, one.before.version) for one in found] == [(3, 2), (3, 1)]


def test_who_moves_live_first_wins(world: Acting) -> None:
    """An operator promotes another version between the judgement and the act."""
    shop = world.workshop
    before = shop.live
    assert before is not None
    first, second = broken(shop, before), broken(shop, before)
    shop.swap(first.version, 1)
    shop.swap(second.version, 2)
    with pytest.raises(Moved, match="no longer at generation 2"):
        withdrawn.make_live(shop, 1, 2)
    assert live(world) == second.version

    class Late(Acting):
        def outside(self) -> Outside:
            def roll_back(version: int, generation: int) -> None:
                withdrawn.make_live(self.workshop, second.version)
                withdrawn.make_live(self.workshop, version, generation)

            return replace(super().outside(), roll_back=roll_back)

    looks = watcher(Late(shop), rollback="on")
    withdrawn.make_live(shop, 1)
    looks.look(time.time())
    third = harm(world, looks, time.time())
    assert third > second.version
    assert live(world) == second.version  # the operator's
    assert "rollback" not in {kind for kind, _ in told(world)}


def test_a_rollback_that_fails_raises_an_alarm_and_is_made_as_soon_as_it_can_be(world: Acting) -> None:
    class NoReplica(Acting):
        there = False

        def outside(self) -> Outside:
            really = super().outside().roll_back
            assert really is not None

            def roll_back(version: int, generation: int) -> None:
                if not self.there:
                    raise Unavailable("the replicas could not load version 1: none is running")
                really(version, generation)

            return replace(super().outside(), roll_back=roll_back)

    broken_world = NoReplica(world.workshop)
    looks = watcher(broken_world, rollback="on", probe_every_s=0)
    looks.look(NOON)
    began = time.time()
    bad = harm(broken_world, looks, began)
    assert live(broken_world) == bad
    assert "rollback.failed" in {one.name for one in notices.alarms(world.workshop.store) if one.state == "raised"}
    broken_world.there = True
    looks.look(began + 31)
    assert live(broken_world) == 1
    assert "rollback.failed" not in {one.name for one in notices.alarms(world.workshop.store) if one.state == "raised"}


def labelled(
    world: World, version: int, right: int, wrong: int, at: float, audited: bool = False, via: str = ""
) -> None:
    """Labels of answers that a version gave, all sent at once."""
    weight, store = 10.0 if audited else 0.0, world.workshop.store
    for number in range(right + wrong):
        name, truth = f"{version}-{at}-{audited}-{via}-{number}", 1 if number < right else 2
        label(store, name, version, 1, truth, at, weight=weight, via=via)


@pytest.mark.parametrize(
    ("labels", "rolled_back"),
    [
        ((190, 10, 60, 40), True),
        ((190, 10, 95, 5), False),
        ((190, 10, 49, 50), False),  # too few
        ((95, 5, 88, 12), False),  # the point is lower, its interval is not
    ],
)
def test_labels_that_come_after_a_swap_decide_by_their_interval(
    world: Acting, labels: tuple[int, int, int, int], rolled_back: bool
) -> None:
    looks = watcher(world, rollback="on", probe_images=0)
    looks.look(time.time())
    shop = world.workshop
    before = shop.live
    assert before is not None
    now = shop.registry.publish(replace(before, version=0, kind="change", parent=1), {}, reuse=before.files)
    shop.swap(now.version, 1)
    swapped = shop.registry.history("live")[-1]
    at = fallen.times.unix(swapped.at)
    labelled(world, 1, *labels[:2], at - 30)
    labelled(world, now.version, *labels[2:], at + 30)
    looks.look(at + 60)
    assert live(world) == (1 if rolled_back else now.version)


def test_the_audit_comes_before_all_labels_and_a_review_does_not_count(world: Acting) -> None:
    looks = watcher(world, rollback="on", probe_images=0)
    looks.look(time.time())
    shop = world.workshop
    before = shop.live
    assert before is not None
    now = shop.registry.publish(replace(before, version=0, kind="change", parent=1), {}, reuse=before.files)
    shop.swap(now.version, 1)
    at = fallen.times.unix(shop.registry.history("live")[-1].at)
    labelled(world, 1, 95, 5, at - 30)
    labelled(world, now.version, 95, 5, at + 20)
    labelled(world, now.version, 0, 80, at + 20, via=feedback.REVIEW)  # the hard ones, asked for
    looks.look(at + 60)
    assert live(world) == now.version
    labelled(world, 1, 95, 5, at - 30, audited=True)
    labelled(world, now.version, 40, 60, at + 20, audited=True)
    looks.look(at + 120)
    assert live(world) == 1
    assert next(one for one in notices.told(shop.store) if one.kind == "rollback").data["source"] == "audit"


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, example (a): 56/70 - 48/80 has 0.0524 to 0.3339 by method 10."""
    found = Change.between(Share.of(48, 80), Share.of(56, 70))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert Change.between(Share.of(0, 0), Share.of(1, 2)) is None


def test_quiet_swaps_are_hardly_ever_rolled_back_although_labels_are_looked_at_again_and_again() -> None:
    """2,000 swaps that change nothing: 90 % right before and after, judged each time that labels have doubled."""
    random, fell = np.random.default_rng(0), 0
    for _ in range(2000):
        n, sides = fallen.LEAST, random.random((2, 3000)) < 0.9
        while n <= sides.shape[1]:
            before, now = (Share.of(int(side[:n].sum()), n) for side in sides)
            change = intervals.Change.between(before, now)
            assert change is not None
            if change.high < -0.02:
                fell += 1
                break
            n = int(n * fallen.GROWTH) + 1
    assert fell / 2000 < 0.02
