"""Random erasing."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from vgg_jax.augment.checks import require_pair, require_probability
from vgg_jax.contract import PixelAugmentation, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing(PixelAugmentation):
    """Cover a random rectangle, sometimes (Zhong et al., 2017; the ranges are torchvision's).

    Attributes:
        probability: How often, in [0, 1].
        area: Smallest and largest share of the picture that is covered, each in (0, 1].
        ratio: Smallest and largest width over height of the rectangle, each in (0, infinity).
        value: Grey level of the cover, in [0, 1].
        noise: Whether the cover is noise instead, each value drawn from [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.5
    noise: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        require_probability("random-erasing", self.probability)
        require_pair("random-erasing", "area", self.area, 0, 1)
        require_pair("random-erasing", "ratio", self.ratio, 0, math.inf)
        expected = "a number in [0, 1]"
        require(0 <= self.value <= 1, "random-erasing", "value", self.value, expected)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image, perhaps with a rectangle covered."""
        height, width, _ = image.shape
        box_key, often_key, noise_key = jax.random.split(key, 3)
        area, log_ratio, x, y = jax.random.uniform(box_key, (4,))
        area = self.area[0] + area * (self.area[1] - self.area[0])
        low, high = map(math.log, self.ratio)
        ratio = jnp.exp(low + log_ratio * (high - low))
        box_width = jnp.minimum(jnp.sqrt(area * ratio), 1) * width
        box_height = jnp.minimum(jnp.sqrt(area / ratio), 1) * height
        left, top = x * (width - box_width), y * (height - box_height)
        columns, rows = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
        inside_x = (columns >= left) & (columns < left + box_width)
        inside_y = (rows >= top) & (rows < top + box_height)
        erased = inside_y[:, None] & inside_x & (jax.random.uniform(often_key) < self.probability)
        cover = jax.random.uniform(noise_key, image.shape) if self.noise else self.value
        return jnp.where(erased[..., None], cover, image)
