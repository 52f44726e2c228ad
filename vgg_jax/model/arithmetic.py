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
# What Linux calls instructions by which products of bfloat16 are faster; of ARM's it is not known.
# With avx512_bf16 alone they are slower than those of float32: benchmarks/README.md.
_BFLOAT16 = {"amx_bf16", "bf16"}


def set_arithmetic(
    backbone: VGG16, precision: Precision, *, on_one_cpu: bool, gradient: bool
) -> None:
    """Choose how a backbone convolves.

    Args:
        backbone: Any; its layers are changed.
        precision: float32; or bfloat16: what is multiplied is rounded to it, and added up in
            float32. Unless `on_one_cpu`, the outputs of layers, their biases and the gradients of
            both are rounded, too.
        on_one_cpu: Whether to convolve as in `vgg_jax.model.convolution`.
        gradient: Whether the gradient is taken, too.
    """
    if on_one_cpu:
        least = 0 if gradient and precision == "float32" else _LEAST_TOGETHER
        convolve = partial(
            convolve_3x3,
            least_together=least,
            products=precision,
            as_float32=precision == "bfloat16" and not multiplies_bfloat16(),
        )
        backbone.set_attributes(conv_general_dilated=convolve)
    elif precision == "bfloat16":
        backbone.set_attributes(dtype=jnp.bfloat16)


def gains_from_bfloat16() -> bool:
    """Return False on CPUs known to be no faster with it, and where they are several devices."""
    if jax.default_backend() != "cpu":
        return True
    # XLA's own convolutions, those of several devices, do not use these instructions.
    return jax.device_count() == 1 and multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """Return False on CPUs whose products of bfloat16 are known to be no faster than float32's."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:  # not on this system
        return True
    features = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    return features is None or bool(_BFLOAT16 & {*features[1].split()})
