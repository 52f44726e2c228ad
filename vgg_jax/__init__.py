"""Fine-tune VGG16 on your own images, on JAX and Flax.

The names below are loaded when they are first used, so that `import vgg_jax` stays light.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgg_jax.workflows.load import load_backbone as load_backbone
    from vgg_jax.workflows.load import load_classifier as load_classifier
    from vgg_jax.workflows.sweep import sweep as sweep
    from vgg_jax.workflows.train import train as train

__version__ = metadata.version("vgg-jax")
__all__ = ["load_backbone", "load_classifier", "sweep", "train"]

_HOMES = {
    "load_backbone": "vgg_jax.workflows.load",
    "load_classifier": "vgg_jax.workflows.load",
    "sweep": "vgg_jax.workflows.sweep",
    "train": "vgg_jax.workflows.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vgg_jax' has no attribute {name!r}")
