"""Training that diverges stops with the reason; the version that is live stays live, and the next increment works."""

from dataclasses import replace
from pathlib import Path

import pytest
from parts_rollout import learn, prepared, settings
from parts_training import TINY, small_phase, tasks

from lifelist.deploy import rollout
from lifelist.exporter.errors import Failed
from lifelist.training import loop, network
from lifelist.training.loop import Teacher, guessing

FAST = replace(TINY, network="small", batch_size=16, epochs=8)


def test_an_absurd_learning_rate_stops_training_and_names_the_terms_and_what_helps() -> None:
    """The loss stays a number here: it is its size that says so."""
    told: list[loop.Event] = []
    with pytest.raises(
        Failed, match=r"diverged in epoch \d of 'main': the loss became classify_new .*distil_old"
    ) as found:
        tasks(replace(FAST, learning_rate=100.0), groups=((0, 1, 2),), on_event=told.append)
    assert "nan" not in str(found.value)
    assert "guessing gives 1.1 in all. A lower learning_rate may help: it went up to 100" in str(found.value)
    assert len([event for event in told if event["kind"] == "epoch"]) < 8  # at the epoch, not at the end


def test_a_loss_that_is_no_number_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.increment_loss
    monkeypatch.setattr(loop, "increment_loss", lambda *given: original(*given) * float("nan"))
    monkeypatch.setattr(loop, "guessing", lambda *given: 1.0)
    with pytest.raises(Failed, match="diverged in epoch 1 of 'main': the loss became classify_new nan"):
        tasks(FAST, groups=((0, 1, 2),))


@pytest.mark.parametrize(("method", "wanted"), [("bic", 0.5 * 1.3863 + 0.5 * 0.6931), ("icarl", 4 * 0.6931 / 100)])
def test_what_guessing_gives_is_the_loss_of_answers_that_are_all_0(method: str, wanted: float) -> None:
    """bic: log 4 over all outputs, log 2 over the old ones, and λ = 1/2; icarl: log 2 for each output, over 100."""
    teacher = Teacher(network.build("resnet32", classes=2, image_size=8, seed=0))
    assert guessing(small_phase(method, teacher, 2, 4), 4) == pytest.approx(wanted, abs=1e-4)


def test_an_increment_that_diverges_fails_with_the_reason_and_the_next_one_works(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, learning_rate=100.0)
    before = workshop.registry.ref("live")
    ended = learn(workshop, "blue", method="replay")
    assert ended.state == "failed"
    assert "in step 'train': training diverged in epoch" in (ended.reason or "")
    assert "a lower learning_rate may help" in (ended.reason or "").lower()
    assert workshop.registry.ref("live") == before
    assert workshop.registry.versions() == [1]
    again = rollout.start(replace(workshop, settings=settings(tmp_path)))
    ended = rollout.carry_all(replace(workshop, settings=settings(tmp_path)))[-1]
    assert (ended.id, ended.state, ended.version) == (again.id, "done", 2)
