"""A network applied to few images at a time: the memory of few, on a CPU in no more time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

PIECE = 4  # images; convolutions of fewer add up in another order


def map_in_pieces(apply: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Return `apply(images)`, computed few images at a time, one after another.

    It gives the same bits, takes the memory of few images, and on a CPU no more time; the gradient
    would take far more.

    Args:
        apply: Maps images `[b, H, W, 3]`, each by itself, to `[b, …]`.
        images: `[B, H, W, 3]`. They are taken four at a time; the last are up to seven.
    """
    if len(images) < 2 * PIECE:
        return apply(images)
    rest = PIECE + len(images) % PIECE if len(images) % PIECE else 0
    whole, last = jnp.split(images, [len(images) - rest])
    outputs = jax.lax.map(apply, whole.reshape(-1, PIECE, *whole.shape[1:]))
    outputs = outputs.reshape(len(whole), *outputs.shape[2:])
    return jnp.concatenate([outputs, apply(last)]) if rest else outputs


def on_one_cpu() -> bool:
    """Return whether the only device is a CPU, which `map_in_pieces` and `convolve_3x3` are for."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1
