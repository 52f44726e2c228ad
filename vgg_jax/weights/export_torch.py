"""Writes networks for PyTorch: torchvision's names of VGG16, in safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vgg_jax.layers import LAYERS
from vgg_jax.weights.export import Network, describe

_BLOCK_BYTES = 1 << 24
_ALIGNMENT = 8  # of the first array, as safetensors itself aligns it


class TorchArray(NamedTuple):
    """An array as PyTorch knows it.

    Attributes:
        name: Its name in the state dictionary.
        shape: Its shape there.
        values: A view with these values in this order, perhaps of more axes and not contiguous.
    """

    name: str
    shape: tuple[int, ...]
    values: np.ndarray


def torch_arrays(network: Network) -> Iterator[TorchArray]:
    """Yield the arrays, convolutions as OIHW, dense kernels as `[out, in]`.

    Where features are flattened, it is in the order channels, height, width.
    """
    position = 0
    for layer in LAYERS:
        if layer.startswith("conv"):
            kernel, bias = network.layers[layer]
            values = kernel.transpose(3, 2, 0, 1)
            yield TorchArray(f"features.{position}.weight", values.shape, values)
            yield TorchArray(f"features.{position}.bias", bias.shape, bias)
        position += 1 if layer.startswith("pool") else 2  # a module of its own for each ReLU
    channels = network.layers["conv5_3"][1].size
    # The published top has ReLU and dropout between its layers, a head here ReLU alone.
    step = 3 if network.head == "top" else 2
    for i, (kernel, bias) in enumerate(network.dense.values()):
        # One place or, where features are flattened, a square of them.
        side = math.isqrt(len(kernel) // channels) if i == 0 else 1
        values = kernel.reshape(side, side, -1, bias.size).transpose(3, 2, 0, 1)
        yield TorchArray(f"classifier.{step * i}.weight", kernel.shape[::-1], values)
        yield TorchArray(f"classifier.{step * i}.bias", bias.shape, bias)


def write_torch_safetensors(network: Network, path: Path) -> None:
    """Write the arrays, and in the file's metadata what else is to be known, as strings.

    The library's writer copies all arrays before it writes the first, and orders the metadata
    anew each time; here equal networks give equal bytes, and a block at a time is copied.
    """
    arrays = list(torch_arrays(network))
    metadata = {"format": "pt"}
    for key, value in describe(network, "torch-safetensors").items():
        if value not in (None, "", []):
            metadata[key] = value if isinstance(value, str) else json.dumps(value)
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, shape, values in arrays:
        end = start + values.nbytes
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            for block in _blocks(array.values):
                file.write(block)


def _blocks(values: np.ndarray) -> Iterator[memoryview]:
    rows = max(1, _BLOCK_BYTES * len(values) // values.nbytes)
    for start in range(0, len(values), rows):
        yield np.ascontiguousarray(values[start : start + rows], "<f4").data
