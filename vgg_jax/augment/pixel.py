"""Pixel augmentations: what changes values and moves nothing.

Images are float32 RGB `[H, W, 3]` in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vgg_jax.augment import functional
from vgg_jax.augment.checks import require_probability, require_range
from vgg_jax.augment.colour import sometimes
from vgg_jax.contract import PixelAugmentation, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brightness(PixelAugmentation):
    """Multiply all values by one random factor, as Keras' `brightness_range=[low, high]` does.

    Black stays black; what would exceed white becomes white. Unlike Keras, which goes through an
    8-bit picture of Pillow, nothing is rounded.

    Attributes:
        low: Smallest factor, in [0, high].
        high: Largest factor, in [low, infinity).

    Raises:
        OptionError: If `low` is negative, or `high` below `low` or not finite.
    """

    neutral: ClassVar[Mapping[str, Any] | None] = {"low": 1.0, "high": 1.0}

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        """Check the options."""
        require_range("brightness", self.low, self.high)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image made darker or brighter."""
        factor = jax.random.uniform(key, (), minval=self.low, maxval=self.high)
        return functional.adjust_brightness(image, factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelShift(PixelAugmentation):
    """Add one random offset to all values, as Keras' `channel_shift_range` does despite its name.

    Keras draws one offset for the three channels together and clips the sum to the darkest and the
    brightest value that the picture had. Its option is on the scale 0 to 255: 51 there is 0.2 here.

    Attributes:
        fraction: Largest offset either way, in [0, 1], where 1 is the distance from black to white.

    Raises:
        OptionError: If `fraction` is outside [0, 1].
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        require(
            0 <= self.fraction <= 1,
            "channel-shift",
            "fraction",
            self.fraction,
            "a number in [0, 1]",
        )

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image with the offset added."""
        offset = jax.random.uniform(key, (), minval=-self.fraction, maxval=self.fraction)
        return jnp.clip(image + offset, jnp.min(image), jnp.max(image))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBlur(PixelAugmentation):
    """Blur by a Gaussian of random width, sometimes.

    Attributes:
        low: Smallest standard deviation in pixels, in [0, high].
        high: Largest standard deviation in pixels, in [low, 10].
        probability: How often, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    low: float = 0.1
    high: float = 2.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        require_range("gaussian-blur", self.low, self.high)
        require(self.high <= 10, "gaussian-blur", "high", self.high, "at most 10 pixels")
        require_probability("gaussian-blur", self.probability)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image or the blurred one."""
        sigma_key, often_key = jax.random.split(key)
        sigma = jax.random.uniform(sigma_key, (), minval=self.low, maxval=self.high)
        radius = min(math.ceil(3 * self.high), *(size - 1 for size in image.shape[:2]))
        blurred = functional.gaussian_blur(image, sigma, radius)
        return sometimes(often_key, self.probability, jnp.clip(blurred, 0, 1), image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(PixelAugmentation):
    """Add Gaussian noise to every value, each its own.

    Attributes:
        deviation: Standard deviation, in [0, 1], where 1 is the distance from black to white.

    Raises:
        OptionError: If `deviation` is outside [0, 1].
    """

    deviation: float = 0.05

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a number in [0, 1]"
        require(0 <= self.deviation <= 1, "noise", "deviation", self.deviation, expected)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the noisy image."""
        return jnp.clip(image + self.deviation * jax.random.normal(key, image.shape), 0, 1)
