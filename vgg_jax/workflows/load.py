"""Backbones and classifiers, ready to be used."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vgg_jax.config import DEMO, ResolvedConfig
from vgg_jax.errors import PluginError, RunError, VggJaxError, WeightsError, cause_of
from vgg_jax.layers import HEAD, kernel_shapes
from vgg_jax.model.classifier import (
    Classifier,
    Functional,
    Parameters,
    build_classifier,
    make_functional,
)
from vgg_jax.model.heads import VGGTop
from vgg_jax.model.imagenet_classes import class_names
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Which
from vgg_jax.training.run_folder import RunFolder, RunRecord
from vgg_jax.weights.checksums import array_sha256
from vgg_jax.weights.source import Pair
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.convert import find_weights
from vgg_jax.workflows.trained_classifier import TrainedClassifier

RANDOM_PREFIX = "random:"


@dataclasses.dataclass(frozen=True)
class OpenedBackbone:
    """A backbone and where it is from.

    Attributes:
        backbone: The network.
        weights: Absolute folder, `demo`, or `random:SEED[:WIDTH]`.
        digest: SHA-256 over its arrays.
        folder: Of converted weights, or None.
        has_top: Whether there are fc6, fc7 and fc8, too.
    """

    backbone: VGG16
    weights: str
    digest: str
    folder: Path | None = None
    has_top: bool = False


def open_backbone(weights: str, progress: Progress | None = None) -> OpenedBackbone:
    """Read a backbone.

    Args:
        weights: A folder that `convert-weights` wrote, the name of one under `./weights` or in the
            user's cache, a name in the manifest, which is downloaded on first use, `demo`, or
            `random:SEED[:WIDTH]` for untrained weights.
        progress: Told of a download; silent by default.

    Raises:
        WeightsError: If it is not there, or its arrays are not what was written.
    """
    if weights.startswith(RANDOM_PREFIX):
        backbone = _random_backbone(weights)
        return OpenedBackbone(backbone, weights, _digest(backbone))
    folder = find_weights(weights, progress)
    stored = load_weights(folder)
    backbone = VGG16.from_layers(stored.layers, mean=stored.mean, scale=stored.scale)
    # The demo's weights can be had again by name; the digest tells whether they are the same.
    where = weights if weights == DEMO else str(folder.resolve())
    has_top = bool(stored.metadata.get("top"))
    return OpenedBackbone(backbone, where, stored.digest, folder, has_top)


def load_backbone(weights: str | Path) -> VGG16:
    """Read a backbone; `weights` and errors as for `open_backbone`."""
    return open_backbone(str(weights)).backbone


def load_classifier(
    run: str | Path,
    *,
    checkpoint: Which = "best",
    weights: str | None = None,
    allow_local_code: bool = False,
    progress: Progress | None = None,
) -> TrainedClassifier:
    """Load the classifier that a run trained.

    Args:
        run: The run's folder.
        checkpoint: `best`, by validation accuracy, or `latest`.
        weights: Where the backbone is, if it is no longer where the run found it.
        allow_local_code: Whether a head in a file that the run carries may be run.
        progress: Told if the head's defaults have changed; silent by default.

    Raises:
        RunError: If the folder is no run, has no checkpoint, was damaged, or has a head that is not
            installed or not allowed.
        WeightsError: If the backbone is gone or is another one.
    """
    folder = RunFolder(Path(run))
    record = folder.read_record()
    config = folder.read_config(allow_local_code=allow_local_code, progress=progress)
    epoch = folder.checkpoints.find(checkpoint)
    restored = folder.checkpoints.restore(epoch)
    folder.checkpoints.close()
    functional, parameters = rebuild(config, record, weights or folder.own_backbone)
    trained = checked(restored.trained, parameters)
    return TrainedClassifier(
        functional,
        {**parameters, **trained},
        class_names=record.class_names,
        image_size=config.image_size,
        interpolation=config.interpolation,
        loss=config.loss,
        epoch=epoch,
    )


def load_top_classifier(weights: str | Path, progress: Progress | None = None) -> TrainedClassifier:
    """Load the classifier that weights hold by themselves: their backbone and their top.

    Its classes are ImageNet's if there are 1,000, else `class 0`, `class 1` and so on.

    Args:
        weights: A folder or a name, as for `open_backbone`, of weights with top.
        progress: Told of a download; silent by default.

    Raises:
        WeightsError: If the weights are not there, are damaged, or have no top.
    """
    name = str(weights)
    if name.startswith(RANDOM_PREFIX):
        raise _no_top(name)
    stored = load_weights(find_weights(name, progress), with_top=True)
    if not stored.top:
        raise _no_top(name)
    classifier = Classifier(
        VGG16.from_layers(stored.layers, mean=stored.mean, scale=stored.scale),
        VGGTop.from_layers(stored.top),
        HEAD,
    )
    inputs, num_classes = stored.top["fc6"][0].shape[0], stored.top["fc8"][0].shape[1]
    return TrainedClassifier(
        *make_functional(classifier),
        class_names=class_names(num_classes),
        image_size=_image_size(inputs, stored.layers["conv5_3"][0].shape[-1]),
        interpolation="bilinear",
        loss="categorical",
    )


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
    return build_functional(opened, config, len(record.class_names))


def build_functional(
    opened: OpenedBackbone,
    config: ResolvedConfig,
    num_classes: int,
    progress: Progress | None = None,
) -> tuple[Functional, Parameters]:
    """Put the configured head on a backbone.

    Args:
        opened: The backbone.
        config: Of the training.
        num_classes: Number of classes.
        progress: Given before a training: a head that can then starts from the weights' top.
            Without it the parameters are only a frame for those of a checkpoint.

    Returns:
        Pure functions, and the first parameters.

    Raises:
        PluginError: If the head breaks its contract.
        OptionError: If it refuses an option, or the weights' top.
    """
    classifier = build_classifier(
        opened.backbone,
        parse_choice(config.head),
        num_classes=num_classes,
        image_size=config.image_size,
        boundary=config.train_from,
        seed=config.seed,
    )
    initialise = getattr(classifier.head, "initialise_from", None)
    if initialise is not None and progress is not None:
        if opened.has_top and opened.folder is not None:
            _initialise(initialise, load_weights(opened.folder, with_top=True).top, classifier)
        else:
            progress.note(
                f"The weights {opened.weights} have no top for the head {config.head} to start"
                " from; it starts from random numbers."
            )
    return make_functional(classifier)


def _initialise(
    initialise: Callable[[Mapping[str, Pair]], None],
    top: Mapping[str, Pair],
    classifier: Classifier,
) -> None:
    try:
        initialise(top)
    except VggJaxError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{classifier.head_name} failed to start from the top of the weights: {cause_of(error)}"
        ) from error


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


def _image_size(inputs: int, channels: int) -> int:
    """Return the side in pixels of the images whose features, flattened, are that many numbers."""
    side = math.isqrt(inputs // channels)
    if side * side * channels != inputs:
        raise WeightsError(
            f"The top takes {inputs} features, which are no square of {channels} channels."
        )
    return 32 * side  # five poolings halve it


def _no_top(weights: str) -> WeightsError:
    return WeightsError(
        f"The weights {weights} have no top (fc6, fc7, fc8), so they name no classes by themselves."
        "\nUse --weights imagenet-top for ImageNet's classes, or name a trained run first:"
        " vgg-jax predict RUN PATH…"
    )


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
