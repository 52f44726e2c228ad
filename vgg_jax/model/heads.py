"""Heads: what stands between the backbone's features and the logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import numpy as np
from flax import nnx

from vgg_jax.contract import OptionError, require


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


class MLP(nnx.Module):
    """Flatten, hidden layers, one logit a class.

    Each hidden layer is dense, then perhaps normalised, then activated, then perhaps dropped out.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: tuple[int, ...] = (256,),
        activation: Literal["relu", "gelu"] = "relu",
        norm: Literal["none", "layer"] = "none",
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`.

        Args:
            feature_shape: `(h, w, c)`.
            num_classes: Number of logits.
            hidden: Units of each hidden layer, each in [1, infinity); none for logits alone.
            activation: What follows a hidden layer: relu or gelu.
            norm: What comes before that: none, or layer for layer normalisation, which looks at
                one picture by itself.
            dropout: Share of a hidden layer's outputs that is set to zero in training, in [0, 1).
            rngs: Draws the kernels, and is dropout's generator.

        Raises:
            OptionError: If an option is out of range.
        """
        self._build("mlp", math.prod(feature_shape), num_classes, hidden, norm, dropout, rngs)
        self.activation = activation

    def _build(
        self,
        name: str,
        inputs: int,
        num_classes: int,
        hidden: tuple[int, ...],
        norm: str,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        expected = "a list of whole numbers in [1, infinity)"
        require(all(units >= 1 for units in hidden), name, "hidden", list(hidden), expected)
        _require_dropout(name, dropout)
        sizes = (inputs, *hidden)
        self.hidden = nnx.List([_dense(*pair, rngs) for pair in itertools.pairwise(sizes)])
        norms = [nnx.LayerNorm(units, rngs=rngs) for units in hidden] if norm == "layer" else []
        self.norms = nnx.List(norms)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.logits = _dense(sizes[-1], num_classes, rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        return self._from_vector(features.reshape(features.shape[0], -1))

    def _from_vector(self, x: jax.Array) -> jax.Array:
        activate = {"relu": nnx.relu, "gelu": nnx.gelu}[self.activation]
        for i, dense in enumerate(self.hidden):
            x = dense(x)
            if self.norms:
                x = self.norms[i](x)
            x = self.dropout(activate(x))
        return self.logits(x)


class GapMLP(MLP):
    """Global average pooling, hidden layers, one logit a class: `mlp` with far fewer parameters."""

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: tuple[int, ...] = (256,),
        activation: Literal["relu", "gelu"] = "relu",
        norm: Literal["none", "layer"] = "none",
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`.

        Args:
            feature_shape: `(h, w, c)`.
            num_classes: Number of logits.
            hidden: Units of each hidden layer, each in [1, infinity); none for logits alone.
            activation: What follows a hidden layer: relu or gelu.
            norm: What comes before that: none, or layer for layer normalisation, which looks at
                one picture by itself.
            dropout: Share of a hidden layer's outputs that is set to zero in training, in [0, 1).
            rngs: Draws the kernels, and is dropout's generator.

        Raises:
            OptionError: If an option is out of range.
        """
        self._build("gap-mlp", feature_shape[-1], num_classes, hidden, norm, dropout, rngs)
        self.activation = activation

    def pool(self, features: jax.Array) -> jax.Array:
        """Average over places: `[B, h, w, c]` to `[B, c]`."""
        return features.mean((1, 2))

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map features `[B, h, w, c]` to logits `[B, K]`."""
        return self._from_vector(self.pool(features))


class VGGTop(nnx.Module):
    """The paper's own head: fc6 and fc7 with ReLU and dropout, then fc8, one logit a class.

    Keras calls these layers `fc1`, `fc2` and `predictions`. Where the weights have a top, fc6 and
    fc7 start from it; fc8 never does, since the classes are others.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        *,
        units: int = 4096,
        dropout: float = 0.5,
        pretrained: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the head for features `[B, h, w, c]` with `feature_shape` `(h, w, c)`.

        Args:
            feature_shape: `(7, 7, 512)` in the published network.
            num_classes: Number of logits.
            units: Outputs of fc6 and of fc7, in [1, infinity); 4096 in the published network.
            dropout: Share of the outputs of fc6 and fc7 that is set to zero in training, in [0, 1).
            pretrained: Whether fc6 and fc7 start from the top of the weights, if they have one.
            rngs: Draws the kernels, and is dropout's generator.

        Raises:
            OptionError: If an option is out of range.
        """
        require(units >= 1, "vgg", "units", units, "a whole number in [1, infinity)")
        _require_dropout("vgg", dropout)
        self.fc6 = _dense(math.prod(feature_shape), units, rngs)
        self.fc7 = _dense(units, units, rngs)
        self.fc8 = _dense(units, num_classes, rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.pretrained = pretrained

    def initialise_from(self, layers: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Start fc6 and fc7 from the top of weights.

        Args:
            layers: `fc6` and `fc7`, perhaps among others: kernel `[in, out]`, bias `[out]`.

        Raises:
            OptionError: If their shapes are not those of this head.
        """
        if not self.pretrained:
            return
        for name in ("fc6", "fc7"):
            dense, (kernel, bias) = getattr(self, name), layers[name]
            if dense.kernel.shape != kernel.shape:
                raise OptionError(
                    f"vgg: {name} of the weights takes {kernel.shape[0]} values and gives"
                    f" {kernel.shape[1]}, the head's {dense.kernel.shape[0]} and"
                    f" {dense.kernel.shape[1]}. Use the image size of the weights (224 for"
                    f" ImageNet's) and units={layers['fc6'][0].shape[1]}, or start from random"
                    " numbers: vgg:pretrained=false."
                )
            dense.kernel.set_value(jax.device_put(kernel))
            dense.bias.set_value(jax.device_put(bias))

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


def _require_dropout(owner: str, dropout: float) -> None:
    require(0 <= dropout < 1, owner, "dropout", dropout, "a number in [0, 1)")
