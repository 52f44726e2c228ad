"""How a backbone convolves: as suits the device, in float32 or in bfloat16."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from vgg_jax.config import Precision
from vgg_jax.model.convolution import convolve_3x3
from vgg_jax.model.vgg16 import VGG16

# Channels of images and output together. Without a gradient Winograd's convolutions win less in
# float32, and have to make up for the time to compile them.
_LEAST_TOGETHER_FORWARD = 384


def set_arithmetic(
    backbone: VGG16, precision: Precision, *, on_one_cpu: bool, gradient: bool
) -> None:
    """Choose how a backbone convolves.

    Args:
        backbone: Any; its layers are changed.
        precision: float32; or bfloat16: what is multiplied is rounded to it, and added up in
            float32. Unless `on_one_cpu`, the outputs of layers are rounded, too.
        on_one_cpu: Whether to convolve as in `vgg_jax.model.convolution`.
        gradient: Whether there will be one.
    """
    if on_one_cpu:
        least = 0 if gradient or precision == "bfloat16" else _LEAST_TOGETHER_FORWARD
        convolve = partial(convolve_3x3, least_together=least, dtype=precision)
        backbone.set_attributes(conv_general_dilated=convolve)
    elif precision == "bfloat16":
        backbone.set_attributes(dtype=jnp.bfloat16)
