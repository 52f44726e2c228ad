"""The convolutional part of VGG16, of any width, as a Flax NNX module.

Layers carry the names of the paper: `conv1_1` to `conv5_3`, each a 3x3 convolution with ReLU, and
`pool1` to `pool5`, 2x2 max pooling with stride 2. Arrays are `[B, H, W, C]`, float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.errors import UnknownLayerError
from vgg_jax.layers import BASE_CHANNELS, IMAGENET_MEAN_RGB, LAYERS, kernel_shapes


class VGG16(nnx.Module):
    """VGG16 without its top: thirteen convolutions with ReLU, five max poolings.

    Attributes:
        width: Channels relative to the published network, 1 for ImageNet's.
        mean: RGB means on the scale 0 to 255 that `normalise` subtracts.
        scale: RGB factors that `normalise` then multiplies by.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        mean: Sequence[float] = IMAGENET_MEAN_RGB,
        scale: Sequence[float] = (1.0, 1.0, 1.0),
        rngs: nnx.Rngs,
    ) -> None:
        """Build a network with random (He normal) kernels and zero biases.

        The kernels of conv1_1 are 1/64 of He's, because its inputs span about 256 and not 1.

        Raises:
            WeightsError: If `width` does not give whole numbers of channels.
        """
        self.width = width
        self.mean = tuple(float(value) for value in mean)
        self.scale = tuple(float(value) for value in scale)
        he_normal = nnx.initializers.he_normal()
        for name, (*_, channels_in, channels_out) in kernel_shapes(width).items():
            conv = nnx.Conv(channels_in, channels_out, (3, 3), kernel_init=he_normal, rngs=rngs)
            if name == "conv1_1":
                conv.kernel[...] = conv.kernel[...] / 64
            setattr(self, name, conv)

    @classmethod
    def random(cls, width: float = 1.0, *, seed: int) -> VGG16:
        """Build an untrained network, like the constructor, drawn by NumPy from a seed.

        The constructor compiles one program for each kernel's shape; this takes none.
        """
        rng = np.random.default_rng(seed)
        layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, shape in kernel_shapes(width).items():
            kernel = rng.standard_normal(shape, np.float32)
            kernel *= np.float32(
                np.sqrt(2 / np.prod(shape[:-1])) / (64 if name == "conv1_1" else 1)
            )
            layers[name] = kernel, np.zeros(shape[-1], np.float32)
        return cls.from_layers(layers, mean=IMAGENET_MEAN_RGB, scale=(1.0, 1.0, 1.0))

    @classmethod
    def from_layers(
        cls,
        layers: Mapping[str, tuple[np.ndarray, np.ndarray]],
        *,
        mean: Sequence[float],
        scale: Sequence[float],
    ) -> VGG16:
        """Build a network from {convolution: (HWIO kernel, bias)}, float32, all thirteen.

        Where JAX can share the arrays' memory it does, so they must not change.
        """
        width = layers["conv1_1"][0].shape[-1] / BASE_CHANNELS[0]
        graph, variables = _outline(cls, width, tuple(mean), tuple(scale))

        def with_value(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
            name, kind = path
            kernel, bias = layers[name]
            return variable.replace(jax.device_put(kernel if kind == "kernel" else bias))

        return nnx.merge(graph, nnx.map_state(with_value, variables))

    def output_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return the shape `(h, w, c)` that all layers make of a square image of that side."""
        side = image_size // 2 ** len(BASE_CHANNELS)
        *_, channels = kernel_shapes(self.width)["conv5_3"]
        return side, side, channels

    def normalise(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Turn RGB `[B, H, W, 3]`, uint8 or float32 in [0, 1], into the network's input."""
        images = jnp.asarray(images)
        pixels = images.astype(jnp.float32)
        if images.dtype != jnp.uint8:
            pixels = pixels * 255.0
        mean, scale = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.scale, jnp.float32)
        return (pixels - mean) * scale

    def run(self, x: jax.Array, start: str | None = None, stop: str | None = None) -> jax.Array:
        """Apply the layers from `start` (the first if None) up to, but not including, `stop`.

        Args:
            x: `[B, H, W, C]`: the normalised images for `start` None or `conv1_1`, else what the
                layer before `start` gave.
            start: First layer to apply.
            stop: First layer to leave out; None applies all.

        Returns:
            `[B, h, w, c]`, after ReLU where the last layer is a convolution; `x` where none
            applies.

        Raises:
            UnknownLayerError: If a name is not one of `vgg_jax.layers.LAYERS`.
        """
        for _, output in self.walk(x, start, stop):
            x = output
        return x

    def walk(
        self, x: jax.Array, start: str | None = None, stop: str | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yield each layer's name and output, for the same stretch of layers as `run`."""
        first = 0 if start is None else _index(start)
        last = len(LAYERS) if stop is None else _index(stop)
        for name in LAYERS[first:last]:
            x = max_pool_2x2(x) if name.startswith("pool") else nnx.relu(getattr(self, name)(x))
            yield name, x

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply all layers to a normalised `[B, H, W, 3]`; returns `[B, H // 32, W // 32, C]`."""
        return self.run(x)


@functools.cache  # to make one takes 70 ms
def _outline(
    kind: type[VGG16], width: float, mean: tuple[float, ...], scale: tuple[float, ...]
) -> tuple[nnx.GraphDef[VGG16], nnx.State]:
    """Return what a network is made of, its variables without values."""
    return nnx.split(nnx.eval_shape(lambda: kind(width, mean=mean, scale=scale, rngs=nnx.Rngs(0))))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Return the maximum of each 2x2 window, stride 2; an odd last row or column is left out.

    As elementwise maxima: on CPU the forward pass of the network takes 0.7 of the time that it
    takes with `reduce_window`.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def _index(layer: str) -> int:
    if layer not in LAYERS:
        raise UnknownLayerError(layer, LAYERS)
    return LAYERS.index(layer)
