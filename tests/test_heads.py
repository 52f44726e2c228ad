"""The built-in heads against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax.model.heads import Dense256, Linear, VGGTop

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


def top_layers(inputs: int = 60, units: int = 8, classes: int = 7):
    rng = np.random.default_rng(1)
    shapes = {"fc6": (inputs, units), "fc7": (units, units), "fc8": (units, classes)}
    return {
        name: (rng.standard_normal(shape, np.float32), rng.standard_normal(shape[1], np.float32))
        for name, shape in shapes.items()
    }


def test_the_top_is_two_hidden_layers_and_logits():
    layers = top_layers()
    outputs = dict(VGGTop.from_layers(layers).walk(FEATURES))
    x = np.asarray(FEATURES).reshape(2, -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ layers[name][0] + layers[name][1], 0)
        np.testing.assert_allclose(outputs[name], x, rtol=1e-4, atol=1e-5)
    logits = x @ layers["fc8"][0] + layers["fc8"][1]
    np.testing.assert_allclose(VGGTop.from_layers(layers)(FEATURES), logits, rtol=1e-4, atol=1e-4)


def test_a_drawn_top_has_the_shapes_asked_for():
    top = VGGTop((3, 4, 5), 7, units=8, rngs=nnx.Rngs(0))
    shapes = [arrays(dense)[0].shape for dense in (top.fc6, top.fc7, top.fc8)]
    assert shapes == [(60, 8), (8, 8), (8, 7)]
    assert top(FEATURES).shape == (2, 7)


def test_dropout_zeroes_half_and_doubles_the_rest_in_training_mode_only():
    layers = top_layers(units=4096)
    top = VGGTop.from_layers(layers, rngs=nnx.Rngs(0))
    plain = np.asarray(dict(top.walk(FEATURES))["fc6"])
    top.train()
    dropped = np.asarray(dict(top.walk(FEATURES))["fc6"])
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-6)
    assert abs(kept.sum() / (plain != 0).sum() - 0.5) < 0.03


def test_a_top_without_a_generator_says_so_in_training_mode():
    top = VGGTop.from_layers(top_layers())
    top.train()
    with pytest.raises(ValueError, match="rngs"):
        top(FEATURES)
