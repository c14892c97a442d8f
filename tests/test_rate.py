"""What one caller may have in how much time."""

import pytest

from lifelist.exporter.errors import TooOften
from lifelist.serving.rate import Buckets


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_what_it_holds_at_once_and_then_what_flows_in() -> None:
    clock = Clock()
    buckets = Buckets(2, holds=3, clock=clock)
    for _ in range(3):
        buckets.take("a", 1, "x")
    with pytest.raises(TooOften, match=r"more than x, the limit of one caller; send it again in 1 s") as refused:
        buckets.take("a", 1, "x")
    assert refused.value.retry_after_s == 1
    clock.now += 0.5
    buckets.take("a", 1, "x")
    with pytest.raises(TooOften):
        buckets.take("a", 1, "x")
    clock.now += 1000  # it does not overflow
    for _ in range(3):
        buckets.take("a", 1, "x")
    with pytest.raises(TooOften):
        buckets.take("a", 1, "x")


def test_each_caller_has_a_bucket_of_its_own() -> None:
    buckets = Buckets(1, holds=1, clock=Clock())
    buckets.take("a", 1, "x")
    buckets.take("b", 1, "x")
    with pytest.raises(TooOften):
        buckets.take("a", 1, "x")


def test_what_is_refused_takes_nothing_and_is_told_when_to_come_again() -> None:
    clock = Clock()
    buckets = Buckets(1, holds=10, clock=clock)
    buckets.take("a", 4, "x")
    with pytest.raises(TooOften) as refused:
        buckets.take("a", 9, "x")
    assert refused.value.retry_after_s == 3
    buckets.take("a", 6, "x")


def test_without_a_limit_anything_goes() -> None:
    buckets = Buckets(0, holds=0, clock=Clock())
    for _ in range(1000):
        buckets.take("a", 1e9, "x")
    assert buckets._left == {}  # and nothing is kept of anybody
