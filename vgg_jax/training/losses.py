"""Losses and the probabilities that belong to them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.config import LossName

_KERAS_EPSILON = 1e-7  # keras.config.epsilon(), to which Keras clips probabilities


def example_losses(
    name: LossName, logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Return the loss of each example, `[B]`.

    Args:
        name: categorical: cross-entropy of the softmax. binary: mean over the classes of the binary
            cross-entropy of the sigmoids. keras-binary: the same of the softmax's outputs, which is
            what `loss="binary_crossentropy"` over a softmax gives in Keras.
        logits: `[B, K]`.
        labels: Class numbers, int `[B]`, or the share of each class in each target, float `[B, K]`.
        label_smoothing: Share of each target that is spread evenly: over the K classes for
            categorical, over yes and no for the binary losses, as in Keras.
    """
    classes = logits.shape[-1]
    targets = labels if labels.ndim == logits.ndim else jax.nn.one_hot(labels, classes)
    even = 1 / classes if name == "categorical" else 0.5
    targets = targets * (1 - label_smoothing) + label_smoothing * even
    if name == "categorical":
        return -(targets * jax.nn.log_softmax(logits)).sum(-1)
    if name == "binary":
        yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(targets * yes + (1 - targets) * no).mean(-1)
    shares = jnp.clip(jax.nn.softmax(logits), _KERAS_EPSILON, 1 - _KERAS_EPSILON)
    return -(targets * jnp.log(shares) + (1 - targets) * jnp.log(1 - shares)).mean(-1)


def share_losses(name: LossName, shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the loss of each example, `[N]`, from probabilities alone.

    Args:
        name: As for `example_losses`.
        shares: Probabilities `[N, K]`; they are clipped to 1e-7 and 1 - 1e-7.
        labels: Class numbers `[N]`.
    """
    shares = np.clip(shares, _KERAS_EPSILON, 1 - _KERAS_EPSILON)
    targets = np.eye(shares.shape[1])[labels]
    if name == "categorical":
        return -(targets * np.log(shares)).sum(-1)
    return -(targets * np.log(shares) + (1 - targets) * np.log(1 - shares)).mean(-1)


def probabilities(name: LossName, logits: jax.Array) -> jax.Array:
    """Turn logits `[B, K]` into probabilities: sigmoids for binary, else a softmax."""
    return jax.nn.sigmoid(logits) if name == "binary" else jax.nn.softmax(logits)
