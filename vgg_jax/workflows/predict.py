"""Prediction: the classes of single pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.data.decode import decode_image, resize_image
from vgg_jax.data.folders import is_picture
from vgg_jax.errors import ConfigError, DataError
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Which
from vgg_jax.workflows.load import load_classifier, load_top_classifier
from vgg_jax.workflows.trained_classifier import TrainedClassifier

_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the classifier says of one picture.

    Attributes:
        path: The picture.
        probabilities: Of each class by name, the most probable first; empty after an error.
        error: Why there is none, or None.
    """

    path: str
    probabilities: dict[str, float]
    error: str | None = None

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    def as_dict(self, top: int) -> dict[str, Any]:
        """Return it as JSON can hold it, with the `top` most probable classes."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "class": self.class_name,
            "probability": self.probabilities[self.class_name],
            "top": dict(islice(self.probabilities.items(), top)),
        }


def predict(
    run: str | Path | None,
    paths: Iterable[str | Path],
    *,
    checkpoint: Which | None = None,
    weights: str | None = None,
    allow_local_code: bool = False,
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction for each picture, in order; a broken one has an `error`.

    Args:
        run: The run's folder, or None to ask the top of `weights`.
        paths: Pictures, and folders whose pictures are searched for at any depth.
        checkpoint: Of the run: `best`, the default, or `latest`.
        weights: Without a run, weights with top, such as `imagenet-top`. With a run, where its
            backbone is, if it is no longer where the run found it.
        allow_local_code: Whether a head in a file that the run carries may be run.
        progress: Receives what happens; silent by default.

    Raises:
        ConfigError: If there is neither a run nor weights, or a checkpoint without a run.
        DataError: If there are no pictures at all.
        RunError: If the folder is no run, has no checkpoint, or was damaged.
        WeightsError: If the backbone is gone or is another one, or the weights have no top.
    """
    pictures = iter(_pictures(paths))
    first = next(pictures, None)
    if first is None:
        raise DataError(
            "There are no pictures to predict; name pictures or folders that hold some."
        )
    if run is None:
        classifier = _load_top(checkpoint, weights, progress)
    else:
        classifier = load_classifier(
            run,
            checkpoint=checkpoint or "best",
            weights=weights,
            allow_local_code=allow_local_code,
            progress=progress,
        )
    return _predict(classifier, first, pictures)


def _load_top(
    checkpoint: Which | None, weights: str | None, progress: Progress | None
) -> TrainedClassifier:
    if weights is None:
        raise ConfigError("Without a run, name weights with top, such as imagenet-top.")
    if checkpoint is not None:
        raise ConfigError(
            f"--checkpoint {checkpoint} picks an epoch of a run, but no run was named."
        )
    return load_top_classifier(weights, progress)


def _predict(
    classifier: TrainedClassifier, first: Path, others: Iterator[Path]
) -> Iterator[Prediction]:
    batch = [first, *islice(others, _BATCH_SIZE - 1)]
    rows = len(batch)  # of every batch: one compilation
    with ThreadPoolExecutor() as threads:
        while batch:
            read = list(threads.map(lambda path: _read(path, classifier), batch))
            images = np.zeros((rows, classifier.image_size, classifier.image_size, 3), np.uint8)
            for row, image in zip(images, read, strict=False):
                if isinstance(image, np.ndarray):
                    row[:] = image
            for path, image, shares in zip(batch, read, classifier.predict(images), strict=False):
                if isinstance(image, DataError):
                    yield Prediction(str(path), {}, str(image))
                else:
                    yield Prediction(str(path), _ranked(classifier.class_names, shares))
            batch = list(islice(others, rows))


def _read(path: Path, classifier: TrainedClassifier) -> np.ndarray | DataError:
    """Return the picture at the classifier's size, or why it cannot be had."""
    try:
        image = decode_image(path.read_bytes(), str(path))
        return resize_image(image, classifier.image_size, classifier.interpolation)
    except OSError as error:
        return DataError(f"{path} cannot be read: {error.strerror}.")
    except DataError as error:
        return error


def _ranked(class_names: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    order = map(int, np.argsort(-shares, kind="stable"))
    return {class_names[i]: float(shares[i]) for i in order}


def _pictures(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield the pictures; of a folder those below it, sorted; what is no folder as it is."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(
                inside for inside in path.rglob("*") if is_picture(str(inside)) and inside.is_file()
            )
        else:
            yield path
