"""Heads: what stands between the backbone's features and the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import jax
import numpy as np
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

    def walk(self, features: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yield each layer's name and output, `[B, n]`: `hidden` after ReLU, `logits`."""
        hidden = nnx.relu(self.hidden(features.reshape(features.shape[0], -1)))
        yield "hidden", hidden
        yield "logits", self.logits(hidden)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        return _last(self.walk(features))


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

    def walk(self, features: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yield the name and output of the only layer, `logits`, `[B, K]`."""
        yield "logits", self.logits(self.pool(features))

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        return _last(self.walk(features))


class VGGTop(nnx.Module):
    """The paper's own head: fc6 and fc7 with ReLU and dropout, then fc8, one logit a class.

    Keras calls these layers `fc1`, `fc2` and `predictions`. Dropout sets half of the values to zero
    and doubles the others, in training mode only.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        *,
        units: int = 4096,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`.

        Args:
            feature_shape: `(7, 7, 512)` in the published network.
            num_classes: Number of logits.
            units: Outputs of fc6 and of fc7.
            rngs: Draws the kernels, and is dropout's generator.
        """
        self.fc6 = _dense(math.prod(feature_shape), units, rngs)
        self.fc7 = _dense(units, units, rngs)
        self.fc8 = _dense(units, num_classes, rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    @classmethod
    def from_layers(
        cls, layers: Mapping[str, tuple[np.ndarray, np.ndarray]], *, rngs: nnx.Rngs | None = None
    ) -> VGGTop:
        """Build the head, in inference mode, from given layers; nothing is drawn or compiled.

        Args:
            layers: `fc6`, `fc7` and `fc8`: kernel `[in, out]`, bias `[out]`, float32, of any width;
                fc6 takes features flattened in the order height, width, channels. Where JAX can
                share their memory it does, so they must not change.
            rngs: Dropout's generator; without it the head cannot be trained.
        """
        inputs, units = layers["fc6"][0].shape
        shape, num_classes = (1, 1, inputs), layers["fc8"][0].shape[1]
        top = nnx.eval_shape(lambda: cls(shape, num_classes, units=units, rngs=nnx.Rngs(0)))
        for name, (kernel, bias) in layers.items():
            dense = getattr(top, name)
            # Not jnp.asarray, which holds two copies for a moment: the published fc6 has 411 MB.
            dense.kernel.set_value(jax.device_put(kernel))
            dense.bias.set_value(jax.device_put(bias))
        top.dropout = nnx.Dropout(0.5, rngs=rngs)
        top.eval()
        return top

    def walk(self, features: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yield each layer's name and output for features `[B, h, w, c]`; the last are logits."""
        x = features.reshape(features.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = self.dropout(nnx.relu(getattr(self, name)(x)))
            yield name, x
        yield "fc8", self.fc8(x)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        return dict(self.walk(features))["fc8"]


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.glorot_uniform(), rngs=rngs)


def _last(walk: Iterator[tuple[str, jax.Array]]) -> jax.Array:
    """Return the output of the last layer."""
    *_, (_, output) = walk
    return output
