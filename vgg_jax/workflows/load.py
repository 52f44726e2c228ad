"""Backbones and classifiers, ready to be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig
from vgg_jax.errors import PluginError, RunError, VggJaxError, WeightsError, cause_of
from vgg_jax.layers import HEAD
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
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.source import Pair
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.backbone import (
    RANDOM_PREFIX,
    OpenedBackbone,
    open_backbone,
    open_run_backbone,
)
from vgg_jax.workflows.convert import find_weights
from vgg_jax.workflows.trained_classifier import TrainedClassifier


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
        progress: Told if the head's defaults have changed or the backbone was moved; silent by
            default.

    Raises:
        RunError: If the folder is no run, has no checkpoint, was damaged, or has a head that is not
            installed or not allowed.
        WeightsError: If the backbone is gone or is another one.
    """
    keep_compiled_programs(progress)
    folder = RunFolder(Path(run))
    record = folder.read_record()
    config = folder.read_config(allow_local_code=allow_local_code, progress=progress)
    epoch = folder.checkpoints.find(checkpoint)
    with ThreadPoolExecutor(1) as thread:  # reading and checking keeps one core busy
        restoring = thread.submit(folder.checkpoints.restore, epoch)
        opened = open_run_backbone(folder, record, weights, progress)
    restored = restoring.result()
    folder.checkpoints.close()
    functional, parameters = build_functional(opened, config, len(record.class_names))
    trained = checked(restored.trained, parameters)
    return TrainedClassifier(
        functional,
        {**parameters, **trained},
        class_names=record.class_names,
        image_size=config.image_size,
        interpolation=config.interpolation,
        loss=config.loss,
        precision=config.precision,
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
    keep_compiled_programs(progress)
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
            raise RunError(f"The checkpoint lacks the head's {path!r}; {_OTHER_HEAD}")
    for path, value in restored.items():
        here = parameters[path].shape if path in parameters else None
        if here != value.shape:
            raise RunError(
                f"The checkpoint's {path!r} has shape {value.shape}, the classifier's has {here};"
                f" {_OTHER_HEAD}"
            )
    return {path: jax.device_put(value) for path, value in restored.items()}


_OTHER_HEAD = (
    "the head that made this run has changed, or --image-size is another. Install the version that"
    " the run's run.json names."
)


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
