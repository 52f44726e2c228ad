"""The four kinds of augmentations; plugin packages find them in `vgg_jax.api`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vgg_jax.errors import OptionError, require

if TYPE_CHECKING:
    import jax
    import numpy as np

__all__ = [
    "Augmentation",
    "BatchAugmentation",
    "GeometricAugmentation",
    "HostAugmentation",
    "OptionError",
    "PixelAugmentation",
    "require",
]


class Augmentation(abc.ABC):  # noqa: B024 (its kinds have the methods)
    """Base of the four kinds; derive from one of those instead.

    Attributes:
        neutral: Options with which it changes nothing, for `vgg_jax.testing`. None leaves it to
            guess: `probability=0`, else zero for every number whose range begins with 0.
    """

    neutral: ClassVar[Mapping[str, Any] | None] = None


class HostAugmentation(Augmentation):
    """Changes a decoded picture before the resize, in reader threads, with NumPy only."""

    @abc.abstractmethod
    def apply(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Map a uint8 `[H, W, 3]` of any size to another one, which may differ in size."""


class GeometricAugmentation(Augmentation):
    """Moves pixels by a projective map; neighbours in a chain are composed and resampled once."""

    @abc.abstractmethod
    def matrix(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """Draw the `[3, 3]` float32 matrix that maps an output pixel to where it comes from.

        Coordinates are (x right, y down, 1) in pixels, with the origin at the image's centre.
        """


class PixelAugmentation(Augmentation):
    """Changes the values of one picture; pure, jittable, and keeps the shape."""

    @abc.abstractmethod
    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Map a float32 RGB `[H, W, 3]` in [0, 1] to another one."""


class BatchAugmentation(Augmentation):
    """Mixes the pictures of a batch and their targets."""

    @abc.abstractmethod
    def apply(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Map float32 images `[B, H, W, 3]` in [0, 1] and targets `[B, K]` to new ones.

        `valid`, bool `[B]`, is false on padding rows; these must not enter a valid row.
        """
