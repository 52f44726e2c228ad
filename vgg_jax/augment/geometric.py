"""Geometric augmentations: what moves pixels, with the ranges and signs of Keras' generator.

A matrix maps an output pixel, as (x right, y down, 1) in pixels from the image's centre, to where
it comes from. So a positive translation moves the picture left or up, and a factor over 1 makes
it smaller.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.augment.checks import require_pair, require_probability
from vgg_jax.contract import GeometricAugmentation, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(GeometricAugmentation):
    """Turn the picture around its centre by a random angle.

    Attributes:
        degrees: Largest angle to either side, in [0, 180].

    Raises:
        OptionError: If `degrees` is outside [0, 180].
    """

    degrees: float = 40.0

    def __post_init__(self) -> None:
        """Check the options."""
        require(
            0 <= self.degrees <= 180, "rotation", "degrees", self.degrees, "a number in [0, 180]"
        )

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` rotation."""
        return rotation_matrix(_symmetric(key, self.degrees))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WidthShift(GeometricAugmentation):
    """Move the picture sideways by a random distance.

    Attributes:
        fraction: Largest distance to either side, in [0, 1], as a fraction of the width.

    Raises:
        OptionError: If `fraction` is outside [0, 1].
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        """Check the options."""
        require(
            0 <= self.fraction <= 1, "width-shift", "fraction", self.fraction, "a number in [0, 1]"
        )

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` translation along x."""
        return translation_matrix(_symmetric(key, self.fraction) * width, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeightShift(GeometricAugmentation):
    """Move the picture up or down by a random distance.

    Attributes:
        fraction: Largest distance either way, in [0, 1], as a fraction of the height.

    Raises:
        OptionError: If `fraction` is outside [0, 1].
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        """Check the options."""
        require(
            0 <= self.fraction <= 1, "height-shift", "fraction", self.fraction, "a number in [0, 1]"
        )

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` translation along y."""
        return translation_matrix(0.0, _symmetric(key, self.fraction) * height)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shear(GeometricAugmentation):
    """Slant the picture's upright lines by a random angle.

    The unit is Keras' own: its `shear_range=0.2`, often meant as a fraction, is 0.2 degrees, which
    cannot be seen.

    Attributes:
        degrees: Largest angle to either side, in [0, 90).

    Raises:
        OptionError: If `degrees` is outside [0, 90).
    """

    degrees: float = 10.0

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.degrees < 90, "shear", "degrees", self.degrees, "a number in [0, 90)")

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` shear along x."""
        return shear_matrix(_symmetric(key, self.degrees))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zoom(GeometricAugmentation):
    """Make the picture larger or smaller, its width and its height by a random factor each.

    Attributes:
        fraction: Largest change, in [0, 1): factors are drawn from [1 - fraction, 1 + fraction].

    Raises:
        OptionError: If `fraction` is outside [0, 1).
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.fraction < 1, "zoom", "fraction", self.fraction, "a number in [0, 1)")

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` scaling of each axis."""
        x, y = 1 + jax.random.uniform(key, (2,), minval=-self.fraction, maxval=self.fraction)
        return scaling_matrix(x, y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HorizontalFlip(GeometricAugmentation):
    """Swap left and right, sometimes.

    Attributes:
        probability: How often, in [0, 1].

    Raises:
        OptionError: If `probability` is outside [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        require_probability("horizontal-flip", self.probability)

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` mirroring of x, or the identity."""
        return scaling_matrix(_sign(key, self.probability), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerticalFlip(GeometricAugmentation):
    """Swap top and bottom, sometimes.

    Attributes:
        probability: How often, in [0, 1].

    Raises:
        OptionError: If `probability` is outside [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        require_probability("vertical-flip", self.probability)

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` mirroring of y, or the identity."""
        return scaling_matrix(1.0, _sign(key, self.probability))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropResize(GeometricAugmentation):
    """Show a random part of the picture, enlarged to the whole size (torchvision's ranges).

    Where torchvision tries again when a part does not fit, its longer side is cut here.

    Attributes:
        scale: Smallest and largest share of the picture's area that is shown, each in (0, 1].
        ratio: Smallest and largest width over height of the part, each in (0, infinity); a picture
            is a square by then, so that 1 keeps its proportions.

    Raises:
        OptionError: If `scale` or `ratio` is out of range.
    """

    neutral: ClassVar[Mapping[str, Any] | None] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        """Check the options."""
        require_pair("crop-resize", "scale", self.scale, 0, 1)
        require_pair("crop-resize", "ratio", self.ratio, 0, math.inf)

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` scaling and translation."""
        area, log_ratio, x, y = jax.random.uniform(key, (4,))
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = map(math.log, self.ratio)
        ratio = jnp.exp(low + log_ratio * (high - low))
        part_width = jnp.minimum(jnp.sqrt(area * ratio), 1)
        part_height = jnp.minimum(jnp.sqrt(area / ratio), 1)
        left = (x - 0.5) * (1 - part_width) * width
        top = (y - 0.5) * (1 - part_height) * height
        return _matrix([[part_width, 0, left], [0, part_height, top], [0, 0, 1]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perspective(GeometricAugmentation):
    """Look at the picture from aside, sometimes: its corners move inwards by random distances.

    Attributes:
        distortion: Largest distance, in [0, 1], as a share of half the picture's sides.
        probability: How often, in [0, 1].

    Raises:
        OptionError: If an option is out of range.
    """

    distortion: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        expected = "a number in [0, 1]"
        require(0 <= self.distortion <= 1, "perspective", "distortion", self.distortion, expected)
        require_probability("perspective", self.probability)

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` projective map, or the identity."""
        corner_key, often_key = jax.random.split(key)
        # At most nearly half a side: where two corners met, the map would have no inverse.
        inwards = jax.random.uniform(corner_key, (4, 2), maxval=0.495 * self.distortion)
        corners = jnp.asarray(_CORNERS) + inwards * (1 - 2 * _CORNERS)
        to_unit = _matrix([[1 / width, 0, 0.5], [0, 1 / height, 0.5], [0, 0, 1]])
        from_unit = _matrix([[width, 0, -width / 2], [0, height, -height / 2], [0, 0, 1]])
        highest = jax.lax.Precision.HIGHEST
        unit = _from_quadrilateral(corners)
        matrix = jnp.matmul(
            jnp.matmul(from_unit, unit, precision=highest), to_unit, precision=highest
        )
        moved = jax.random.uniform(often_key) < self.probability
        return jnp.where(moved & (self.distortion > 0), matrix, jnp.eye(3))


def rotation_matrix(degrees: jax.typing.ArrayLike) -> jax.Array:
    """Return Keras' matrix `[3, 3]` for `theta`; a positive one turns counterclockwise."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def translation_matrix(x: jax.typing.ArrayLike, y: jax.typing.ArrayLike) -> jax.Array:
    """Return the `[3, 3]` matrix that moves the picture `x` pixels to the left and `y` up."""
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def shear_matrix(degrees: jax.typing.ArrayLike) -> jax.Array:
    """Return Keras' matrix `[3, 3]` for `shear`, which also stretches y by 1 / cosine."""
    angle = jnp.deg2rad(degrees)
    return _matrix([[1, -jnp.sin(angle), 0], [0, jnp.cos(angle), 0], [0, 0, 1]])


def scaling_matrix(x: jax.typing.ArrayLike, y: jax.typing.ArrayLike) -> jax.Array:
    """Return the `[3, 3]` matrix that makes the picture `x` times narrower and `y` times lower."""
    return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def _matrix(rows: list[list[jax.typing.ArrayLike]]) -> jax.Array:
    return jnp.stack(
        [jnp.stack([jnp.asarray(value, jnp.float32) for value in row]) for row in rows]
    )


_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)  # of the unit square


def _from_quadrilateral(corners: jax.Array) -> jax.Array:
    """Return the `[3, 3]` map that takes four corners `[4, 2]` to those of the unit square.

    The inverse of the square's map to a quadrilateral (Heckbert 1989, section 2.2.3), up to a
    factor, which does not matter.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, sum_x = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sum_y = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    determinant = dx1 * dy2 - dx2 * dy1
    g = (sum_x * dy2 - dx2 * sum_y) / determinant
    h = (dx1 * sum_y - sum_x * dy1) / determinant
    first = jnp.stack([x1 - x0 + g * x1, y1 - y0 + g * y1, g])
    second = jnp.stack([x3 - x0 + h * x3, y3 - y0 + h * y3, h])
    third = jnp.stack([x0, y0, jnp.ones_like(x0)])
    rows = (jnp.cross(second, third), jnp.cross(third, first), jnp.cross(first, second))
    inverse = jnp.stack(rows)
    return inverse / inverse[2, 2]


def _symmetric(key: jax.Array, limit: float) -> jax.Array:
    return jax.random.uniform(key, (), minval=-limit, maxval=limit)


def _sign(key: jax.Array, probability: float) -> jax.Array:
    return jnp.where(jax.random.uniform(key) < probability, -1.0, 1.0)
