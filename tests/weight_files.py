"""Builds small seeded weight files in the layouts that Keras has used for VGG16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

Names = Literal["published", "nested", "bare"]
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]

CONVOLUTIONS_PER_BLOCK = (2, 2, 3, 3, 3)
BASE_CHANNELS = (64, 128, 256, 512, 512)
TOP_NAMES = ("fc1", "fc2", "predictions")
ARRAY_NAMES: Mapping[Names, tuple[str, str]] = {
    "published": ("{layer}_W_1:0", "{layer}_b_1:0"),
    "nested": ("{layer}/kernel:0", "{layer}/bias:0"),
    "bare": ("{layer}/kernel", "{layer}/bias"),  # as the legacy writer of Keras 3 names them
}


def keras_arrays(
    width: float = 1 / 16,
    seed: int = 0,
    *,
    top: bool = False,
    classes: int = 10,
    convolutions_per_block: tuple[int, ...] = CONVOLUTIONS_PER_BLOCK,
) -> Arrays:
    """Return `{Keras' layer name: (kernel, bias)}`, float32, conv1_1 taking BGR; He normal kernels.

    The first layer's kernels are 1/64 of He's, since its inputs span about 256.
    """
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}

    def add(name: str, *shape: int, divisor: float = 1) -> None:
        kernel = rng.standard_normal(shape, np.float32)
        kernel *= np.float32(np.sqrt(2 / np.prod(shape[:-1])) / divisor)
        arrays[name] = kernel, 0.05 * rng.standard_normal(shape[-1], np.float32)

    channels_in = 3
    for block, count in enumerate(convolutions_per_block, start=1):
        channels_out = int(BASE_CHANNELS[block - 1] * width)
        for i in range(1, count + 1):
            divisor = 64 if block == i == 1 else 1
            add(f"block{block}_conv{i}", 3, 3, channels_in, channels_out, divisor=divisor)
            channels_in = channels_out
    if top:
        units = int(4096 * width)
        for name, shape in zip(
            TOP_NAMES, [(49 * channels_in, units), (units, units), (units, classes)], strict=True
        ):
            add(name, *shape)
    return arrays


def write_keras_arrays(path: Path, arrays: Arrays, names: Names = "published") -> None:
    """Write `{Keras layer: (kernel, bias)}`, with the pools and the input that Keras lists."""
    layers = ["input_1"]
    for name in arrays:
        if layers[-1].startswith("block") and name[:6] != layers[-1][:6]:
            layers.append(f"{layers[-1][:6]}_pool")
            if name == "fc1":
                layers.append("flatten")
        layers.append(name)
    if layers[-1].startswith("block"):
        layers.append(f"{layers[-1][:6]}_pool")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.0.0"
        for layer in layers:
            group = file.create_group(layer)
            pair = arrays.get(layer, ())
            keys = [key.format(layer=layer) for key in ARRAY_NAMES[names]][: len(pair)]
            group.attrs["weight_names"] = [key.encode() for key in keys]
            for key, array in zip(keys, pair, strict=True):
                group.create_dataset(key, data=array)


def write_published_h5(
    path: Path,
    width: float = 1 / 16,
    seed: int = 0,
    top: bool = False,
    names: Names = "published",
    *,
    dtype: str = "float32",
    edit: Callable[[h5py.File], None] | None = None,
) -> Arrays:
    """Write seeded weights in the layout of the published file; returns what was drawn, float32.

    Args:
        path: File to write.
        width: Channels relative to the published network.
        seed: Decides every value.
        top: Whether fc1, fc2 and predictions (10 classes) are written too.
        names: How arrays are named; see `ARRAY_NAMES`.
        dtype: Of the arrays in the file.
        edit: Called with the file, open for writing, at the end: to spoil it.
    """
    arrays = keras_arrays(width, seed, top=top)
    as_dtype = {name: (k.astype(dtype), b.astype(dtype)) for name, (k, b) in arrays.items()}
    write_keras_arrays(path, as_dtype, names)
    if edit is not None:
        with h5py.File(path, "r+") as file:
            edit(file)
    return arrays
