"""Freezing: one tree of labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

from vgg_jax.model.freezing import label_parameters, split_parameters, train_only

PATHS = ["backbone/conv1_1/kernel", "backbone/conv4_3/bias", "backbone/conv5_1/kernel", "head/a/b"]


@pytest.mark.parametrize(
    ("boundary", "trained"),
    [("conv1_1", 4), ("conv4_3", 3), ("pool4", 2), ("conv5_1", 2), ("conv5_2", 1), ("head", 1)],
)
def test_everything_from_the_boundary_on_is_trained(boundary, trained):
    labels = label_parameters(PATHS, boundary)
    assert [labels[path] for path in PATHS] == ["frozen"] * (4 - trained) + ["trained"] * trained


def test_the_split_is_a_partition():
    parameters = {path: i for i, path in enumerate(PATHS)}
    trained, frozen = split_parameters(parameters, label_parameters(PATHS, "conv5_1"))
    assert list(trained) == PATHS[2:]
    assert trained | frozen == parameters


def test_the_optimizer_moves_what_is_trained_and_nothing_else():
    parameters = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = train_only(optax.adamw(0.1, weight_decay=0.5), {"a": "trained", "b": "frozen"})
    updates, _ = tx.update({"a": jnp.ones(2), "b": jnp.ones(2)}, tx.init(parameters), parameters)
    moved = {path: bool(jnp.any(value)) for path, value in jax.tree.leaves_with_path(updates)}
    assert [*moved.values()] == [True, False]
