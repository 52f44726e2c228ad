"""How a backbone convolves: as suits the device, in float32 or in bfloat16."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from vgg_jax.config import Precision
from vgg_jax.model.convolution import convolve_3x3
from vgg_jax.model.vgg16 import VGG16

# Channels of images and output together, from which on Winograd's convolutions win. In float32 they
# do with fewer where a gradient is taken, but else have to make up for the time to compile them.
_LEAST_TOGETHER = 384
_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}  # what Linux calls such instructions; ARM's last


def set_arithmetic(
    backbone: VGG16, precision: Precision, *, winograd: bool, gradient: bool
) -> None:
    """Choose how a backbone convolves.

    Args:
        backbone: Any; its layers are changed.
        precision: float32; or bfloat16: what is multiplied is rounded to it, and added up in
            float32. Unless `winograd`, the outputs of layers, their biases and the gradients of
            both are rounded, too.
        winograd: Whether by `vgg_jax.model.convolution`, which is for one CPU, where that wins.
        gradient: Whether the gradient is taken, too.
    """
    if winograd:
        least = 0 if gradient and precision == "float32" else _LEAST_TOGETHER
        # Flax has a `precision` of its own for the function that it is given.
        convolve = partial(convolve_3x3, least_together=least, dtype=precision)
        backbone.set_attributes(conv_general_dilated=convolve)
    elif precision == "bfloat16":
        backbone.set_attributes(dtype=jnp.bfloat16)


def lacks_bfloat16() -> bool:
    """Return whether the device is a CPU that is known to have no instructions for bfloat16."""
    if jax.default_backend() != "cpu":
        return False
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:  # not on this system
        return False
    features = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    return features is not None and not _BFLOAT16 & {*features[1].split()}
