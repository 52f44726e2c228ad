"""What VGG16 is made of: the names of its layers, in order, and the shapes of their kernels.

Names are those of the paper (Simonyan and Zisserman, 2014, configuration D). No JAX here, so that a
name typed by a user is checked before anything heavy is imported.
"""

from __future__ import annotations

import math
from fractions import Fraction

from vgg_jax.errors import UnknownLayerError, WeightsError

CONVOLUTIONS_PER_BLOCK = (2, 2, 3, 3, 3)
BASE_CHANNELS = (64, 128, 256, 512, 512)  # of each block, in a network of width 1
LAYERS: tuple[str, ...] = tuple(
    name
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK, start=1)
    for name in (*(f"conv{block}_{i}" for i in range(1, count + 1)), f"pool{block}")
)
CONVOLUTIONS: tuple[str, ...] = tuple(name for name in LAYERS if name.startswith("conv"))
HEAD = "head"  # the boundary that freezes the whole backbone

# Keras' `preprocess_input(mode="caffe")` on the scale 0 to 255, here in RGB order; its scale is 1.
IMAGENET_MEAN_RGB = (123.68, 116.779, 103.939)


def block_of(layer: str) -> int:
    """Return the number of the block, 1 to 5, that `layer` belongs to."""
    return int(layer.removeprefix("conv").removeprefix("pool")[0])


def keras_name(layer: str) -> str:
    """Return what Keras calls `layer`: `block5_conv1` for `conv5_1`, `block5_pool` for `pool5`."""
    if layer.startswith("pool"):
        return f"block{block_of(layer)}_pool"
    return f"block{block_of(layer)}_conv{layer.rsplit('_', 1)[1]}"


def _torchvision_names() -> dict[str, str]:
    names: dict[str, str] = {}
    position = 0
    for layer in LAYERS:
        names[f"features.{position}"] = layer
        position += 1 if layer.startswith("pool") else 2  # a ReLU module follows each convolution
    return names


_ALIASES = {keras_name(layer): layer for layer in LAYERS} | _torchvision_names()


def resolve_layer(name: str) -> str:
    """Return the paper's name of a layer given by that name, by Keras' or by torchvision's.

    `head` is returned as it is.

    Raises:
        UnknownLayerError: If no layer has that name.
    """
    if name in LAYERS or name == HEAD:
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    raise UnknownLayerError(name, (*LAYERS, HEAD))


def kernel_shapes(width: float) -> dict[str, tuple[int, int, int, int]]:
    """Return the HWIO kernel shape of each convolution of a network of this `width`, in order.

    Raises:
        WeightsError: If `width` does not give whole numbers of channels.
    """
    exact = Fraction(width) if math.isfinite(width) else Fraction(0)
    channels = [exact * base for base in BASE_CHANNELS]
    if width <= 0 or not exact or any(count.denominator != 1 for count in channels):
        raise WeightsError(
            f"A VGG16 of width {width} has no whole number of channels; use a multiple of 1/64."
        )
    shapes: dict[str, tuple[int, int, int, int]] = {}
    channels_in = 3
    for name in CONVOLUTIONS:
        channels_out = int(channels[block_of(name) - 1])
        shapes[name] = (3, 3, channels_in, channels_out)
        channels_in = channels_out
    return shapes
