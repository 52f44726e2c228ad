"""RandAugment and TrivialAugment: operations drawn from a list, with a strength for all.

The operations and their strengths are torchvision's, whose magnitudes go from 0 to 30. Geometric
operations are one resampling, with grey beyond the edges as in timm.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vgg_jax import api
from vgg_jax.api import PixelAugmentation, require

__all__ = ["OPERATIONS", "RandAugment", "TrivialAugment"]

_MOST = 30  # of a magnitude
_GREY = 0.5
_GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
# From the identity (0) to the strongest (30): torchvision 0.29, RandAugment for pictures of 224.
_RAND_STRENGTHS = {
    "rotate": 30.0,  # degrees
    "shear-x": 0.3,
    "shear-y": 0.3,
    "translate-x": 150.0 / 331.0,  # of the width
    "translate-y": 150.0 / 331.0,
    "brightness": 0.9,
    "color": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
}
_RAND_BITS = 4.0  # that posterize takes away
# The same of TrivialAugmentWide; distances are of 224 pixels.
_WIDE_STRENGTHS = {
    "rotate": 135.0,
    "shear-x": 0.99,
    "shear-y": 0.99,
    "translate-x": 32.0 / 224.0,
    "translate-y": 32.0 / 224.0,
    "brightness": 0.99,
    "color": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
}
_WIDE_BITS = 6.0
OPERATIONS = (
    "identity",
    *_GEOMETRIC,
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(PixelAugmentation):
    """Apply some operations, drawn anew for each picture (Cubuk et al., 2020).

    Attributes:
        operations: How many, one after the other, in [0, 10]; the paper's N.
        magnitude: How strong each is, in [0, 30]; the paper's M. At 0 most do nothing, but for
            autocontrast and equalize, which have no strength.
        deviation: Standard deviation of the magnitude, in [0, 30], as timm's `mstd`; 0 for always
            the same.

    Raises:
        OptionError: If an option is out of range.
    """

    neutral = {"operations": 0}  # noqa: RUF012 (shared, never changed)

    operations: int = 2
    magnitude: float = 9.0
    deviation: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a whole number in [0, 10]"
        require(0 <= self.operations <= 10, "randaugment", "operations", self.operations, expected)
        for name in ("magnitude", "deviation"):
            value = getattr(self, name)
            require(0 <= value <= _MOST, "randaugment", name, value, f"a number in [0, {_MOST}]")

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image `[H, W, 3]` after the operations."""
        for own_key in jax.random.split(key, self.operations):
            pick_key, strength_key, sign_key = jax.random.split(own_key, 3)
            picked = jax.random.randint(pick_key, (), 0, len(OPERATIONS))
            magnitude = self.magnitude + self.deviation * jax.random.normal(strength_key)
            share = jnp.clip(magnitude, 0, _MOST) / _MOST
            sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
            image = transform(image, picked, share, sign, _RAND_STRENGTHS, _RAND_BITS)
        return image


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrivialAugment(PixelAugmentation):
    """Apply one operation with one strength, both drawn (Müller and Hutter, 2021; the wide ranges).

    There is nothing to tune.

    Attributes:
        probability: How often, in [0, 1].

    Raises:
        OptionError: If `probability` is outside [0, 1].
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a number in [0, 1]"
        require(
            0 <= self.probability <= 1, "trivialaugment", "probability", self.probability, expected
        )

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image `[H, W, 3]` after the operation."""
        pick_key, strength_key, sign_key, often_key = jax.random.split(key, 4)
        picked = jax.random.randint(pick_key, (), 0, len(OPERATIONS))
        picked = jnp.where(jax.random.uniform(often_key) < self.probability, picked, 0)
        share = jax.random.randint(strength_key, (), 0, _MOST + 1) / _MOST
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        return transform(image, picked, share, sign, _WIDE_STRENGTHS, _WIDE_BITS)


def transform(
    image: jax.Array,
    picked: jax.Array,
    share: jax.Array,
    sign: jax.Array,
    strengths: dict[str, float],
    bits: float,
) -> jax.Array:
    """Apply one of `OPERATIONS` to an image `[H, W, 3]`.

    Vectorised over a batch all branches are computed; so the five geometric ones are one, and one
    warp.

    Args:
        image: float32 in [0, 1].
        picked: Number of the operation.
        share: Its strength, in [0, 1].
        sign: Direction of those that have two, -1 or 1.
        strengths: Of each at a share of 1.
        bits: That posterize takes away at a share of 1.
    """

    def factor(name: str) -> jax.Array:
        return 1 + sign * share * strengths[name]

    geometric = jnp.isin(picked, jnp.array([OPERATIONS.index(name) for name in _GEOMETRIC]))
    matrix = _matrix(image.shape, picked, share * sign, strengths)
    branches = {
        "brightness": lambda: api.adjust_brightness(image, factor("brightness")),
        "color": lambda: api.adjust_saturation(image, factor("color")),
        "contrast": lambda: api.adjust_contrast(image, factor("contrast")),
        "sharpness": lambda: api.adjust_sharpness(image, factor("sharpness")),
        "posterize": lambda: api.posterize(image, 8 - jnp.round(share * bits)),
        "solarize": lambda: jnp.where(share > 0, api.solarize(image, 1 - share), image),
        "autocontrast": lambda: api.autocontrast(image),
        "equalize": lambda: api.equalize(image),
    }
    found = image
    for name, branch in branches.items():
        found = jnp.where(picked == OPERATIONS.index(name), branch(), found)
    warped = api.warp(image, matrix, "constant", _GREY)
    return jnp.clip(jnp.where(geometric, warped, found), 0, 1)


def _matrix(
    shape: tuple[int, ...], picked: jax.Array, amount: jax.Array, strengths: dict[str, float]
) -> jax.Array:
    """Return the `[3, 3]` map of the picked geometric operation; the identity for others."""

    def of(name: str) -> jax.Array:
        return jnp.where(picked == OPERATIONS.index(name), amount * strengths[name], 0.0)

    height, width, _ = shape
    turned = api.rotation_matrix(of("rotate"))
    sheared = jnp.eye(3).at[0, 1].set(of("shear-x")).at[1, 0].set(of("shear-y"))
    moved = api.translation_matrix(of("translate-x") * width, of("translate-y") * height)
    # Only one of them is not the identity, so that their order does not matter.
    return turned @ sheared @ moved
