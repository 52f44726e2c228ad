"""The convolution of trainings on a CPU: the same as JAX's own, and so are its gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax.model.convolution import convolve_3x3

NUMBERS: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def products(convolve, images: jax.Array, filters: int) -> int:
    """Return how many multiplications of a layer's convolution XLA counts, twice."""
    conv = nnx.Conv(images.shape[-1], filters, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    conv.conv_general_dilated = convolve
    return jax.jit(conv).lower(images).compile().cost_analysis()["flops"]  # pyright: ignore


@pytest.mark.parametrize(
    "shape", [(4, 14, 14, 64), (1, 1, 1, 64), (2, 5, 3, 96), (3, 2, 9, 128), (2, 4, 4, 16)]
)
def test_outputs_and_gradients_are_the_same(shape):
    images, filters = draw(*shape), 64
    of_output = draw(*shape[:-1], filters)
    results = []
    for convolve in (jax.lax.conv_general_dilated, convolve_3x3):
        conv = nnx.Conv(shape[-1], filters, (3, 3), rngs=nnx.Rngs(0))
        conv.conv_general_dilated = convolve
        gradient = nnx.grad(lambda conv, x: (conv(x) * of_output).sum(), argnums=(0, 1))
        of_conv, of_images = gradient(conv, images)
        results.append([conv(images), of_conv["kernel"][...], of_conv["bias"][...], of_images])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        assert np.abs(other - one).max() <= 1e-5 * np.abs(one).max()


def gradients(convolve, images, kernel, of_output):
    def run(images, kernel):
        return convolve(images, kernel, (1, 1), "SAME", **NUMBERS)

    output, backwards = jax.vjp(run, images, kernel)
    return output, *backwards(of_output)


ROUNDED = partial(convolve_3x3, products="bfloat16")
AS_FLOAT32 = partial(ROUNDED, as_float32=True)


@pytest.mark.parametrize("winograd", [ROUNDED, AS_FLOAT32], ids=["bfloat16", "float32"])
def test_in_bfloat16_only_rounding_differs(winograd):
    shapes = (2, 7, 6, 64), (3, 3, 64, 80), (2, 7, 6, 80)
    drawn = [draw(*shape) for shape in shapes]
    as_float32 = winograd is AS_FLOAT32
    one_product = partial(winograd, least_together=145)
    for convolve, count in ((convolve_3x3, 0), (winograd, 3 * 16), (one_product, 3)):
        text = jax.jit(partial(gradients, convolve)).lower(*drawn).as_text()
        of_bfloat16 = [
            line for line in text.splitlines() if "dot_general" in line and "bf16" in line
        ]
        assert len(of_bfloat16) == (0 if as_float32 else count)
        assert ("reduce_precision" in text) == (as_float32 and count > 0)
    for rounded in (winograd, one_product):
        exact, found = gradients(convolve_3x3, *drawn), jax.jit(partial(gradients, rounded))(*drawn)
        for one, other in zip(exact, found, strict=True):
            assert other.dtype == np.float32
            difference = np.abs(other - one).max() / np.abs(one).max()
            assert 1e-4 < difference <= 2e-2
    # Nothing is rounded of numbers that have few bits, also when some are added up and halved.
    few = [4 * jnp.round(numbers) for numbers in drawn]
    for rounded in (winograd, one_product):
        exact, found = gradients(convolve_3x3, *few), gradients(rounded, *few)
        for one, other in zip(exact, found, strict=True):
            np.testing.assert_array_equal(other, one)


def test_it_takes_half_the_multiplications_where_that_wins():
    images = draw(4, 28, 28, 256)
    plain = products(jax.lax.conv_general_dilated, images, 256)
    assert products(convolve_3x3, images, 256) < 0.55 * plain
    seldom = partial(convolve_3x3, least_together=513)
    assert products(seldom, images, 256) == plain
    few = draw(4, 28, 28, 63)
    for given, filters in ((few, 256), (images, 63)):
        expected = products(jax.lax.conv_general_dilated, given, filters)
        assert products(convolve_3x3, given, filters) == expected


def test_a_picture_has_the_same_bits_in_each_place():
    images, kernel = draw(4, 7, 7, 256), draw(3, 3, 256, 96)
    one_products = [partial(each, least_together=513) for each in (ROUNDED, AS_FLOAT32)]
    for convolve in (convolve_3x3, ROUNDED, AS_FLOAT32, *one_products):
        outputs = convolve(images, kernel, (1, 1), "SAME", **NUMBERS)
        turned = convolve(images[::-1], kernel, (1, 1), "SAME", **NUMBERS)
        np.testing.assert_array_equal(turned[::-1], outputs)


@pytest.mark.parametrize(
    ("fast", "tolerance"),
    [
        (convolve_3x3, 1e-5),
        (ROUNDED, 2e-2),
        (partial(ROUNDED, least_together=129), 2e-2),
        (AS_FLOAT32, 2e-2),
    ],
)
def test_candidates_may_be_vmapped(fast, tolerance):
    kernels, images = draw(2, 3, 3, 64, 64), draw(3, 6, 6, 64)

    def loss(convolve, kernel):
        return (convolve(images, kernel, (1, 1), "SAME", **NUMBERS) ** 2).sum()

    expected = jnp.stack(
        [jax.grad(partial(loss, jax.lax.conv_general_dilated))(k) for k in kernels]
    )
    found = jax.vmap(jax.grad(partial(loss, fast)))(kernels)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
