"""Turns a classifier that another program trained into a run."""

from __future__ import annotations

import math
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vgg_jax.config import Interpolation, LossName, TrainConfig, built_in_head
from vgg_jax.errors import ConfigError, RunError
from vgg_jax.layers import BASE_CHANNELS, HEAD
from vgg_jax.model.imagenet_classes import class_names as known_class_names
from vgg_jax.progress import EpochMetrics
from vgg_jax.training.position import Position
from vgg_jax.training.run_files import BACKBONE_FOLDER
from vgg_jax.training.run_folder import RunFolder, new_record
from vgg_jax.training.steps import Hyperparameters, TrainState
from vgg_jax.weights.metadata import read_metadata
from vgg_jax.weights.source import Pair, SourceWeights, WeightFile
from vgg_jax.weights.store import save_weights

_DEFAULT_IMAGE_SIZE = 224
# Of Keras' generators and its load_img; of torchvision's transforms.
_DEFAULTS: Mapping[str, Interpolation] = {"HWIO": "nearest", "OIHW": "bilinear"}
_UNKNOWN = float("nan")


@dataclass(frozen=True)
class ClassifierDescription:
    """What a run must know of a classifier beside its arrays.

    Attributes:
        class_names: In the order of the probabilities.
        image_size: Side in pixels of the pictures it takes.
        interpolation: How pictures are resized for it.
        loss: The loss whose probabilities are the classifier's.
    """

    class_names: tuple[str, ...]
    image_size: int
    interpolation: Interpolation
    loss: LossName


def describe_classifier(
    file: WeightFile,
    class_names: Sequence[str] | None,
    image_size: int | None,
    interpolation: Interpolation | None = None,
) -> ClassifierDescription | None:
    """Complete what a file says of its classifier; None if it holds none.

    Raises:
        ConfigError: If the names are not as many as its outputs, the image size does not lead to
            its features, or either is given for a file without a classifier.
    """
    if file.head in ("", "top"):
        if class_names is not None or image_size is not None:
            raise ConfigError(
                f"{file.path} holds no classifier of yours, so --classes and --image-size do not"
                " apply."
            )
        return None
    outputs = file.arrays[file.dense["logits"].bias].size
    count = 2 if outputs == 1 else outputs  # one sigmoid tells two classes apart
    if class_names is None:
        class_names = file.facts.class_names or [f"class {number}" for number in range(count)]
    if len(class_names) != count:
        raise ConfigError(
            f"--classes names {len(class_names)}, but {file.path} tells {count} classes apart; name"
            " each once, in the order of its outputs."
        )
    for name, times in Counter(class_names).items():
        if times > 1 or not name:
            raise ConfigError(f"--classes names {name!r} {times} times; each needs its own name.")
    return ClassifierDescription(
        class_names=tuple(class_names),
        image_size=_image_size(file, image_size),
        interpolation=interpolation or file.facts.interpolation or _DEFAULTS[file.layout.kernels],
        loss="binary" if file.facts.output == "sigmoid" and outputs > 1 else "categorical",
    )


def describe_top(file: WeightFile) -> ClassifierDescription:
    """Describe the classifier that weights with top are by themselves.

    Raises:
        ConfigError: If the file has no top.
    """
    if file.head != "top":
        raise ConfigError(
            f"{file.path} ends with the features, so it names no classes; --try needs weights with"
            " top, such as imagenet-top, or a classifier."
        )
    outputs = file.arrays[file.dense["fc8"].bias].size
    names = tuple(known_class_names(outputs))
    return ClassifierDescription(names, 32 * _side(file), "bilinear", "categorical")


