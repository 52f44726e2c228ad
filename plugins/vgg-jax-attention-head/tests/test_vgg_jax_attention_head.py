"""Attention pooling: the contract, where it looks, and that it learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from vgg_jax_attention_head import Attention

from vgg_jax.api import OptionError
from vgg_jax.testing import check_head

SHAPE = (4, 4, 16)
FEATURES = jnp.asarray(np.random.default_rng(0).standard_normal((3, *SHAPE)), jnp.float32)


@pytest.mark.parametrize("positions", [True, False])
def test_the_contract_is_kept(positions):
    check_head(Attention, heads=2, positions=positions, dropout=0.3)


def test_weights_are_shares():
    weights = Attention(SHAPE, 5, heads=4, rngs=nnx.Rngs(0)).weights(FEATURES)
    assert weights.shape == (3, 4, 16)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_without_positions_the_order_of_places_does_not_matter():
    order = np.random.default_rng(1).permutation(16)
    shuffled = FEATURES.reshape(3, 16, 16)[:, order].reshape(3, *SHAPE)
    without = Attention(SHAPE, 5, heads=4, positions=False, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(without(FEATURES), without(shuffled), atol=1e-5)
    own = Attention(SHAPE, 5, heads=4, rngs=nnx.Rngs(0))
    assert not np.allclose(own(FEATURES), own(shuffled), atol=1e-5)


def test_it_learns_to_look_where_the_class_is():
    """One place of sixteen, anywhere, tells the class; the others are noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 256)
    features = rng.standard_normal((256, 16, 16)).astype(np.float32)
    signs = 4 * np.eye(16, dtype=np.float32)[:3]
    marked = rng.integers(0, 16, 256)
    features[np.arange(256), marked] = signs[labels]
    features = jnp.asarray(features.reshape(256, *SHAPE))
    graph, state, rest = nnx.split(Attention(SHAPE, 3, heads=2, rngs=nnx.Rngs(0)), nnx.Param, ...)
    tx = optax.adam(1e-2)

    def loss(state):
        logits = nnx.merge(graph, state, rest)(features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(state, optimizer):
        updates, optimizer = tx.update(jax.grad(loss)(state), optimizer, state)
        return optax.apply_updates(state, updates), optimizer

    optimizer = tx.init(state)
    for _ in range(80):
        state, optimizer = step(state, optimizer)
    head = nnx.merge(graph, state, rest)
    accuracy = (np.asarray(head(features)).argmax(1) == labels).mean()
    assert accuracy > 0.95
    share = np.asarray(head.weights(features)).max(1)[np.arange(256), marked].mean()
    assert share > 3 / 16  # three times what an average gives it


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 5}, "divides the 16 channels"), ({"dropout": 1.0}, "option 'dropout' is 1.0")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Attention(SHAPE, 3, rngs=nnx.Rngs(0), **options)
