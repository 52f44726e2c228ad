"""Checks of options that several augmentations have."""

from __future__ import annotations

import math

from vgg_jax.contract import require


def require_probability(owner: str, probability: float) -> None:
    """Raise `OptionError` unless `probability` is in [0, 1]."""
    require(0 <= probability <= 1, owner, "probability", probability, "a number in [0, 1]")


def require_range(owner: str, low: float, high: float) -> None:
    """Raise `OptionError` unless 0 <= low <= high, both finite."""
    require(0 <= low < math.inf, owner, "low", low, "a number that is at least 0")
    require(low <= high < math.inf, owner, "high", high, f"a number that is at least low ({low})")


def require_pair(
    owner: str, option: str, pair: tuple[float, float], lowest: float, highest: float
) -> None:
    """Raise `OptionError` unless the numbers of a pair rise, from above `lowest` to `highest`."""
    low, high = pair
    most = "" if highest == math.inf else f" and at most {highest:g}"
    require(
        lowest < low <= high <= highest and high < math.inf,
        owner,
        option,
        list(pair),
        f"two numbers, the smaller one first, above {lowest:g}{most}",
    )
