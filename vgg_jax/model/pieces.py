"""A network applied to few images at a time: the memory of few, on a CPU in no more time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

PIECE = 4  # images; convolutions of fewer, and some of more, add up in another order


def map_in_pieces(apply: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Return `apply(images)`, computed four images at a time, one piece after another.

    It takes the memory of four images, and on a CPU no more time; the gradient would take far more.
    As all pieces are of one size, an image comes out with the same bits in every batch of four or
    more; fewer are one piece.

    Args:
        apply: Maps images `[b, H, W, 3]`, each by itself, to `[b, …]`.
        images: `[B, H, W, 3]`. If B is no multiple of four, black ones complete the last piece.
    """
    count = len(images)
    if count <= PIECE:
        return apply(images)
    missing = -count % PIECE
    images = jnp.pad(images, ((0, missing), *[(0, 0)] * (images.ndim - 1)))
    outputs = jax.lax.map(apply, images.reshape(-1, PIECE, *images.shape[1:]))
    return outputs.reshape(count + missing, *outputs.shape[2:])[:count]


def on_one_cpu() -> bool:
    """Return whether the only device is a CPU, which `map_in_pieces` and `convolve_3x3` are for."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1
