"""Backbones and trained classifiers, ready to be used."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vgg_jax.config import DEMO, Interpolation, LossName, ResolvedConfig
from vgg_jax.errors import DataError, RunError, WeightsError
from vgg_jax.layers import kernel_shapes
from vgg_jax.model.classifier import (
    Functional,
    Parameters,
    build_classifier,
    make_functional,
)
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugins import parse_choice
from vgg_jax.training.checkpoints import Which
from vgg_jax.training.losses import probabilities
from vgg_jax.training.run_folder import RunFolder, RunRecord
from vgg_jax.weights.store import array_sha256, load_weights
from vgg_jax.workflows.convert import find_weights

RANDOM_PREFIX = "random:"


@dataclasses.dataclass(frozen=True)
class OpenedBackbone:
    """A backbone and where it is from.

    Attributes:
        backbone: The network.
        weights: Absolute folder, `demo`, or `random:SEED[:WIDTH]`.
        digest: SHA-256 over its arrays.
    """

    backbone: VGG16
    weights: str
    digest: str


def open_backbone(weights: str) -> OpenedBackbone:
    """Read a backbone.

    Args:
        weights: A folder that `convert-weights` wrote, the name of one under `./weights` or in the
            user's cache, `demo`, or `random:SEED[:WIDTH]` for untrained weights.

    Raises:
        WeightsError: If it is not there, or its arrays are not what was written.
    """
    if weights.startswith(RANDOM_PREFIX):
        backbone = _random_backbone(weights)
        return OpenedBackbone(backbone, weights, _digest(backbone))
    folder = find_weights(weights)
    stored = load_weights(folder)
    backbone = VGG16.from_layers(stored.layers, mean=stored.mean, scale=stored.scale)
    # The demo's weights can be had again by name; the digest tells whether they are the same.
    where = weights if weights == DEMO else str(folder.resolve())
    return OpenedBackbone(backbone, where, stored.digest)


def load_backbone(weights: str | Path) -> VGG16:
    """Read a backbone; `weights` and errors as for `open_backbone`."""
    return open_backbone(str(weights)).backbone


class TrainedClassifier:
    """A trained classifier.

    Attributes:
        class_names: Names of the classes, in the order of the probabilities.
        image_size: Side in pixels of the square images it takes.
        interpolation: How pictures were resized for its training.
        loss: The loss it was trained with.
        epoch: Number of the epoch whose parameters it has.
    """

    def __init__(
        self,
        functional: Functional,
        parameters: Parameters,
        config: ResolvedConfig,
        record: RunRecord,
        epoch: int,
    ) -> None:
        """Hold a classifier's functions and parameters; use `load_classifier` to get one."""
        if config.image_size is None:
            raise RunError(
                "The run's configuration has no image_size; its config.toml was changed."
            )
        self.class_names = record.class_names
        self.image_size = config.image_size
        self.interpolation: Interpolation = config.interpolation
        self.loss: LossName = config.loss
        self.epoch = epoch
        self._parameters = parameters
        self._logits = jax.jit(lambda parameters, images: functional.bind(parameters)(images))

    def logits(self, images: jax.Array) -> jax.Array:
        """Return the logits `[B, K]` of RGB images `[B, S, S, 3]`, uint8 or float32 in [0, 1]."""
        return self._logits(self._parameters, images)

    def predict(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Return the probabilities `[B, K]` of RGB images `[B, S, S, 3]`.

        They are uint8, or float32 in [0, 1]; S is `image_size`. With the loss `binary` each class
        has a probability of its own; else they sum to 1.

        Raises:
            DataError: If the images have another shape or type.
        """
        shape = (self.image_size, self.image_size, 3)
        if (
            images.ndim != 4
            or images.shape[1:] != shape
            or images.dtype not in (np.uint8, np.float32)
        ):
            raise DataError(
                f"predict got {images.dtype} {list(images.shape)}, but takes uint8, or float32 in"
                f" [0, 1], of shape [B, {self.image_size}, {self.image_size}, 3] in RGB;"
                " `vgg_jax.data.decode.resize_image` brings a picture to that size."
            )
        return np.asarray(probabilities(self.loss, self.logits(jax.numpy.asarray(images))))


def load_classifier(
    run: str | Path, *, checkpoint: Which = "best", weights: str | None = None
) -> TrainedClassifier:
    """Load the classifier that a run trained.

    Args:
        run: The run's folder.
        checkpoint: `best`, by validation accuracy, or `latest`.
        weights: Where the backbone is, if it is no longer where the run found it.

    Raises:
        RunError: If the folder is no run, has no checkpoint, or was damaged.
        WeightsError: If the backbone is gone or is another one.
    """
    folder = RunFolder(Path(run))
    record, config = folder.read_record(), folder.read_config()
    epoch = folder.checkpoints.find(checkpoint)
    restored = folder.checkpoints.restore(epoch)
    folder.checkpoints.close()
    functional, parameters = rebuild(config, record, weights)
    trained = checked(restored.trained, parameters)
    return TrainedClassifier(functional, {**parameters, **trained}, config, record, epoch)


def rebuild(
    config: ResolvedConfig, record: RunRecord, weights: str | None = None
) -> tuple[Functional, Parameters]:
    """Build a run's classifier as it was before its first step, on the very backbone that it had.

    Raises:
        WeightsError: If the backbone is gone or is another one.
    """
    opened = open_backbone(weights or record.weights)
    if opened.digest != record.weights_digest:
        raise WeightsError(
            f"The weights in {opened.weights} are not those that the run was trained on: their"
            f" digest is {opened.digest[:12]}…, not {record.weights_digest[:12]}…. Name the right"
            " folder with --weights."
        )
    return build_functional(opened.backbone, config, len(record.class_names))


def build_functional(
    backbone: VGG16, config: ResolvedConfig, num_classes: int
) -> tuple[Functional, Parameters]:
    """Put the configured head on a backbone; returns pure functions and first parameters."""
    classifier = build_classifier(
        backbone,
        parse_choice(config.head),
        num_classes=num_classes,
        image_size=config.image_size,
        boundary=config.train_from,
        seed=config.seed,
    )
    return make_functional(classifier)


def checked(restored: Mapping[str, np.ndarray], parameters: Parameters) -> Parameters:
    """Return restored parameters as JAX arrays.

    Raises:
        RunError: If one has no counterpart of the same shape in the classifier.
    """
    for path in parameters:
        if path.startswith("head/") and path not in restored:
            raise RunError(
                f"The checkpoint lacks the head's {path!r}; the head that made this run has "
                "changed. Install the version that the run's run.json names."
            )
    for path, value in restored.items():
        here = parameters[path].shape if path in parameters else None
        if here != value.shape:
            raise RunError(
                f"The checkpoint's {path!r} has shape {value.shape}, the classifier's has {here};"
                " the head that made this run has changed. Install the version that the run's"
                " run.json names."
            )
    return {path: jax.numpy.asarray(value) for path, value in restored.items()}


def _random_backbone(weights: str) -> VGG16:
    seed, _, width = weights.removeprefix(RANDOM_PREFIX).partition(":")
    try:
        number, width_value = int(seed), float(width or 1)
        kernel_shapes(width_value)
        if number < 0:
            raise ValueError("negative seed")
    except (ValueError, WeightsError) as error:
        raise WeightsError(
            f"Weights {weights!r} are not random:SEED[:WIDTH] with a seed of 0 or more and a width"
            " such as 1 or 0.25."
        ) from error
    return VGG16.random(width_value, seed=number)


def _digest(backbone: VGG16) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(backbone, nnx.Param)):
        digest.update(array_sha256(np.asarray(leaf)).encode())
    return digest.hexdigest()
