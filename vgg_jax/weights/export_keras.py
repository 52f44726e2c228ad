"""Writes networks for Keras: the layout of its published weights, and whole models.

The configuration of a whole model says only what differs from Keras' defaults, which have not
changed from Keras 2 to 3, so that each version can read it.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vgg_jax.layers import LAYERS, keras_name
from vgg_jax.weights.export import Network, channels_taken, describe, for_bgr
from vgg_jax.weights.own_facts import OWN_KEY

# Below 2 Keras would transpose kernels; in whole .h5 models all versions have written as 2 does.
_H5_ATTRIBUTES = {"backend": b"tensorflow", "keras_version": b"2.0.0"}
_PUBLISHED_NAMES = ("{layer}_W_1:0", "{layer}_b_1:0")
_MODEL_NAMES = ("{layer}/kernel:0", "{layer}/bias:0")
_DENSE_NAMES = {
    "fc6": "fc1",
    "fc7": "fc2",
    "fc8": "predictions",
    "hidden": "hidden",
    "logits": "probabilities",
}
_FLOAT32 = {"dtype": "float32"}  # whatever the user's default policy is
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # equal networks give equal bytes


@dataclass(frozen=True)
class KerasLayer:
    """A layer as Keras knows it.

    Attributes:
        kind: Name of its class.
        config: Arguments of its constructor.
        arrays: Kernel and bias, or nothing.
    """

    kind: str
    config: dict[str, Any]
    arrays: tuple[np.ndarray, ...] = ()

    @property
    def name(self) -> str:
        """The layer's own name."""
        return self.config["name"]


def keras_layers(network: Network) -> list[KerasLayer]:
    """Return the layers of the sequential model that `network` is in Keras, without its input."""
    return [*_backbone(network), *_dense(network)]


def write_published_h5(network: Network, path: Path) -> None:
    """Write weights alone, in the layout that Keras has published: one group a layer, by name."""
    with h5py.File(path, "w") as file:
        names = [KerasLayer("InputLayer", {"name": "input_1"}), *keras_layers(network)]
        _write_layers(file, names, _PUBLISHED_NAMES)
        if channels_taken(network, "keras-h5") == "RGB":  # unlike what such files take as a rule
            file.attrs[OWN_KEY] = json.dumps(describe(network, "keras-h5"))


def write_model_h5(network: Network, path: Path) -> None:
    """Write a whole sequential model in HDF5, with what else is to be known in `vgg_jax`."""
    layers = keras_layers(network)
    described = [{"class_name": layer.kind, "config": layer.config} for layer in layers]
    shape = {"batch_input_shape": _input_shape(network), "name": "input_1", **_FLOAT32}
    described.insert(0, {"class_name": "InputLayer", "config": shape})
    config = {"class_name": "Sequential", "config": {"name": "vgg16", "layers": described}}
    with h5py.File(path, "w") as file:
        file.attrs.update(_H5_ATTRIBUTES)
        file.attrs["model_config"] = json.dumps(config)
        file.attrs[OWN_KEY] = json.dumps(describe(network, "keras-h5"))
        _write_layers(file.create_group("model_weights"), layers, _MODEL_NAMES)


def write_keras(network: Network, path: Path) -> None:
    """Write a whole sequential model as a .keras archive, more to be known in `metadata.json`."""
    layers = keras_layers(network)
    shape = {"batch_shape": _input_shape(network), "name": "input_1", **_FLOAT32}
    config = {
        "name": "vgg16",
        "layers": [
            {"module": "keras.layers", "class_name": kind, "config": config}
            for kind, config in (
                ("InputLayer", shape),
                *((layer.kind, layer.config) for layer in layers),
            )
        ],
    }
    model = {"module": "keras", "class_name": "Sequential", "config": config}
    metadata = {
        "keras_version": "3.0.0",
        "date_saved": "1980-01-01@00:00:00",
        OWN_KEY: describe(network, "keras"),
    }
    weights = path.with_name(path.name + ".h5")
    try:
        _write_numbered(layers, weights)
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in (("metadata.json", metadata), ("config.json", model)):
                archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), json.dumps(value))
            member = zipfile.ZipInfo("model.weights.h5", _ZIP_DATE)
            member.file_size = weights.stat().st_size
            with archive.open(member, "w") as target, weights.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
    finally:
        weights.unlink(missing_ok=True)


def _backbone(network: Network) -> Iterator[KerasLayer]:
    for layer in LAYERS:
        config = {"name": keras_name(layer), **_FLOAT32}
        if layer.startswith("pool"):
            yield KerasLayer("MaxPooling2D", {**config, "pool_size": [2, 2], "strides": [2, 2]})
            continue
        kernel, bias = network.layers[layer]
        if layer == "conv1_1" and channels_taken(network, "keras") == "BGR":
            kernel = for_bgr(kernel)
        config |= {"filters": bias.size, "kernel_size": [3, 3], "padding": "same"}
        yield KerasLayer("Conv2D", {**config, "activation": "relu"}, (kernel, bias))


def _dense(network: Network) -> Iterator[KerasLayer]:
    if network.head == "linear":
        yield KerasLayer("GlobalAveragePooling2D", {"name": "average", **_FLOAT32})
    elif network.dense:
        yield KerasLayer("Flatten", {"name": "flatten", **_FLOAT32})
    for (name, pair), activation in zip(network.dense.items(), network.activations, strict=True):
        units = {"units": pair[1].size, "activation": activation}
        yield KerasLayer("Dense", {"name": _DENSE_NAMES[name], **_FLOAT32, **units}, pair)


def _input_shape(network: Network) -> list[int | None]:
    return [None, network.image_size, network.image_size, 3]


def _write_layers(group: h5py.Group, layers: Sequence[KerasLayer], names: tuple[str, str]) -> None:
    """Write one group a layer; `names` are those of kernel and bias."""
    group.attrs.update(_H5_ATTRIBUTES)
    group.attrs["layer_names"] = [layer.name.encode() for layer in layers]
    for layer in layers:
        member = group.create_group(layer.name)
        # Without arrays an empty list of numbers, as Keras itself leaves it.
        keys = [name.format(layer=layer.name) for name in names][: len(layer.arrays)]
        member.attrs["weight_names"] = [key.encode() for key in keys]
        for key, array in zip(keys, layer.arrays, strict=True):
            member.create_dataset(key, data=array, track_times=False)


def _write_numbered(layers: Sequence[KerasLayer], path: Path) -> None:
    """Write Keras 3's weights: `layers/conv2d`, `layers/conv2d_1`, … by class, not by name."""
    counts = Counter[str]()
    with h5py.File(path, "w") as file:
        for layer in layers:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", layer.kind).lower()
            number = f"_{counts[kind]}" if counts[kind] else ""
            counts[kind] += 1
            variables = file.create_group(f"layers/{kind}{number}/vars")
            variables.attrs["name"] = layer.name
            for i, array in enumerate(layer.arrays):
                variables.create_dataset(str(i), data=array, track_times=False)
        file.create_group("vars").attrs["name"] = "vgg16"
