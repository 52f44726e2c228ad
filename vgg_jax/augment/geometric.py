"""Geometric augmentations: what moves pixels, with the ranges and signs of Keras' generator.

A matrix maps an output pixel, as (x right, y down, 1) in pixels from the image's centre, to where
it comes from. So a positive translation moves the picture left or up, and a factor over 1 makes
it smaller.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vgg_jax.api import GeometricAugmentation, require


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
        _require_probability("horizontal-flip", self.probability)

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
        _require_probability("vertical-flip", self.probability)

    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw a `[3, 3]` mirroring of y, or the identity."""
        return scaling_matrix(1.0, _sign(key, self.probability))


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


def _symmetric(key: jax.Array, limit: float) -> jax.Array:
    return jax.random.uniform(key, (), minval=-limit, maxval=limit)


def _sign(key: jax.Array, probability: float) -> jax.Array:
    return jnp.where(jax.random.uniform(key) < probability, -1.0, 1.0)


def _require_probability(owner: str, probability: float) -> None:
    require(0 <= probability <= 1, owner, "probability", probability, "a number in [0, 1]")
