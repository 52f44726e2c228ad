"""Reads what a whole Keras model says of itself beside its arrays: its configuration, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vgg_jax.weights.source import ModelFacts

_CONTAINERS = ("Functional", "Model", "Sequential")
# What does nothing at inference; so do most layers called Random….
_HARMLESS = ("InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout")
_FLATTEN, _AVERAGE = "Flatten", "GlobalAveragePooling2D"
_CONVOLUTION, _POOLING = "Conv2D", "MaxPooling2D"
_OLD_NAMES = {"Convolution2D": _CONVOLUTION}
_BLOCKS = (2, 2, 3, 3, 3)  # convolutions before each pooling
# VGG16 up to its last convolution, in order.
_CONVOLUTIONS = sum(_BLOCKS)
_NETWORK = [kind for count in _BLOCKS for kind in (*count * [_CONVOLUTION], _POOLING)][:-1]
_ACTIVATIONS = {"ReLU": "relu", "Softmax": "softmax"}  # as layers of their own
_RESCALINGS = ((1 / 255, 0, "rescale"), (1 / 127.5, -1, "tf"))  # names in PREPROCESSINGS
_SAVE_WEIGHTS = (
    "if that is the preprocessing, convert what model.save_weights writes, with --preprocessing"
)
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class ModelDescription:
    """A model's configuration.

    Attributes:
        facts: What a conversion takes from it.
        problems: What in it is not as in VGG16, in words.
        head_problems: What follows VGG16 in it and is not as in a head that is known.
        convolutions: Names of the convolutions, in order.
        dense: How many dense layers there are.
    """

    facts: ModelFacts
    problems: tuple[str, ...]
    head_problems: tuple[str, ...]
    convolutions: tuple[str, ...]
    dense: int


def describe_model(config: str) -> ModelDescription:
    """Read the configuration of a model.

    Args:
        config: The JSON that Keras wrote.

    Raises:
        ValueError: If it is no such JSON.
    """
    try:
        every = list(_layers(json.loads(config)))
        layers = _with_activations(every)
        size = _image_size(every)
        facts = ModelFacts(size, _output(layers), _is_flattened(layers), _preprocessing(layers))
        convolutions = [i for i, (kind, _) in enumerate(layers) if kind == _CONVOLUTION]
        end = convolutions[:_CONVOLUTIONS][-1] + 1 if convolutions else 0
        return ModelDescription(
            facts,
            tuple(_problems(layers[:end])),
            (*_picture_problems(every), *_head_problems(layers[end:])),
            tuple(str(layers[i][1].get("name")) for i in convolutions),
            sum(kind == "Dense" for kind, _ in layers),
        )
    except (TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"its configuration is not one of Keras ({error!r})") from error


_Layer = tuple[str, dict[str, Any]]  # class and configuration


def _layers(model: dict[str, Any]) -> Iterator[_Layer]:
    """Yield the layers in order, those of models within the model too."""
    count = 0
    todo = [model]
    while todo:
        layer = todo.pop(0)
        count += 1
        if count > _MOST_LAYERS:
            raise KeyError(f"more than {_MOST_LAYERS} layers")
        kind: str = layer["class_name"]
        config = layer["config"]
        if kind in _CONTAINERS:
            # Keras 1 wrote a Sequential's layers as the bare list.
            todo[:0] = config if isinstance(config, list) else config["layers"]
        else:
            yield _OLD_NAMES.get(kind, kind), config


def _with_activations(layers: Iterable[_Layer]) -> list[_Layer]:
    """Put an activation that is a layer of its own into the layer before, as is the same."""
    merged: list[_Layer] = []
    for kind, config in layers:
        activation = config.get("activation") if kind == "Activation" else _ACTIVATIONS.get(kind)
        if kind == "ReLU" and any(map(config.get, ("max_value", "negative_slope", "threshold"))):
            activation = None  # not the plain one
        before = merged[-1] if merged else ("", {})
        if activation and before[1].get("activation") == "linear":
            merged[-1] = before[0], {**before[1], "activation": activation}
        elif kind == "RandomCrop" or not (kind in _HARMLESS or kind.startswith("Random")):
            merged.append((kind, config))
    return merged


def _image_size(layers: list[_Layer]) -> int | None:
    """Return the side of the first square picture that a layer says it takes."""
    sizes = (size for size in _picture_sizes(layers) if size[0] == size[1])
    return next((size[0] for size in sizes if isinstance(size[0], int)), None)


def _picture_sizes(layers: list[_Layer]) -> Iterator[list[Any]]:
    for _, config in layers:
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        if shape and len(shape) == 4:
            yield shape[1:3]


def _picture_problems(layers: list[_Layer]) -> Iterator[str]:
    for height, width in _picture_sizes(layers):
        if height != width:
            yield f"takes pictures of {height} x {width}, but only square ones convert"
            return


def _output(layers: list[_Layer]) -> Literal["softmax", "sigmoid"] | None:
    activations = [config.get("activation") for kind, config in layers if kind == "Dense"]
    if activations and activations[-1] == "sigmoid":
        return "sigmoid"
    return "softmax" if activations else None


def _is_flattened(layers: list[_Layer]) -> bool | None:
    kinds = {kind for kind, _ in layers if kind in (_FLATTEN, _AVERAGE)}
    return _AVERAGE not in kinds if kinds else None  # to flatten averages does nothing


def _preprocessing(layers: list[_Layer]) -> str | None:
    return next((_rescaling(config) for kind, config in layers if kind == "Rescaling"), None)


def _rescaling(config: dict[str, Any]) -> str | None:
    given = (config["scale"], config["offset"])
    return next((name for *known, name in _RESCALINGS if given == tuple(known)), None)


def _problems(layers: list[_Layer]) -> Iterator[str]:
    """Say what is not as in VGG16 in the layers up to the last convolution."""
    if layers and layers[0][0] == "Rescaling":
        config = layers[0][1]
        if _rescaling(config) is None:
            yield (
                f"{config.get('name')}: rescales by {config['scale']} with offset"
                f" {config['offset']}; known are 1/255 and 0, and 1/127.5 and -1"
            )
        layers = layers[1:]
    for i, (kind, config) in enumerate(layers):
        wanted = _NETWORK[i] if i < len(_NETWORK) else _POOLING
        if kind != wanted:
            way_out = "" if i else f"; {_SAVE_WEIGHTS}"
            yield f"{config.get('name', kind)}: is a {kind} where VGG16 has a {wanted}{way_out}"
            return  # nothing behind it is where it should be
        yield from _layer_problems(kind, config)


def _head_problems(layers: list[_Layer]) -> Iterator[str]:
    """Say what follows the last convolution and is not as in a head that is known."""
    if layers and layers[0][0] != _POOLING:
        kind, config = layers[0]
        yield f"{config.get('name', kind)}: is a {kind} where VGG16 has a {_POOLING}"
        return
    dense = [config for kind, config in layers if kind == "Dense"]
    for i, (kind, config) in enumerate(layers):
        yield from _layer_problems(kind, config)
        if kind == "Dense":
            last = config is dense[-1]
            known = ("softmax", "sigmoid", "linear") if last else ("relu",)
            activation = config.get("activation")
            if activation not in known:
                yield (
                    f"{config.get('name', kind)}: has activation {activation}, but must have"
                    f" {' or '.join(known)}"
                )
            elif activation == "softmax" and config.get("units", config.get("output_dim")) == 1:
                yield f"{config.get('name', kind)}: is the softmax of one unit, which is always 1"
        elif i and kind not in (_FLATTEN, _AVERAGE):
            yield (
                f"{config.get('name', kind)}: is a {kind}, which neither VGG16 nor a head that is"
                " known has"
            )


def _layer_problems(kind: str, config: dict[str, Any]) -> Iterator[str]:
    """Say how a layer of VGG16 is not set as there; Keras 1 called some settings otherwise."""
    name = config.get("name", kind)
    order = config.get("data_format", config.get("dim_ordering"))
    padding = config.get("padding", config.get("border_mode", "valid"))  # as Keras fills in
    if order in ("channels_first", "th"):
        yield f"{name}: takes the channels first ({order}); only channels_last converts"
    if kind == _CONVOLUTION:
        strides = list(config.get("strides", config.get("subsample", (1, 1))))
        dilation = list(config.get("dilation_rate", (1, 1)))
        activation = config.get("activation")
        if (activation, padding, strides, dilation) != ("relu", "same", [1, 1], [1, 1]):
            yield (
                f"{name}: has activation {activation}, padding {padding}, strides {strides},"
                f" dilation {dilation}"
            )
    elif kind == _POOLING:
        size = list(config["pool_size"])
        strides = list(config.get("strides") or size)
        if (size, strides, padding) != ([2, 2], [2, 2], "valid"):
            yield f"{name}: pools {size} with strides {strides}, padding {padding}"
