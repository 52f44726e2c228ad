"""The forward pass of converted weights, layer by layer, as a proof asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.errors import DataError
from vgg_jax.layers import LAYERS
from vgg_jax.model.heads import Dense256, Linear, VGGTop
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.training.losses import probabilities
from vgg_jax.weights.proof import Forward
from vgg_jax.weights.source import SourceWeights
from vgg_jax.workflows.adopt import ClassifierDescription

_BLOCKS = tuple(name for name in LAYERS if name.endswith("_1"))
_HEADS = {"hidden": Dense256, "logits": Linear}  # by the first layer's name


def forward_pass(weights: SourceWeights) -> Forward:
    """Build the network that weights make, at the highest precision of any platform.

    Returns:
        A function from RGB uint8 `[1, S, S, 3]` to the name and float32 output of each layer.
    """
    keep_compiled_programs()
    backbone = VGG16.from_layers(weights.layers, mean=weights.mean, scale=weights.scale)
    head = _build_head(weights)
    graph, parameters = nnx.split(backbone)

    def forward(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        x = jax.device_put(images)
        # One program a block: one a layer takes more memory, one in all holds every output at once.
        for start, stop in itertools.pairwise((None, *_BLOCKS[1:], None)):
            with jax.default_matmul_precision("highest"):
                outputs = _walk(graph, parameters, x, start, stop)
            for name in sorted(outputs):  # which is also their order
                x = outputs.pop(name)
                yield name, np.asarray(x)
        if head is not None:
            with jax.default_matmul_precision("highest"):
                # Twice the same: for a single row XLA sums on CPU with ten times the error.
                twice = head.walk(jnp.concatenate([x, x]))
                rows = [(name, np.asarray(output[:1])) for name, output in twice]
            yield from rows

    return forward


@partial(jax.jit, static_argnums=(0, 3, 4))
def _walk(
    graph: nnx.GraphDef[VGG16],
    parameters: nnx.State,
    x: jax.Array,
    start: str | None,
    stop: str | None,
) -> dict[str, jax.Array]:
    """Return the outputs of a stretch of layers by name; compiled once for all equal networks.

    `x` is images where `start` is None, else what the layer before `start` gave.
    """
    backbone = nnx.merge(graph, parameters)
    return dict(backbone.walk(backbone.normalise(x) if start is None else x, start, stop))


def most_probable(
    forward: Forward, classifier: ClassifierDescription, picture: Path
) -> tuple[tuple[str, float], ...]:
    """Return the five most probable classes of a picture, and their probabilities.

    Args:
        forward: The network.
        classifier: What it tells apart, and how.
        picture: An image file.

    Raises:
        DataError: If the picture cannot be read.
    """
    from vgg_jax.data.decode import decode_image, resize_image  # Pillow takes memory

    try:
        image = decode_image(picture.read_bytes(), str(picture))
    except OSError as error:
        raise DataError(f"{picture} cannot be read: {error.strerror}.") from error
    image = resize_image(image, classifier.image_size, classifier.interpolation)
    *_, (_, logits) = forward(image[np.newaxis])
    if logits.size == 1:  # a sigmoid is the softmax of zero and its logit
        logits = np.pad(logits, ((0, 0), (1, 0)))
    shares = np.asarray(probabilities(classifier.loss, jnp.asarray(logits)))[0]
    return tuple((classifier.class_names[i], float(shares[i])) for i in np.argsort(-shares)[:5])


def _build_head(weights: SourceWeights) -> VGGTop | Dense256 | Linear | None:
    if weights.top:
        return VGGTop.from_layers(weights.top)
    if not weights.head:
        return None
    kind = _HEADS[next(iter(weights.head))]
    inputs = next(iter(weights.head.values()))[0].shape[0]
    num_classes = weights.head["logits"][1].size
    head = nnx.eval_shape(lambda: kind((1, 1, inputs), num_classes, rngs=nnx.Rngs(0)))
    for name, (kernel, bias) in weights.head.items():
        getattr(head, name).kernel.set_value(jax.device_put(kernel))
        getattr(head, name).bias.set_value(jax.device_put(bias))
    return head
