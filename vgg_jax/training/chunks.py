"""How many steps are taken in one program.

Where a step is short, as for heads that pool, calling a program for each takes as long as what it
computes, and putting its batch together longer. There chunks of batches are handed over, whose
steps follow each other in a loop on the device; see `vgg_jax.training.inputs.Inputs`. Keras has
`steps_per_execution` for it. benchmarks/README.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from vgg_jax.config import ResolvedConfig
from vgg_jax.model.classifier import Functional
from vgg_jax.model.pieces import on_one_cpu

_MOST_PARAMETERS = 600_000
_MOST_BATCHES, _MOST_EXAMPLES = 32, 4096  # so that signals are soon heard
_MOST_BYTES = 4_000_000  # of features: a batch by itself is padded to as many


def most_batches(
    functional: Functional, trained: Mapping[str, Any], config: ResolvedConfig, *, mixes: bool
) -> int:
    """Return how many batches a chunk may have; 1 where steps are taken one by one.

    Args:
        functional: The classifier.
        trained: Its trained parameters, with shapes.
        config: Options of the training.
        mixes: Whether augmentations mix the pictures of a batch.
    """
    parameters = sum(value.size for value in trained.values())
    if not on_one_cpu() or mixes or not functional.pools:
        return 1
    if convolves(trained) or parameters > _MOST_PARAMETERS:
        return 1
    pooled = pooled_row(functional, config)
    bytes_of_batch = config.batch_size * pooled.size * pooled.dtype.itemsize
    most = min(_MOST_EXAMPLES // config.batch_size, _MOST_BYTES // bytes_of_batch)
    return max(min(_MOST_BATCHES, most), 1)


def pooled_row(functional: Functional, config: ResolvedConfig) -> jax.ShapeDtypeStruct:
    """Return what a head that pools is trained on, of one example."""
    classifier = functional.bind({})
    shape = (1, *classifier.backbone.output_shape(config.image_size))
    features = jax.ShapeDtypeStruct(shape, config.features_dtype)
    pooled = jax.eval_shape(classifier.pool, features)
    return jax.ShapeDtypeStruct(pooled.shape[1:], pooled.dtype)


def convolves(trained: Mapping[str, Any]) -> bool:
    """Return whether some of these parameters, with shapes, may be kernels of convolutions."""
    return any(len(value.shape) > 2 for value in trained.values())
