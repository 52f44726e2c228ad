"""Pixel augmentations: what changes values and moves nothing.

Images are float32 RGB `[H, W, 3]` in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from vgg_jax.api import PixelAugmentation, require


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

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        """Check the options."""
        require(
            0 <= self.low < math.inf, "brightness", "low", self.low, "a number that is at least 0"
        )
        expected = f"a number that is at least low ({self.low})"
        require(self.low <= self.high < math.inf, "brightness", "high", self.high, expected)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image made darker or brighter."""
        factor = jax.random.uniform(key, (), minval=self.low, maxval=self.high)
        return jnp.clip(image * factor, 0, 1)


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
