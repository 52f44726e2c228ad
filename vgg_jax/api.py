"""What plugin packages import, and all they may rely on.

An augmentation is a frozen dataclass whose keyword-only fields are its options, derived from one of
four kinds.
A chain runs the kinds in this order: host, then geometric and pixel in any order, then batch.
Images are RGB; float images are in [0, 1]; `key` is a JAX random key and comes first.

A head is a callable `(feature_shape, num_classes, *, rngs, **options) -> flax.nnx.Module`:
`feature_shape` is `(h, w, c)` and the module maps `[B, h, w, c]` to logits `[B, num_classes]`.

Beside the kinds there are functions on single images, float32 `[H, W, 3]` in [0, 1], from which
augmentations can be made. They are loaded when first used, so that importing this module does not
import JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vgg_jax.contract import (
    Augmentation,
    BatchAugmentation,
    GeometricAugmentation,
    HostAugmentation,
    OptionError,
    PixelAugmentation,
    require,
)

if TYPE_CHECKING:
    from vgg_jax.augment.functional import adjust_brightness as adjust_brightness
    from vgg_jax.augment.functional import adjust_contrast as adjust_contrast
    from vgg_jax.augment.functional import adjust_hue as adjust_hue
    from vgg_jax.augment.functional import adjust_saturation as adjust_saturation
    from vgg_jax.augment.functional import adjust_sharpness as adjust_sharpness
    from vgg_jax.augment.functional import autocontrast as autocontrast
    from vgg_jax.augment.functional import equalize as equalize
    from vgg_jax.augment.functional import gaussian_blur as gaussian_blur
    from vgg_jax.augment.functional import grayscale as grayscale
    from vgg_jax.augment.functional import invert as invert
    from vgg_jax.augment.functional import posterize as posterize
    from vgg_jax.augment.functional import solarize as solarize
    from vgg_jax.augment.geometric import rotation_matrix as rotation_matrix
    from vgg_jax.augment.geometric import scaling_matrix as scaling_matrix
    from vgg_jax.augment.geometric import shear_matrix as shear_matrix
    from vgg_jax.augment.geometric import translation_matrix as translation_matrix
    from vgg_jax.augment.warp import warp as warp

_FUNCTIONS = {
    **dict.fromkeys(
        (
            "adjust_brightness",
            "adjust_contrast",
            "adjust_hue",
            "adjust_saturation",
            "adjust_sharpness",
            "autocontrast",
            "equalize",
            "gaussian_blur",
            "grayscale",
            "invert",
            "posterize",
            "solarize",
        ),
        "vgg_jax.augment.functional",
    ),
    **dict.fromkeys(
        ("rotation_matrix", "scaling_matrix", "shear_matrix", "translation_matrix"),
        "vgg_jax.augment.geometric",
    ),
    "warp": "vgg_jax.augment.warp",
}

__all__ = [
    "Augmentation",
    "BatchAugmentation",
    "GeometricAugmentation",
    "HostAugmentation",
    "OptionError",
    "PixelAugmentation",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "autocontrast",
    "equalize",
    "gaussian_blur",
    "grayscale",
    "invert",
    "posterize",
    "require",
    "rotation_matrix",
    "scaling_matrix",
    "shear_matrix",
    "solarize",
    "translation_matrix",
    "warp",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'vgg_jax.api' has no attribute {name!r}")
