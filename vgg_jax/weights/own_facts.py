"""Reads what `vgg-jax export-weights` writes beside the arrays, so that nothing is guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from vgg_jax.weights.source import PREPROCESSINGS, ModelFacts

OWN_KEY = "vgg_jax"  # under which Keras' files hold it, as JSON
_AS_JSON = ("class_names", "image_size", "mean", "scale")  # where every value must be a string


def read_own_facts(text: str) -> ModelFacts:
    """Read the JSON that an exported file of Keras holds.

    Raises:
        ValueError: If it is not what was written there.
    """
    return _facts(json.loads(text))


def read_own_metadata(metadata: Mapping[str, str]) -> ModelFacts | None:
    """Read the metadata of a safetensors file; None where another program wrote it.

    Raises:
        ValueError: If they are not what was written there.
    """
    if not {"mean", "scale", "channels"} <= metadata.keys():
        return None
    values = {k: json.loads(v) if k in _AS_JSON else v for k, v in metadata.items()}
    return _facts(values)


def _facts(values: Mapping[str, Any]) -> ModelFacts:
    try:
        names = tuple(map(str, values.get("class_names") or ()))
        for name in names:
            if not (name and name.isprintable()):  # others could steer the terminal they reach
                raise ValueError(f"its class name {name!r} is empty or cannot be printed")
        size = values.get("image_size")
        output, interpolation = values.get("output"), values.get("interpolation")
        return ModelFacts(
            image_size=int(size) if size else None,
            output=output if output in ("softmax", "sigmoid") else None,
            flattened=None if not values.get("head") else values["head"] != "linear",
            preprocessing=_preprocessing(values["channels"], values["mean"], values["scale"]),
            class_names=names or None,
            interpolation=interpolation if interpolation in ("bilinear", "nearest") else None,
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"what it says of its input is damaged ({error!r})") from error


def _preprocessing(channels: str, mean: list[float], scale: list[float]) -> str:
    for known in PREPROCESSINGS.values():
        pairs = zip((*known.mean, *known.scale), (*mean, *scale), strict=True)
        if known.channels == channels and all(math.isclose(*pair, rel_tol=1e-6) for pair in pairs):
            return known.name
    raise ValueError(f"it takes {channels} with mean {mean} and scale {scale}, which are not known")
