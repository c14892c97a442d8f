"""How a schedule is fitted to few images."""

import pytest

from lifelist.training.loop import SMALLEST_BATCH, fitted, scaled
from lifelist.training.methods import METHODS
from lifelist.training.options import TrainingOptions


@pytest.mark.parametrize(("images", "batch"), [(2, 16), (42, 16), (200, 25), (512, 64), (2000, 64)])
def test_few_images_get_more_epochs_in_smaller_batches_at_a_lower_rate(images: int, batch: int) -> None:
    schedule = METHODS["bic"].schedules["short"].increment
    found = fitted(schedule, images)
    assert found.batch_size == batch >= SMALLEST_BATCH
    assert found.learning_rate == pytest.approx(0.1 * (batch / 64) ** 0.5)
    assert (schedule.epochs, found.epochs) == (16, 24)


def test_enough_images_are_learned_as_the_schedule_says() -> None:
    schedule = METHODS["bic"].schedules["short"].increment
    assert fitted(schedule, 2048) == schedule


def test_epochs_and_rate_are_those_asked_for_however_few_the_images() -> None:
    schedule = METHODS["bic"].schedules["short"].increment
    asked = scaled(schedule, TrainingOptions(epochs=5, learning_rate=0.3), schedule)
    assert fitted(asked, 1000).epochs == 5
    assert fitted(asked, 1000).learning_rate == 0.3


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_schedules_are_what_they_are_however_few_the_images(name: str) -> None:
    schedule = METHODS[name].schedules["paper"].increment
    assert fitted(schedule, 10) == schedule
