"""Optimizers against the update rules that Keras documents."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_jax.training.optim import make_optimizer


def steps(name, decay=0.0, gradients=(0.5, -2.0, 1e-9), rate=0.1):
    tx = make_optimizer(name, learning_rate=rate, weight_decay=decay)
    x = jnp.array(3.0)
    state, values = tx.init(x), []
    for gradient in gradients:
        updates, state = tx.update(jnp.array(gradient), state, x)
        x = optax.apply_updates(x, updates)
        values.append(float(x))  # pyright: ignore
    return values


def test_rmsprop_has_epsilon_inside_the_root():
    x, mean_square, expected = 3.0, 0.0, []
    for gradient in (0.5, -2.0, 1e-9):
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        x -= 0.1 * gradient / np.sqrt(mean_square + 1e-7)
        expected.append(x)
    np.testing.assert_allclose(steps("rmsprop"), expected, rtol=1e-6)
    # where the gradient is tiny, the place of epsilon decides: outside the root this would be 3.1
    assert abs(steps("rmsprop", gradients=(1e-9,))[0] - 3.0) < 1e-6


def test_sgd_has_momentum():
    np.testing.assert_allclose(steps("sgd", gradients=(1.0, 1.0)), [2.9, 2.9 - 0.19], rtol=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw", "sgd"])
def test_weight_decay_is_decoupled(name):
    # with no gradient at all, decay alone moves the parameter, by rate * decay of it
    np.testing.assert_allclose(steps(name, 0.5, gradients=(0.0,)), [3.0 * (1 - 0.05)], rtol=1e-6)