def refuse_existing(folder: Path) -> None:
    """Raise `RunError` if there is something where the run is to be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(f"{folder} exists already; choose another --out, or delete it first.")


def adopt_classifier(
    weights: SourceWeights,
    classifier: ClassifierDescription,
    folder: Path,
    add_files: Callable[[Path], None],
) -> Path:
    """Write a run whose only checkpoint is the classifier, whole or not at all.

    Args:
        weights: The converted file that holds the classifier.
        classifier: What the weights do not say.
        folder: Folder of the run; must not exist.
        add_files: Given the folder of weights, adds what else belongs there.

    Returns:
        The folder of weights in the run.

    Raises:
        RunError: If the folder exists or cannot be written.
        WeightsError: If the weights cannot be written.
    """
    refuse_existing(folder)
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        save_weights(weights, partial / BACKBONE_FOLDER, add_files)
        _write_run(RunFolder(partial), weights, classifier, folder / BACKBONE_FOLDER)
        partial.rename(folder)
    except OSError as error:
        refuse_existing(folder)  # another process may have been faster
        raise RunError(f"{folder} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / BACKBONE_FOLDER


def head_parameters(head: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    """Return a classifier's own layers as a checkpoint holds them, by path.

    A logit of zero is put before a single one: the softmax of both is the sigmoid of the one.
    """
    kernel, bias = head["logits"]
    if bias.size == 1:
        head = {**head, "logits": (np.pad(kernel, ((0, 0), (1, 0))), np.pad(bias, (1, 0)))}
    return {
        f"{HEAD}/{layer}/{role}": array
        for layer, pair in head.items()
        for role, array in zip(("kernel", "bias"), pair, strict=True)
    }


def _write_run(
    run: RunFolder, weights: SourceWeights, classifier: ClassifierDescription, backbone: Path
) -> None:
    """Write configuration, record and checkpoint; `backbone` is where the weights will be."""
    config = TrainConfig(
        data=weights.path,
        weights=str(backbone),
        head=built_in_head("dense256" if "hidden" in weights.head else "linear"),
        train_from=HEAD,
        loss=classifier.loss,
        image_size=classifier.image_size,
        interpolation=classifier.interpolation,
    ).resolved()
    record = new_record(
        config,
        class_names=classifier.class_names,
        weights=config.weights,
        weights_digest=read_metadata(run.path / BACKBONE_FOLDER)["digest"],
        examples={},
        data_digests={},
        converted_from=weights.source,
    )
    run.write_config(config)
    run.write_record(record)
    parameters = {path: jnp.asarray(array) for path, array in head_parameters(weights.head).items()}
    metrics = EpochMetrics(
        epoch=0,
        step=0,
        seconds=0.0,
        images_per_second=_UNKNOWN,
        loss=_UNKNOWN,
        accuracy=_UNKNOWN,
        validation_loss=_UNKNOWN,
        validation_accuracy=_UNKNOWN,
        learning_rate=_UNKNOWN,
    )
    try:
        state = TrainState(parameters, {}, jnp.zeros((), jnp.uint32), Hyperparameters.of(config))
        run.checkpoints.save_epoch(Position(epoch=1, history=(metrics,)), state)
    finally:
        run.checkpoints.close()


def _image_size(file: WeightFile, given: int | None) -> int:
    if given is not None and given < 32:
        raise ConfigError(f"--image-size is {given}, but must be 32 or more, in pixels.")
    size = file.facts.image_size if given is None else given
    if file.head == "linear" and not file.facts.flattened:  # any size leads to averaged features
        return _DEFAULT_IMAGE_SIZE if size is None else size
    side = _side(file)
    if size is None:
        raise ConfigError(
            f"{file.path} does not say how large its pictures are; name --image-size, from"
            f" {32 * side} to {32 * side + 31}."
        )
    if size // 32 != side:
        raise ConfigError(
            f"--image-size {size} leads to {size // 32} x {size // 32} features, but the classifier"
            f" in {file.path} takes {side} x {side}: a size from {32 * side} to {32 * side + 31}."
        )
    return size


def _side(file: WeightFile) -> int:
    """Return the side of the square features that the first dense layer takes, flattened."""
    first = next(iter(file.dense.values()))
    inputs = file.arrays[first.kernel].size // file.arrays[first.bias].size
    return math.isqrt(inputs // int(BASE_CHANNELS[-1] * file.width))
