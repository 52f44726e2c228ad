"""Losses against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.training.losses import example_losses, probabilities

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]], np.float32)
LABELS = jnp.array([0, 2])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_definitions(smoothing):
    one_hot = np.eye(3)[LABELS]
    shares, yes = softmax(LOGITS), 1 / (1 + np.exp(-LOGITS))

    def binary(p):
        targets = one_hot * (1 - smoothing) + smoothing / 2
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(-1)

    expected = {
        "categorical": -((one_hot * (1 - smoothing) + smoothing / 3) * np.log(shares)).sum(-1),
        "binary": binary(yes),
        "keras-binary": binary(shares),
    }
    for name, value in expected.items():
        given = example_losses(name, LOGITS, LABELS, smoothing)  # pyright: ignore
        np.testing.assert_allclose(given, value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["categorical", "binary", "keras-binary"])
def test_far_logits_give_finite_losses_and_gradients(name):
    logits = np.array([[200.0, -200.0, 0.0]], np.float32)
    value, gradient = jax.value_and_grad(lambda x: example_losses(name, x, jnp.array([1])).sum())(
        logits
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_probabilities_belong_to_the_loss():
    np.testing.assert_allclose(probabilities("categorical", LOGITS).sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities("keras-binary", LOGITS), softmax(LOGITS), rtol=1e-5)
    np.testing.assert_allclose(
        probabilities("binary", LOGITS), 1 / (1 + np.exp(-LOGITS)), rtol=1e-5
    )
