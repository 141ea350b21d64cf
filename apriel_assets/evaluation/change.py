"""Did a figure change between two measurements, or is that within what both are sure of?"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


def change(new: Measured, old: Measured) -> Measured:
    """Return `new - old` with an interval of the same confidence, from the intervals of both.

    The two are taken as independent. If they were measured on the same problems, the true interval is narrower: a
    change that this one shows is real, a small one may stay hidden.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008), the MOVER method.
    """
    value = new.value - old.value
    return Measured(
        value=value,
        low=value - math.hypot(new.value - new.low, old.high - old.value),
        high=value + math.hypot(new.high - new.value, old.value - old.low),
    )


def is_worse(found: Measured, *, higher_is_better: bool) -> bool:
    """Return whether the whole interval of a change lies on the worse side of zero."""
    return found.high < 0 if higher_is_better else found.low > 0
