"""A network applied to four images at a time: the memory of four, the same bits in each batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

PIECE = 4  # images; convolutions of fewer, and Winograd's of six or seven, add up in another order


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
