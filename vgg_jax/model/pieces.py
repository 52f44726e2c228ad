"""A network applied to few images at a time: the memory of few, on a CPU in no more time."""

from __future__ import annotations

from collections.abc import Callable

import jax

PIECE = 4  # images; convolutions of fewer add up in another order


def map_in_pieces(apply: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Return `apply(images)`, computed few images at a time, one after another.

    It gives the same bits, takes the memory of few images, and on a CPU no more time; the gradient
    would take far more.

    Args:
        apply: Maps images `[b, H, W, 3]`, each by itself, to `[b, …]`.
        images: `[B, H, W, 3]`; all at once if B is not a multiple of 4.
    """
    if len(images) <= PIECE or len(images) % PIECE:
        return apply(images)
    outputs = jax.lax.map(apply, images.reshape(-1, PIECE, *images.shape[1:]))
    return outputs.reshape(len(images), *outputs.shape[2:])


def on_one_cpu() -> bool:
    """Return whether the only device is a CPU, which `map_in_pieces` is for."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1
