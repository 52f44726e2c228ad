"""Albumentations as a host augmentation: in the reader threads, before pictures are resized.

It runs on the processor, with OpenCV, beside the training step; results depend on the random
generator that vgg-jax hands over, and on nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.api import HostAugmentation, OptionError, require

__all__ = ["Albumentations"]

_pipelines = threading.local()  # a pipeline holds random states, so each thread has its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Albumentations(HostAugmentation):
    """Apply transforms of Albumentations, named or from a file that it has saved.

    Attributes:
        transforms: Names of transforms with their own default options, one after another, such as
            [CLAHE, GridDistortion]. Each is applied with the probability that it has by default.
        file: A pipeline that `albumentations.save` wrote, .json or .yaml; instead of `transforms`.
        probability: How often a picture goes through the pipeline at all, in [0, 1].

    Raises:
        OptionError: If a transform is unknown, the file cannot be used, or an option is out of
            range.
    """

    transforms: tuple[str, ...] = ("RandomBrightnessContrast", "Affine")
    file: str = ""
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Check the options; imports Albumentations."""
        expected = "a number in [0, 1]"
        require(
            0 <= self.probability <= 1, "albumentations", "probability", self.probability, expected
        )
        object.__setattr__(self, "transforms", tuple(self.transforms))
        self._build()

    def apply(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return the transformed uint8 `[H, W, 3]`."""
        if rng.random() >= self.probability:
            return image
        held = vars(_pipelines).setdefault("by_augmentation", {})
        if self not in held:
            held[self] = self._build()
        pipeline = held[self]
        pipeline.set_random_seed(int(rng.integers(2**31)))
        return np.ascontiguousarray(pipeline(image=image)["image"])

    def _build(self) -> Any:
        library = _library()
        if self.file:
            return _load(library, Path(self.file).expanduser())
        steps = []
        for name in self.transforms:
            kind: Any = getattr(library, name, None)
            known = isinstance(kind, type) and issubclass(kind, library.BasicTransform)
            expected = "names of transforms of Albumentations, such as CLAHE"
            require(known, "albumentations", "transforms", name, expected)
            try:
                steps.append(kind())
            except Exception as error:  # whatever it says of options that it must be given
                raise OptionError(
                    f"albumentations: {name} cannot be used with its default options"
                    f" ({error}). Write a pipeline with albumentations.save, and name its file:"
                    " albumentations:file=pipeline.json."
                ) from error
        return library.Compose(steps)


def _library() -> Any:
    """Import Albumentations, without the look for a newer version that it takes on the network."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    return importlib.import_module("albumentations")


def _load(library: Any, path: Path) -> Any:
    formats = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}
    expected = "a file that ends in .json or .yaml"
    require(path.suffix in formats, "albumentations", "file", str(path), expected)
    try:
        pipeline = library.load(path, data_format=formats[path.suffix])
    except Exception as error:  # a missing file, or one that is no pipeline
        raise OptionError(
            f"albumentations: {path} cannot be used: {type(error).__name__}: {error}. Write it with"
            " albumentations.save."
        ) from error
    return pipeline if hasattr(pipeline, "set_random_seed") else library.Compose([pipeline])
