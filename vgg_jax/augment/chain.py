"""Chains of augmentations, in the order in which a user wrote them; geometry is resampled once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from vgg_jax import plugins
from vgg_jax.augment.warp import FILLS, Fill, warp
from vgg_jax.contract import (
    Augmentation,
    BatchAugmentation,
    GeometricAugmentation,
    HostAugmentation,
    OptionError,
    PixelAugmentation,
    require,
)
from vgg_jax.errors import PluginError, cause_of
from vgg_jax.plugin_choices import PluginChoice

_PLACES: dict[type[Augmentation], tuple[int, str]] = {
    HostAugmentation: (0, "host"),
    GeometricAugmentation: (1, "geometric"),
    PixelAugmentation: (1, "pixel"),
    BatchAugmentation: (2, "batch"),
}


@dataclasses.dataclass(frozen=True)
class Chain:
    """Augmentations that are applied one after the other.

    Chains with equal contents are equal and hash alike, so that a chain may be a static argument
    of `jax.jit`.

    Attributes:
        augmentations: As they are applied: host ones, then geometric and pixel ones, then batch
            ones.
        fill: What lies beyond a picture's edges: `nearest`, `constant`, `reflect` or `wrap`; see
            `vgg_jax.augment.warp.warp`.
        fill_value: The value there for `constant`, in [0, 1].

    Raises:
        OptionError: If an item is no augmentation, the order is another one, `fill` is unknown or
            `fill_value` is outside [0, 1].
    """

    augmentations: Sequence[Augmentation] = ()
    fill: Fill = "nearest"
    fill_value: float = 0.0

    def __post_init__(self) -> None:
        """Check the order and the options."""
        object.__setattr__(self, "augmentations", tuple(self.augmentations))
        owner, value = "augmentations", self.fill_value
        require(self.fill in FILLS, owner, "fill", self.fill, f"one of {', '.join(FILLS)}")
        require(0 <= value <= 1, owner, "fill_value", value, "a number in [0, 1]")
        _check_order(self.augmentations)

    @property
    def host(self) -> tuple[HostAugmentation, ...]:
        """Those that reader threads apply before the resize."""
        return tuple(a for a in self.augmentations if isinstance(a, HostAugmentation))

    @property
    def on_device(self) -> bool:
        """Whether `apply` changes pictures at all."""
        return len(self.host) < len(self.augmentations)

    @property
    def mixes(self) -> bool:
        """Whether there are batch augmentations, so that `mix` does anything."""
        return any(isinstance(a, BatchAugmentation) for a in self.augmentations)

    def apply(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Apply the geometric and pixel augmentations to each picture by itself; jittable.

        Args:
            keys: One random key for each example, `[B]`. Number i of the chain draws from
                `fold_in(key, i)`.
            images: `[B, H, W, 3]` RGB, uint8 or float32 in [0, 1].

        Returns:
            float32 `[B, H, W, 3]` in [0, 1].

        Raises:
            PluginError: If an augmentation returns an array of another shape or type than its kind
                prescribes.
        """
        return jax.vmap(self._apply_to_one)(keys, images)

    def mix(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Apply the batch augmentations, after `apply`; pure and jittable.

        Args:
            key: A random key. Number i of the chain draws from `fold_in(key, i)`.
            images: float32 `[B, H, W, 3]` in [0, 1].
            targets: float32 `[B, K]`, the share of each class.
            valid: bool `[B]`, false on padding rows.

        Returns:
            Images and targets of the same shapes and types.

        Raises:
            PluginError: If an augmentation returns anything else.
        """
        for place, augmentation in enumerate(self.augmentations):
            if isinstance(augmentation, BatchAugmentation):
                own_key = jax.random.fold_in(key, place)
                mixed: Any = _call(augmentation, "apply", own_key, images, targets, valid)
                if not isinstance(mixed, tuple) or len(cast(Sequence[Any], mixed)) != 2:
                    mixed = (mixed, mixed)  # which cannot be both
                _check_array(augmentation, "apply", mixed[0], images.shape)
                _check_array(augmentation, "apply", mixed[1], targets.shape)
                images, targets = jnp.clip(mixed[0], 0, 1), mixed[1]
        return images, targets

    def _apply_to_one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255
        height, width, _ = image.shape
        matrix = None  # of the geometric augmentations since the last pixel augmentation
        for place, augmentation in enumerate(self.augmentations):
            own_key = jax.random.fold_in(key, place)
            if isinstance(augmentation, GeometricAugmentation):
                own_matrix = _call(augmentation, "matrix", own_key, height, width)
                _check_array(augmentation, "matrix", own_matrix, (3, 3))
                matrix = own_matrix if matrix is None else _product(matrix, own_matrix)
            elif isinstance(augmentation, PixelAugmentation):
                image, matrix = self._warp(image, matrix), None
                image = _call(augmentation, "apply", own_key, image)
                _check_array(augmentation, "apply", image, (height, width, 3))
        # Bilinear weights may add up to a rounding error over one.
        return jnp.clip(self._warp(image, matrix), 0, 1)

    def _warp(self, image: jax.Array, matrix: jax.Array | None) -> jax.Array:
        return image if matrix is None else warp(image, matrix, self.fill, self.fill_value)


def build_chain(
    choices: Sequence[PluginChoice], fill: Fill = "nearest", fill_value: float = 0.0
) -> Chain:
    """Build the chain that a user asked for, with the augmentations of a preset in its place.

    Raises:
        UnknownPluginError: If no package provides an augmentation.
        PluginError: If one cannot be loaded, or is no augmentation.
        OptionError: If an option is unknown, of the wrong type or out of range, or the order of
            kinds is wrong.
    """
    return Chain([a for choice in choices for a in build_augmentations(choice)], fill, fill_value)


def build_augmentations(choice: PluginChoice) -> tuple[Augmentation, ...]:
    """Build the augmentations that a plugin stands for: one, or those of a preset.

    Raises:
        VggJaxError: As for `build_chain`.
    """
    plugin = plugins.find_plugin("augmentation", choice.ref)
    built = plugins.build("augmentation", choice)
    found = tuple(built) if isinstance(built, (tuple, list)) else (built,)
    for item in found:
        if not isinstance(item, tuple(_PLACES)):
            raise PluginError(
                f"{plugin.described} gives a {type(item).__name__}, but must give a host,"
                " geometric, pixel or batch augmentation, or a tuple of them."
                f" {plugin.way_out}"
            )
    return found


def as_choice(augmentation: Augmentation) -> PluginChoice:
    """Return how a user would ask for an augmentation: its package and name, and every option.

    What is no plugin by itself, but made by one, goes by the place of its class.
    """
    plugin, kind = plugins.plugin_of(augmentation), type(augmentation)
    ref = f"{plugin.package}/{plugin.name}" if plugin else f"{kind.__module__}.{kind.__qualname__}"
    fields = dataclasses.fields(augmentation) if dataclasses.is_dataclass(augmentation) else ()
    return PluginChoice(ref, {f.name: getattr(augmentation, f.name) for f in fields if f.init})


def _check_order(augmentations: Sequence[Augmentation]) -> None:
    """Raise `OptionError` unless the kinds come in their order: host, per picture, batch."""
    for item in augmentations:
        if not isinstance(item, tuple(_PLACES)):
            raise OptionError(
                f"{item!r} is none of the augmentations that a chain holds: "
                "host, geometric, pixel or batch."
            )
    for first, second in itertools.pairwise(augmentations):
        (rank_first, kind_first), (rank_second, kind_second) = _place(first), _place(second)
        if rank_first > rank_second:
            raise OptionError(
                f"The {kind_second} augmentation {type(second).__name__} comes after the "
                f"{kind_first} augmentation {type(first).__name__}. The order of kinds is host, "
                f"then geometric and pixel, then batch: put {type(second).__name__} first."
            )


def _place(augmentation: Augmentation) -> tuple[int, str]:
    return next(place for kind, place in _PLACES.items() if isinstance(augmentation, kind))


def _product(first: jax.Array, second: jax.Array) -> jax.Array:
    # Full precision: accelerators would otherwise round the factors to ten bits.
    return jnp.matmul(first, second, precision=jax.lax.Precision.HIGHEST)


def _call(augmentation: Augmentation, method: str, *arguments: Any) -> Any:
    """Call a method of an augmentation; what it raises becomes a `PluginError`."""
    try:
        return getattr(augmentation, method)(*arguments)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"The method {method} of {plugins.origin_of(augmentation)} failed: {cause_of(error)}"
        ) from error


def _check_array(
    augmentation: Augmentation, method: str, result: object, shape: tuple[int, ...]
) -> None:
    """Raise `PluginError` unless a method returned what its kind prescribes."""
    given = (getattr(result, "dtype", type(result).__name__), getattr(result, "shape", ()))
    if given != (jnp.float32, shape):
        name = plugins.origin_of(augmentation)
        raise PluginError(
            f"The method {method} of {name} returned {given[0]} {list(given[1])}, "
            f"but must return float32 {list(shape)}. Update or remove the package that provides it."
        )
