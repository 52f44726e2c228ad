"""The built-in heads against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.model.heads import Dense256, Linear

FEATURES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32))


def arrays(dense: nnx.Linear) -> tuple[np.ndarray, np.ndarray]:
    assert dense.bias is not None
    return np.asarray(dense.kernel[...]), np.asarray(dense.bias[...])


def test_dense256_flattens_as_keras_does():
    """Rows, then columns, then channels: the order of Keras' Flatten for channels last."""
    head = Dense256((3, 4, 5), 7, rngs=nnx.Rngs(0))
    (hidden, hidden_bias), (logits, logits_bias) = arrays(head.hidden), arrays(head.logits)
    assert hidden.shape == (60, 256)
    flat = np.stack(
        [[f[h, w, c] for h in range(3) for w in range(4) for c in range(5)] for f in FEATURES]
    )
    expected = np.maximum(flat @ hidden + hidden_bias, 0) @ logits + logits_bias
    np.testing.assert_allclose(head(FEATURES), expected, rtol=1e-4, atol=1e-5)


def test_linear_averages_over_places():
    head = Linear((3, 4, 5), 7, rngs=nnx.Rngs(0))
    kernel, bias = arrays(head.logits)
    expected = FEATURES.mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(head(FEATURES), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.pool(FEATURES), FEATURES.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_kernels_start_as_keras_dense_layers_do():
    """Glorot uniform: within sqrt(6 / (in + out)), and spread over it; biases at zero."""
    kernel, bias = arrays(Dense256((3, 4, 5), 7, rngs=nnx.Rngs(0)).hidden)
    limit = np.sqrt(6 / (60 + 256))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    assert abs(kernel.std() - limit / np.sqrt(3)) < 0.02 * limit
    assert not bias.any()
