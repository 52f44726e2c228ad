"""The built-in heads: what stands between the backbone's features and the logits."""

from __future__ import annotations

import math

import jax
from flax import nnx


class Dense256(nnx.Module):
    """The recipe's head: flatten, 256 units with ReLU, one logit a class.

    Kernels start as Keras' do (Glorot uniform), biases at zero.
    """

    def __init__(
        self, feature_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`."""
        self.hidden = _dense(math.prod(feature_shape), 256, rngs)
        self.logits = _dense(256, num_classes, rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        flat = features.reshape(features.shape[0], -1)
        return self.logits(nnx.relu(self.hidden(flat)))


class Linear(nnx.Module):
    """Global average pooling, then one logit a class."""

    def __init__(
        self, feature_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`."""
        self.logits = _dense(feature_shape[-1], num_classes, rngs)

    def pool(self, features: jax.Array) -> jax.Array:
        """Average over places: `[B, h, w, c]` to `[B, c]`."""
        return features.mean((1, 2))

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        return self.logits(self.pool(features))


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.glorot_uniform(), rngs=rngs)
