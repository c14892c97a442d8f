"""How much one caller may have in how much time: a bucket for each, which fills evenly."""

import math
import time
from collections.abc import Callable

from lifelist.exporter.errors import TooOften


class Buckets:
    """What each caller may still take. Kept in this process alone: a new one starts with full buckets.

    per_second  what flows into each bucket; 0: there is no limit
    holds       what a full one holds, so what may be taken at once
    """

    def __init__(self, per_second: float, holds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.holds, self.clock = per_second, holds, clock
        self._left: dict[str, tuple[float, float]] = {}  # caller → what was left, and when

    def take(self, caller: str, amount: float, what: str) -> None:
        """TooOften if the caller's bucket has less than that; `what` is the limit, in words."""
        if not self.per_second:
            return
        now = self.clock()
        left, at = self._left.get(caller, (self.holds, now))
        left = min(self.holds, left + (now - at) * self.per_second)
        if left < amount:
            wait = math.ceil((min(amount, self.holds) - left) / self.per_second)
            raise TooOften(f"more than {what}, the limit of one caller; send it again in {wait} s", retry_after_s=wait)
        self._left[caller] = left - amount, now
