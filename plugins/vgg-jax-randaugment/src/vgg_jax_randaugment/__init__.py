"""RandAugment and TrivialAugment: operations drawn from a list, with a strength for all.

The operations and their strengths are torchvision's, whose magnitudes go from 0 to 30. Geometric
operations are one resampling, with grey beyond the edges as in timm.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from vgg_jax import api
from vgg_jax.api import PixelAugmentation, require

__all__ = ["OPERATIONS", "RandAugment", "TrivialAugment"]

_MOST = 30  # of a magnitude
_GREY = 0.5
_GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
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
class Strengths:
    """What operations do at a share of 1.

    Attributes:
        degrees: Of rotate.
        slant: Of shear.
        distance: Of translate, as a share of the width or height.
        blend: How far brightness, color, contrast and sharpness go from a factor of 1.
        bits: That posterize takes away.
    """

    degrees: float
    slant: float
    distance: float
    blend: float
    bits: float


# Those of torchvision 0.29: RandAugment for pictures of 224, and TrivialAugmentWide.
_RAND = Strengths(degrees=30.0, slant=0.3, distance=150.0 / 331.0, blend=0.9, bits=4.0)
_WIDE = Strengths(degrees=135.0, slant=0.99, distance=32.0 / 224.0, blend=0.99, bits=6.0)


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

        def drawn(own_key: jax.Array) -> Draw:
            pick_key, strength_key, sign_key = jax.random.split(own_key, 3)
            picked = jax.random.randint(pick_key, (), 0, len(OPERATIONS))
            magnitude = self.magnitude + self.deviation * jax.random.normal(strength_key)
            share = jnp.clip(magnitude, 0, _MOST) / _MOST
            return Draw(picked, share, _sign(sign_key))

        if not self.operations:
            return image
        draws = jax.vmap(drawn)(jax.random.split(key, self.operations))
        return transform(image, draws, _RAND)


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
        draws = Draw(picked[None], share[None], _sign(sign_key)[None])
        return transform(image, draws, _WIDE)


class Draw(NamedTuple):
    """What was drawn: scalars for one operation, `[N]` for N of them.

    Attributes:
        picked: Number of the operation in `OPERATIONS`.
        share: Its strength, in [0, 1].
        sign: Direction of those that have two, -1 or 1.
    """

    picked: jax.Array
    share: jax.Array
    sign: jax.Array


@functools.partial(jax.jit, static_argnums=2)
def transform(image: jax.Array, draws: Draw, strengths: Strengths) -> jax.Array:
    """Apply operations `[N]` to an image `[H, W, 3]`, float32 in [0, 1], one after the other.

    Vectorised, a switch computes all its branches for every picture: 18 ms a picture for two
    operations. So on a CPU `jax.vmap` of this is a loop over the pictures, in which a switch
    computes only what was drawn: 1.1 ms. An accelerator, whose cores a loop would leave idle, and
    several devices, of which each would go through all pictures, have the usual one. There is no
    gradient by the image.
    """
    function = functools.partial(_transform, strengths=strengths)
    alone = custom_vmap(function)

    @alone.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> tuple[jax.Array, bool]:
        def spread(leaf: jax.Array, has_axis: bool) -> jax.Array:
            return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))

        def loop(*batch: Any) -> jax.Array:
            return jax.lax.map(lambda one: alone(*one), batch)

        usual = jax.vmap(function)
        on_cpu = loop if jax.device_count() == 1 else usual
        batch = jax.tree.map(spread, arguments, tuple(batched))
        return jax.lax.platform_dependent(*batch, cpu=on_cpu, default=usual), True

    return alone(image, draws)


def _transform(image: jax.Array, draws: Draw, strengths: Strengths) -> jax.Array:
    def step(image: jax.Array, draw: Draw) -> tuple[jax.Array, None]:
        return _transform_once(image, draw, strengths), None

    return jax.lax.scan(step, image, draws)[0]


def _transform_once(image: jax.Array, draw: Draw, strengths: Strengths) -> jax.Array:
    """Apply one operation; the five geometric ones are one branch, a warp."""
    picked, share, sign = draw
    matrix = _matrix(image.shape, picked, share * sign, strengths)
    factor = 1 + sign * share * strengths.blend
    branches = {
        "identity": lambda: image,
        "geometric": lambda: api.warp(image, matrix, "constant", _GREY),
        "brightness": lambda: api.adjust_brightness(image, factor),
        "color": lambda: api.adjust_saturation(image, factor),
        "contrast": lambda: api.adjust_contrast(image, factor),
        "sharpness": lambda: api.adjust_sharpness(image, factor),
        "posterize": lambda: api.posterize(image, 8 - jnp.round(share * strengths.bits)),
        "solarize": lambda: jnp.where(share > 0, api.solarize(image, 1 - share), image),
        "autocontrast": lambda: api.autocontrast(image),
        "equalize": lambda: api.equalize(image),
    }
    order = list(branches)
    places = [order.index("geometric" if n in _GEOMETRIC else n) for n in OPERATIONS]
    branch = jnp.array(places)[picked]
    return jnp.clip(jax.lax.switch(branch, list(branches.values())), 0, 1)


def _sign(key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0)


def _matrix(
    shape: tuple[int, ...], picked: jax.Array, amount: jax.Array, strengths: Strengths
) -> jax.Array:
    """Return the `[3, 3]` map of the picked geometric operation; the identity for others."""

    def of(name: str, strength: float) -> jax.Array:
        return jnp.where(picked == OPERATIONS.index(name), amount * strength, 0.0)

    height, width, _ = shape
    turned = api.rotation_matrix(of("rotate", strengths.degrees))
    slants = of("shear-x", strengths.slant), of("shear-y", strengths.slant)
    sheared = jnp.eye(3).at[0, 1].set(slants[0]).at[1, 0].set(slants[1])
    moved = api.translation_matrix(
        of("translate-x", strengths.distance * width),
        of("translate-y", strengths.distance * height),
    )
    # Two of them are the identity, so this is their product, without the fewer bits that a matrix
    # product may be rounded to on an accelerator.
    return turned + (sheared - jnp.eye(3)) + (moved - jnp.eye(3))
