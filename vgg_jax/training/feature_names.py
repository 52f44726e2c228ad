"""Under which names features are kept: all that they depend on.

A table on disk goes by what all its rows have in common, a row by the picture that it was made of.
"""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from typing import Any

import jax
import numpy as np

from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import Examples
from vgg_jax.data.pipeline import usable_processors
from vgg_jax.model.classifier import Parameters
from vgg_jax.training.run_plugins import record_plugins
from vgg_jax.training.steps import Steps
from vgg_jax.weights.checksums import array_sha256, json_sha256

_FORMAT = 1  # to be raised when the network, or the preparation of pictures, computes otherwise


def settings_of(
    config: ResolvedConfig, steps: Steps, frozen: Parameters, view: int | None
) -> dict[str, Any]:
    """Return what features depend on beside the picture, as JSON can hold it.

    Args:
        config: Of the training.
        steps: Its programs.
        frozen: The parameters of the prefix.
        view: Number of the view that augmentations make of each picture; None for the pictures as
            they are.
    """
    bound = steps.functional.bind({}).backbone
    device = jax.devices()[0]
    settings: dict[str, Any] = {
        "format": _FORMAT,
        "boundary": config.train_from,
        "prefix": json_sha256({path: array_sha256(np.asarray(v)) for path, v in frozen.items()}),
        "mean": bound.mean,
        "scale": bound.scale,
        "image_size": config.image_size,
        "interpolation": config.interpolation,
        "features_dtype": config.features_dtype,
        # Other versions decode or compute other bits, as do other processors and numbers of them.
        "versions": {name: metadata.version(name) for name in ("vgg-jax", "pillow", "jaxlib")},
        "device": f"{device.platform} {device.device_kind}",
        "processors": usable_processors(),
    }
    if view is not None:
        settings |= {
            "augment": [
                _augmentation(record)
                for record in record_plugins(config)
                if record["kind"] == "augmentation"
            ],
            "fill": config.fill,
            "fill_value": config.fill_value,
            "seed": config.seed,
            "view": view,
        }
    return settings


def row_names(examples: Examples, *, augmented: bool) -> np.ndarray:
    """Return the names of the rows of a split's examples, uint8 `[N, 16]`.

    Of equal pictures each is augmented in its own way.
    """
    if not augmented:
        return examples.contents
    pairs = zip(examples.contents, examples.occurrences.astype("<u4"), strict=True)
    names = [hashlib.blake2b(c.tobytes() + n.tobytes(), digest_size=16).digest() for c, n in pairs]
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, 16)


def _augmentation(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a plugin computes with; a file goes by its content, wherever it is."""
    if "sha256" in record:
        return {name: record[name] for name in ("name", "sha256", "options") if name in record}
    return record | {"needs": _versions_needed(record["package"])}


def _versions_needed(package: str) -> dict[str, str]:
    """Return the versions of what a package says that it needs, as far as that is installed."""
    found: dict[str, str] = {}
    for requirement in metadata.requires(package) or ():
        match = re.match(r"[\w.-]+", requirement)
        name = match[0] if match else requirement
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # one of an extra
            continue
    return found
