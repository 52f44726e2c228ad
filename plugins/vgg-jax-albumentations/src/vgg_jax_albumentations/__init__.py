"""Albumentations as a host augmentation: in the reader threads, before pictures are resized.

It runs on the processor, with OpenCV, beside the training step; results depend on the random
generator that vgg-jax hands over, and on nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import os
import random
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.api import HostAugmentation, OptionError, require

__all__ = ["Albumentations"]

_OWNER = "albumentations"
_FORMATS = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}
_SHORTEST_SHA256 = 12
# Sizes and values of the pictures on which transforms are tried, first one that contrast changes.
# Nearly all transforms change the first; those with small pictures or extremes only, the others.
_TRIAL_PICTURES = (((61, 83), 40, 200), ((9, 7), 40, 200), ((480, 640), 0, 256))
_TRIES = 10

_pipelines = threading.local()  # a pipeline holds random states, so each thread has its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Albumentations(HostAugmentation):
    """Apply transforms of Albumentations, named or from a file that it has saved.

    Attributes:
        transforms: Names of transforms with their own default options, one after another, such as
            [CLAHE, GridDistortion]. Each is applied with the probability that it has by default.
        file: A pipeline that `albumentations.save` wrote, .json or .yaml; instead of `transforms`.
        sha256: The checksum that `file` must have, or its first 12 digits or more, in quotes;
            filled in where it is not given.
        probability: How often a picture goes through the pipeline at all, in [0, 1].

    Raises:
        OptionError: If a transform is unknown or changes nothing, the file cannot be used or has
            another checksum, or an option is out of range.
    """

    transforms: tuple[str, ...] = ("CLAHE", "GridDistortion")
    file: str = ""
    sha256: str = ""
    probability: float = 1.0
    # Of the file: each thread builds its pipeline from it, whatever becomes of the file.
    _content: bytes = dataclasses.field(default=b"", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the options; imports Albumentations, and tries each transform on noise."""
        expected = "a number in [0, 1]"
        require(0 <= self.probability <= 1, _OWNER, "probability", self.probability, expected)
        object.__setattr__(self, "transforms", tuple(self.transforms))
        self._read()
        for step in _steps(self._build()):
            self._check_effect(step)

    def apply(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return the transformed uint8 `[H, W, 3]`."""
        if rng.random() >= self.probability:
            return image
        held = vars(_pipelines).setdefault("by_augmentation", {})
        if self not in held:
            held[self] = self._build()
        pipeline = held[self]
        # One state for all: from one seed, each transform would draw the same as its neighbours.
        pipeline.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return np.ascontiguousarray(pipeline(image=image)["image"])

    def _read(self) -> None:
        """Read the file, check its checksum, and hold both."""
        if not self.file:
            expected = "left out where there is no file"
            return require(not self.sha256, _OWNER, "sha256", self.sha256, expected)
        given = self.sha256.lower()
        valid = not given or re.fullmatch(f"[0-9a-f]{{{_SHORTEST_SHA256},64}}", given)
        expected = f"{_SHORTEST_SHA256} to 64 hexadecimal digits"
        require(bool(valid), _OWNER, "sha256", self.sha256, expected)
        path = Path(self.file).expanduser()
        expected = "a file that ends in .json or .yaml"
        require(path.suffix in _FORMATS, _OWNER, "file", str(path), expected)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _unusable(path, error) from error
        found = hashlib.sha256(content).hexdigest()
        if not found.startswith(given):
            raise OptionError(
                f"albumentations: {path} is not the file that was meant: its SHA-256 is {found},"
                f" not {given}. Put that one back, or, if this one is right, write"
                f' sha256="{found[:_SHORTEST_SHA256]}".'
            )
        # All digits, so that pipelines that one file has held at different times are not equal.
        object.__setattr__(self, "sha256", found)
        object.__setattr__(self, "_content", content)

    def _build(self) -> Any:
        library = _library()
        if self.file:
            return _load(library, Path(self.file).expanduser(), self._content)
        expected = "at least one name of a transform"
        require(bool(self.transforms), _OWNER, "transforms", self.transforms, expected)
        steps = []
        for name in self.transforms:
            kind: Any = getattr(library, name, None)
            known = isinstance(kind, type) and issubclass(kind, library.BasicTransform)
            expected = "names of transforms of Albumentations, such as CLAHE"
            require(known, _OWNER, "transforms", name, expected)
            try:
                steps.append(kind())
            except Exception as error:  # whatever it says of options that it must be given
                raise OptionError(
                    f"albumentations: {name} cannot be used with its default options"
                    f" ({error}). {_WRITE_FILE}"
                ) from error
        return library.Compose(steps)

    def _check_effect(self, step: Any) -> None:
        with warnings.catch_warnings(action="ignore"):
            if _may_change_pictures(step):
                return
        name = type(step).__name__
        if not self.file:
            raise OptionError(
                f"albumentations: {name} changes no picture with its default options. {_WRITE_FILE}"
            )
        what = "the pipeline" if name == "Compose" else name
        raise OptionError(
            f"albumentations: {self.file} cannot be used: {what} changes no picture with the"
            " options it has there. Give it others, or take it out."
        )


_WRITE_FILE = (
    "Write a pipeline with options of your own with albumentations.save, and name its file:"
    " albumentations:file=pipeline.json."
)


def _library() -> Any:
    """Import Albumentations, without the look for a newer version that it takes on the network."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    return importlib.import_module("albumentations")


def _load(library: Any, path: Path, content: bytes) -> Any:
    try:
        text = io.StringIO(content.decode())
        pipeline = library.load(text, data_format=_FORMATS[path.suffix])
    except Exception as error:  # whatever it says of a file that is no pipeline
        raise _unusable(path, error) from error
    return pipeline if hasattr(pipeline, "set_random_state") else library.Compose([pipeline])


def _unusable(path: Path, error: Exception) -> OptionError:
    return OptionError(
        f"albumentations: {path} cannot be used: {type(error).__name__}: {error}. Write it with"
        " albumentations.save."
    )


def _steps(node: Any) -> Iterator[Any]:
    """Yield what every picture goes through; what chooses among transforms is one step."""
    library = _library()
    one_by_one = isinstance(node, (library.Compose, library.Sequential))
    if one_by_one and node.p > 0 and node.transforms:
        for child in node.transforms:
            yield from _steps(child)
    else:
        yield node


def _may_change_pictures(step: Any) -> bool:
    """Tell whether a step has an effect if it is applied, however rarely that is."""
    if step.p == 0:
        return False
    if hasattr(step, "transforms"):
        return any(_may_change_pictures(child) for child in step.transforms)
    step.p = 1.0
    pipeline = _library().Compose([step])
    rng = np.random.default_rng(0)
    for size, low, high in _TRIAL_PICTURES:
        picture = rng.integers(low, high, (*size, 3), np.uint8)
        for seed in range(_TRIES):
            pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
            try:
                found = pipeline(image=picture.copy())["image"]
            except Exception:  # what needs a larger picture, or more than one: it cannot be told
                return True
            if not np.array_equal(found, picture):
                return True
    return False
