"""Ten steps of the recipe against the real Keras; see `golden/make_golden.py`."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from source_weights import read_source_weights

from vgg_jax.config import LossName
from vgg_jax.layers import keras_name
from vgg_jax.model.classifier import Classifier, make_functional
from vgg_jax.model.freezing import label_parameters, split_parameters, train_only
from vgg_jax.model.heads import Dense256
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.optim import make_optimizer
from vgg_jax.training.steps import Hyperparameters, Steps, Totals, TrainState

GOLDEN = Path(__file__).parent / "golden"
LEARNING_RATE = 1e-4
KERAS_LAYERS = {"head/hidden": "dense", "head/logits": "predictions"}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "recipe_steps.npz") as file:
        return dict(file)


def train(golden, loss: LossName, label_smoothing=0.0):
    """Take the ten steps; returns the losses, and each trained parameter before and after."""
    weights = read_source_weights(GOLDEN / "narrow_legacy.h5")
    backbone = VGG16.from_layers(weights.layers, mean=weights.mean, scale=weights.scale)
    head = Dense256((1, 1, 32), 3, rngs=nnx.Rngs(0))
    for part, name in ((head.hidden, "dense"), (head.logits, "predictions")):
        for role in ("kernel", "bias"):
            getattr(part, role).set_value(jnp.asarray(golden[f"{name}_{role}"]))
    functional, parameters = make_functional(Classifier(backbone, head, "conv5_1"))
    labels = label_parameters(parameters, "conv5_1")
    trained, frozen = split_parameters(parameters, labels)
    before = {path: np.array(value) for path, value in trained.items()}
    optimizer = make_optimizer("rmsprop", learning_rate=LEARNING_RATE, weight_decay=0.0)
    tx = train_only(optimizer, {path: labels[path] for path in trained})
    steps = Steps(functional, lambda numbers: tx, loss)
    numbers = Hyperparameters(*map(jnp.float32, (LEARNING_RATE, 0.0, label_smoothing)))
    state = TrainState(trained, tx.init(trained), jnp.zeros((), jnp.uint32), numbers)
    losses = []
    for images, targets in zip(golden["images"], golden["labels"], strict=True):
        features = steps.features(frozen, jnp.asarray(images))
        inputs = Inputs(features, jnp.asarray(targets, jnp.int32), jnp.ones(len(targets), bool))
        state, totals = steps.train(state, Totals.start(), inputs)
        losses.append(float(totals.loss) / len(targets))
    return losses, before, {path: np.array(value) for path, value in state.trained.items()}


def test_the_losses_and_updates_are_those_of_keras(golden):
    losses, before, after = train(golden, "categorical")
    np.testing.assert_allclose(losses, golden["losses_categorical"], rtol=1e-4)
    assert len(after) == 10
    for path, value in after.items():
        module, kind = path.rsplit("/", 1)
        name = KERAS_LAYERS.get(module) or keras_name(module.split("/")[1])
        ours = (value - before[path]).ravel()
        theirs = (golden[f"after/{name}_{kind}"] - before[path]).ravel()
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine > 0.999, path


def test_keras_binary_is_what_keras_computes_over_a_softmax(golden):
    losses, _, _ = train(golden, "keras-binary")
    np.testing.assert_allclose(losses, golden["losses_binary"], rtol=1e-4)


def test_label_smoothing_is_that_of_keras(golden):
    losses, _, _ = train(golden, "categorical", label_smoothing=0.1)
    np.testing.assert_allclose(losses, golden["losses_smoothed"], rtol=1e-4)
