"""3x3 convolutions as products of matrices, for CPUs, most with four ninths of the multiplications.

Winograd's minimal filtering F(2x2, 3x3): Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2015, https://arxiv.org/abs/1509.09308. Its gradients are of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.config import Precision

# Of images, and of output. With fewer it does not win: sums take as long as products.
LEAST_CHANNELS = 64
_Row = Sequence[jax.Array]
_Product = Callable[[jax.Array, jax.Array], jax.Array]


def convolve_3x3(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Any,
    *,
    least_together: int = 0,
    products: Precision = "float32",
    as_float32: bool = False,
    **options: Any,
) -> jax.Array:
    """Do what `jax.lax.conv_general_dilated` does, in less time on a CPU.

    With fewer than 64 channels or filters it is that function. With at least `least_together` it is
    Winograd's, which agrees to 1e-5 and takes half the time. In between it is that function, too,
    in bfloat16 a single product of matrices.

    Args:
        images: `[B, H, W, c]`, float32.
        kernel: `[3, 3, c, C]`, float32.
        strides: 1 and 1.
        padding: `SAME`.
        least_together: Of c and C together.
        products: What is multiplied is rounded to this, and added up in float32. With bfloat16 it
            agrees to 1e-2, and takes CPUs with instructions for that half the time again.
        as_float32: Whether what was rounded to bfloat16 is multiplied as float32: the same
            products, and in less time where a CPU has no such instructions.
        **options: Of that function; there is no dilation, and one group.

    Returns:
        `[B, H, W, C]`, float32.
    """
    channels, filters = kernel.shape[-2:]
    rounded_product = partial(_rounded_product, as_float32)
    if min(channels, filters) >= LEAST_CHANNELS:
        if channels + filters >= least_together:
            product = jnp.matmul if products == "float32" else rounded_product
            return _winograd(images, kernel, product)
        if products == "bfloat16":
            return _one_product(images, kernel, rounded_product)
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)


def _winograd(images: jax.Array, kernel: jax.Array, product: _Product) -> jax.Array:
    """Convolve by 16 products, of all tiles of 4 x 4 inputs, each for 2 x 2 outputs."""
    count, height, width, channels = images.shape
    filters = kernel.shape[-1]
    rows, columns = -(-height // 2), -(-width // 2)  # of tiles
    padded = jnp.pad(
        images, ((0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0))
    )
    tiles = [
        [padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)]
        for i in range(4)
    ]
    inputs = _both_ways(_of_inputs, tiles)
    # The gradient of `unstack` is one stack; that of an index pads each part to the whole kernel.
    weights = _both_ways(_of_kernel, [jnp.unstack(row) for row in jnp.unstack(kernel)])
    products = [
        [product(inputs[i][j].reshape(-1, channels), weights[i][j]) for j in range(4)]
        for i in range(4)
    ]
    outputs = [
        [part.reshape(count, rows, 1, columns, 1, filters) for part in row]
        for row in _both_ways(_of_outputs, products)
    ]
    joined = jnp.concatenate([jnp.concatenate(row, axis=4) for row in outputs], axis=2)
    return joined.reshape(count, 2 * rows, 2 * columns, filters)[:, :height, :width]


def _one_product(images: jax.Array, kernel: jax.Array, product: _Product) -> jax.Array:
    """Convolve by one product, of three columns each, for the kernel's three rows.

    It takes nine fourths of Winograd's multiplications, but fewer sums.
    """
    count, height, width, channels = images.shape
    filters = kernel.shape[-1]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.stack([padded[:, :, j : j + width] for j in range(3)], axis=3)
    weights = kernel.transpose(1, 2, 0, 3).reshape(3 * channels, 3 * filters)
    products = product(columns.reshape(-1, 3 * channels), weights)
    rows = products.reshape(count, height + 2, width, 3, filters)
    return rows[:, :height, :, 0] + rows[:, 1:-1, :, 1] + rows[:, 2:, :, 2]


def _both_ways(transform: Callable[[_Row], _Row], grid: Sequence[_Row]) -> list[_Row]:
    """Transform the columns of a grid, then its rows."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _of_inputs(x: _Row) -> _Row:
    return x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]


def _of_kernel(x: _Row) -> _Row:
    outer, inner = (x[0] + x[2]) / 2, x[1] / 2
    return x[0], outer + inner, outer - inner, x[2]


def _of_outputs(x: _Row) -> _Row:
    return x[0] + x[1] + x[2], x[1] - x[2] - x[3]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded_product(as_float32: bool, a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply matrices of float32, rounded to bfloat16; in the gradients they are, too."""
    return _product_of_rounded(_rounded(a, as_float32), _rounded(b, as_float32))


def _rounded(matrix: jax.Array, as_float32: bool) -> jax.Array:
    if as_float32:
        return jax.lax.reduce_precision(matrix, exponent_bits=8, mantissa_bits=7)
    return matrix.astype(jnp.bfloat16)


def _with_residuals(
    as_float32: bool, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rounded = _rounded(a, as_float32), _rounded(b, as_float32)
    return _product_of_rounded(*rounded), rounded


def _gradients(
    as_float32: bool, residuals: tuple[jax.Array, jax.Array], of_product: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = residuals
    rounded = _rounded(of_product, as_float32)
    transposed = jnp.transpose if as_float32 else _transposed
    return (
        _product_of_rounded(rounded, transposed(b)),
        _product_of_rounded(transposed(a), rounded),
    )


_rounded_product.defvjp(_with_residuals, _gradients)


def _product_of_rounded(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def _transposed(matrix: jax.Array) -> jax.Array:
    """Transpose a matrix in memory.

    What `.T` gives XLA's product reads where it lies, which takes five times as long in bfloat16.
    """
    rows, columns = matrix.shape
    return matrix.reshape(rows, columns, 1).transpose(1, 2, 0).reshape(columns, rows)
