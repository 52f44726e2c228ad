"""A network applied to few images at a time: the memory of few, the same bits in each batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vgg_jax.config import Precision
from vgg_jax.layers import BASE_CHANNELS, LAYERS
from vgg_jax.model.convolution import LEAST_CHANNELS
from vgg_jax.model.vgg16 import VGG16

PIECE = 4  # images; convolutions of fewer, and Winograd's of six or seven, add up in another order
_TOGETHER_FROM = "conv3_1"
_MOST_BYTES = 16_000_000  # of what conv1_1 gives of a piece, float32


def run_piece(
    backbone: VGG16, images: jax.Array, precision: Precision, stop: str | None = None
) -> jax.Array:
    """Normalise the images of a piece, and apply the layers before `stop`.

    Large images go through the first two blocks one by one in bfloat16, where products may be so
    fast that the memory bounds them: with four, frozen layers take a quarter longer on CPUs with
    AMX (`bench.py --only convolutions`). In float32, and without AMX, it makes no difference.

    Args:
        backbone: Convolves as `vgg_jax.model.arithmetic` has set it up for one CPU.
        images: RGB `[B, H, W, 3]`, uint8 or float32 in [0, 1].
        precision: In which it convolves.
        stop: First layer to leave out; None applies all.

    Returns:
        `[B, h, w, c]`.
    """
    channels = BASE_CHANNELS[0] * backbone.width
    bytes_of_piece = 4 * PIECE * images.shape[1] * images.shape[2] * channels
    is_large = channels >= LEAST_CHANNELS and bytes_of_piece > _MOST_BYTES
    first = min(_TOGETHER_FROM, stop or _TOGETHER_FROM, key=LAYERS.index)

    def run(few: jax.Array) -> jax.Array:
        return backbone.run(backbone.normalise(few), stop=first)

    if precision == "bfloat16" and is_large:
        return backbone.run(jax.lax.map(lambda one: run(one[None])[0], images), first, stop)
    return backbone.run(run(images), first, stop)


def map_in_pieces(apply: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Return `apply(images)`, computed four images at a time, one piece after another.

    It takes the memory of four images, and on a CPU no more time if they are a multiple of four;
    the gradient would take far more. As all pieces are of one size, it gives an image the same bits
    in every batch, if `apply` does so in every place of a piece. One image alone is no piece.

    Args:
        apply: Maps images `[b, H, W, 3]`, each by itself, to `[b, …]`.
        images: `[B, H, W, 3]`. If B is no multiple of four, black ones complete the last piece.
    """
    count = len(images)
    if count == 1:
        return apply(images)
    missing = -count % PIECE
    images = jnp.pad(images, ((0, missing), *[(0, 0)] * (images.ndim - 1)))
    outputs = jax.lax.map(apply, images.reshape(-1, PIECE, *images.shape[1:]))
    return outputs.reshape(count + missing, *outputs.shape[2:])[:count]


def on_one_cpu() -> bool:
    """Return whether the only device is a CPU, which `map_in_pieces` and `convolve_3x3` are for."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1
