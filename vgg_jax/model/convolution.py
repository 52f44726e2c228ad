"""A convolution whose kernel's gradient takes less time on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def convolve_3x3(
    images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """Do what `jax.lax.conv_general_dilated` does, but for the way to the kernel's gradient.

    On a CPU that takes down to a quarter of the time. There is no forward-mode derivative.

    Args:
        images: `[B, H, W, c]`.
        kernel: `[3, 3, c, C]`.
        strides: 1 and 1.
        padding: `SAME`.
        **options: Without effect at stride 1 and without dilation.

    Returns:
        `[B, H, W, C]`.
    """

    def convolved(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)

    def forward(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        return convolved(images, kernel), (images, kernel)

    def backward(inputs: tuple[jax.Array, jax.Array], of_output: jax.Array) -> Any:
        images, kernel = inputs
        (of_images,) = jax.vjp(lambda x: convolved(x, kernel), images)[1](of_output)
        return of_images, _gradient_of_kernel(images, of_output)

    convolution = jax.custom_vjp(convolved)
    convolution.defvjp(forward, backward)
    return convolution(images, kernel)


def _gradient_of_kernel(images: jax.Array, of_output: jax.Array) -> jax.Array:
    """Return the gradient `[3, 3, c, C]`: for each tap a product of matrices."""
    count, height, width, channels = images.shape
    by_channel = jnp.pad(images.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    by_channel = jax.lax.optimization_barrier(by_channel)  # transposed once, not nine times
    by_pixel = of_output.reshape(-1, of_output.shape[-1])

    def of_tap(corner: jax.Array) -> jax.Array:
        shape = (channels, count, height, width)
        moved = jax.lax.dynamic_slice(by_channel, (0, 0, corner[0], corner[1]), shape)
        return moved.reshape(channels, -1) @ by_pixel

    corners = jnp.argwhere(jnp.ones((3, 3), bool), size=9)
    taps = jax.lax.map(of_tap, corners)  # one after another: in the memory of one
    return taps.reshape(3, 3, channels, -1)
