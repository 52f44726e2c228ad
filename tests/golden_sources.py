"""The small models that the real Keras wrote, each converted once for all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vgg_jax.weights.reading import read_weight_file
from vgg_jax.workflows.convert import ConvertResult, convert_weights

SOURCES = Path(__file__).parent / "golden" / "sources"
NAMES = sorted(path.name for path in SOURCES.iterdir() if path.suffix in (".h5", ".keras"))
SIDE = 64  # of the pictures in OUTPUTS, and of those that the models take
OUTPUTS = dict(np.load(SOURCES / "outputs.npz"))  # `images`, and what Keras gave for them
CLASSES = ("ash", "birch", "cedar")

_converted: dict[str, ConvertResult] = {}


def model_of(name: str) -> str:
    """Return `backbone`, `classifier` or `binary`."""
    return name.partition(".")[0].removesuffix("_legacy")


def convert_golden(name: str, folders: pytest.TempPathFactory) -> ConvertResult:
    """Convert a file of `NAMES`; what comes of it is not to be changed."""
    if name not in _converted:
        options = {
            "backbone": {},
            "classifier": {"class_names": CLASSES, "image_size": SIDE},
            "binary": {"image_size": SIDE},
        }
        folder = folders.mktemp("golden") / name
        _converted[name] = convert_weights(SOURCES / name, folder, **options[model_of(name)])
    return _converted[name]


def golden_arrays(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return kernel and bias of each layer as they stand in a file of `NAMES`, by our names."""
    file = read_weight_file(SOURCES / name)
    return {
        layer: (file.arrays[found.kernel], file.arrays[found.bias])
        for layer, found in (*file.layers.items(), *file.dense.items())
    }
