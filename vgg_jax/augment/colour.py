"""Augmentations that change colours, from the functions of `vgg_jax.augment.functional`.

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
from vgg_jax.contract import PixelAugmentation, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(PixelAugmentation):
    """Move all values away from the picture's mean grey, or towards it, by one random factor.

    Attributes:
        low: Smallest factor, in [0, high]; 0 is grey, 1 is the picture.
        high: Largest factor, in [low, infinity).

    Raises:
        OptionError: If `low` is negative, or `high` below `low` or not finite.
    """

    neutral: ClassVar[Mapping[str, Any] | None] = {"low": 1.0, "high": 1.0}

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        """Check the options."""
        require_range("contrast", self.low, self.high)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image with more contrast or less."""
        factor = jax.random.uniform(key, (), minval=self.low, maxval=self.high)
        return functional.adjust_contrast(image, factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saturation(PixelAugmentation):
    """Move all colours away from grey, or towards it, by one random factor.

    Attributes:
        low: Smallest factor, in [0, high]; 0 is grey, 1 is the picture.
        high: Largest factor, in [low, infinity).

    Raises:
        OptionError: If `low` is negative, or `high` below `low` or not finite.
    """

    neutral: ClassVar[Mapping[str, Any] | None] = {"low": 1.0, "high": 1.0}

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        """Check the options."""
        require_range("saturation", self.low, self.high)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image with stronger colours or weaker ones."""
        factor = jax.random.uniform(key, (), minval=self.low, maxval=self.high)
        return functional.adjust_saturation(image, factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hue(PixelAugmentation):
    """Turn all colours round the colour circle by one random angle.

    Attributes:
        fraction: Largest turn either way, in [0, 0.5], as a share of the circle.

    Raises:
        OptionError: If `fraction` is outside [0, 0.5].
    """

    fraction: float = 0.05

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a number in [0, 0.5]"
        require(0 <= self.fraction <= 0.5, "hue", "fraction", self.fraction, expected)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image with its hues turned."""
        turn = jax.random.uniform(key, (), minval=-self.fraction, maxval=self.fraction)
        return functional.adjust_hue(image, turn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter(PixelAugmentation):
    """Change brightness, contrast, saturation and hue, as torchvision's `ColorJitter` does.

    Always in this order, while torchvision draws one: a drawn order would have every picture of a
    batch go through all of them.

    Attributes:
        brightness: Largest change of the factor from 1, in [0, infinity); no factor is below 0.
        contrast: The same for contrast, in [0, infinity).
        saturation: The same for saturation, in [0, infinity).
        hue: Largest turn either way, in [0, 0.5], as a share of the colour circle.

    Raises:
        OptionError: If a value is negative or not finite, or `hue` above 0.5.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            require(0 <= value < math.inf, "color-jitter", name, value, "a number of at least 0")
        require(0 <= self.hue <= 0.5, "color-jitter", "hue", self.hue, "a number in [0, 0.5]")

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image with its colours changed."""
        changes = (
            (functional.adjust_brightness, self.brightness),
            (functional.adjust_contrast, self.contrast),
            (functional.adjust_saturation, self.saturation),
        )
        keys = jax.random.split(key, len(changes) + 1)
        for own_key, (change, strength) in zip(keys, changes, strict=False):
            if strength > 0:
                low, high = max(0.0, 1 - strength), 1 + strength
                image = change(image, jax.random.uniform(own_key, (), minval=low, maxval=high))
        if self.hue > 0:
            turn = jax.random.uniform(keys[-1], (), minval=-self.hue, maxval=self.hue)
            image = functional.adjust_hue(image, turn)
        return image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grayscale(PixelAugmentation):
    """Take the colours away, sometimes.

    Attributes:
        probability: How often, in [0, 1].

    Raises:
        OptionError: If `probability` is outside [0, 1].
    """

    probability: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        require_probability("grayscale", self.probability)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image or its greys."""
        return sometimes(key, self.probability, functional.grayscale(image), image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoContrast(PixelAugmentation):
    """Stretch each channel over the whole range from black to white, sometimes.

    Attributes:
        probability: How often, in [0, 1].

    Raises:
        OptionError: If `probability` is outside [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        require_probability("autocontrast", self.probability)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image or the stretched one."""
        return sometimes(key, self.probability, functional.autocontrast(image), image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalize(PixelAugmentation):
    """Spread each channel's values evenly over the range, sometimes, as Pillow does, in 8 bits.

    Attributes:
        probability: How often, in [0, 1].

    Raises:
        OptionError: If `probability` is outside [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        require_probability("equalize", self.probability)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image or the equalised one."""
        return sometimes(key, self.probability, functional.equalize(image), image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posterize(PixelAugmentation):
    """Keep fewer bits of each value, sometimes.

    Attributes:
        bits: How many of the 8 are kept, in [0, 8].
        probability: How often, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    bits: int = 4
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a whole number in [0, 8]"
        require(0 <= self.bits <= 8, "posterize", "bits", self.bits, expected)
        require_probability("posterize", self.probability)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image or the one of fewer levels."""
        return sometimes(key, self.probability, functional.posterize(image, self.bits), image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solarize(PixelAugmentation):
    """Invert the bright values, sometimes.

    Attributes:
        threshold: Values of at least this are inverted, in [0, 1].
        probability: How often, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    threshold: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a number in [0, 1]"
        require(0 <= self.threshold <= 1, "solarize", "threshold", self.threshold, expected)
        require_probability("solarize", self.probability)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image or the solarised one."""
        return sometimes(key, self.probability, functional.solarize(image, self.threshold), image)


def sometimes(
    key: jax.Array, probability: float, changed: jax.Array, image: jax.Array
) -> jax.Array:
    """Return `changed` with a probability in [0, 1], else `image`."""
    return jnp.where(jax.random.uniform(key) < probability, changed, image)
