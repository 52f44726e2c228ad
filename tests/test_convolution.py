"""The convolution of a training: the same outputs as JAX's own, and the same gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax.model.convolution import convolve_3x3


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def layer(channels: int, filters: int) -> nnx.Conv:
    return nnx.Conv(channels, filters, (3, 3), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(4, 14, 14, 8), (1, 1, 1, 8), (2, 5, 3, 3), (3, 2, 9, 16)])
def test_outputs_are_the_same_and_so_are_gradients(shape):
    images, plain, ours = draw(*shape), layer(shape[-1], 6), layer(shape[-1], 6)
    ours.conv_general_dilated = convolve_3x3
    of_output = draw(*shape[:-1], 6)
    outputs, gradients = [], []
    for conv in (plain, ours):
        apply = nnx.grad(lambda conv, x: (conv(x) * of_output).sum(), argnums=(0, 1))
        of_conv, of_images = apply(conv, images)
        outputs.append(conv(images))
        gradients.append([of_conv["kernel"][...], of_conv["bias"][...], of_images])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    for one, other in zip(*gradients, strict=True):
        assert np.abs(other - one).max() <= 1e-5 * np.abs(one).max()


def test_candidates_may_be_vmapped():
    kernels, images = draw(2, 3, 3, 5, 4), draw(3, 6, 6, 5)

    def loss(convolve, kernel):
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return (convolve(images, kernel, (1, 1), "SAME", **numbers) ** 2).sum()

    expected = [jax.grad(partial(loss, jax.lax.conv_general_dilated))(k) for k in kernels]
    found = jax.vmap(jax.grad(partial(loss, convolve_3x3)))(kernels)
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-4, atol=1e-3)
