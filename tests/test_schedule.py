"""How a schedule is fitted to few images."""

import pytest

from lifelist.training.loop import SMALLEST_BATCH, fitted, scaled
from lifelist.training.methods import METHODS
from lifelist.training.options import TrainingOptions


@pytest.mark.parametrize(("images", "batch"), [(2, 16), (42, 16), (200, 25), (512, 64), (5000, 64)])
def test_few_images_are_learned_in_smaller_batches_at_a_lower_rate(images: int, batch: int) -> None:
    schedule = METHODS["bic"].schedules["short"].increment
    found = fitted(schedule, images)
    assert found.batch_size == batch >= SMALLEST_BATCH
    assert found.learning_rate == pytest.approx(schedule.learning_rate * (batch / schedule.batch_size) ** 0.5)
    assert found.epochs == (24 if images < 32 * 64 else 16)


def test_more_epochs_for_few_images_move_the_milestones_too_but_never_what_was_asked_for() -> None:
    schedules = METHODS["eeil"].schedules["short"]
    assert schedules.balanced is not None
    assert (schedules.balanced.epochs, schedules.balanced.milestones) == (6, (2, 4))
    found = fitted(schedules.balanced, 100)
    assert (found.epochs, found.milestones) == (9, (3, 6))
    asked = scaled(schedules.increment, TrainingOptions(epochs=5), schedules.increment)
    assert fitted(asked, 100).epochs == 5


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_schedules_are_what_they_are_however_few_the_images(name: str) -> None:
    schedule = METHODS[name].schedules["paper"].increment
    assert fitted(schedule, 10) == schedule
