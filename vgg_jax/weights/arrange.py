"""Converts the arrays of a weight file, as they stand in it, into the one form used here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from vgg_jax.layers import BASE_CHANNELS
from vgg_jax.weights.checks import raise_together
from vgg_jax.weights.source import ALIGNMENT, Converted, Pair, SourceWeights, WeightFile

_View = tuple[np.ndarray, list[str]]  # an array seen otherwise, and what was done, in words


def arrange_weights(file: WeightFile) -> SourceWeights:
    """Convert the arrays of a file; those that need no change are not copied.

    Raises:
        WeightsError: If a value is not finite as float32.
    """
    layers: dict[str, Pair] = {}
    table: list[Converted] = []
    for name, layer in (*file.layers.items(), *file.dense.items()):
        kernel, bias = file.arrays[layer.kernel], file.arrays[layer.bias]
        view = _convolution if name in file.layers else _dense
        layers[name] = (
            _finish(*view(file, name, kernel), f"{name}/kernel", layer.kernel, table),
            _finish(bias, [], f"{name}/bias", layer.bias, table),
        )
    labels = {name: layer.label for name, layer in (*file.layers.items(), *file.dense.items())}
    raise_together(file.path, list(_values_not_finite(layers, labels)))
    dense = {name: layers[name] for name in file.dense}
    return SourceWeights(
        layers={name: layers[name] for name in file.layers},
        top=dense if file.head == "top" else {},
        head={} if file.head == "top" else dense,
        width=file.width,
        mean=file.preprocessing.mean,
        scale=file.preprocessing.scale,
        layout=file.layout.name,
        source=file.path.name,
        sha256=file.sha256,
        path=str(file.path.absolute()),
        preprocessing=file.preprocessing.name,
        table=tuple(table),
    )


def _convolution(file: WeightFile, name: str, kernel: np.ndarray) -> _View:
    done: list[str] = []
    if file.layout.kernels == "OIHW":
        kernel = kernel.transpose(2, 3, 1, 0)
        done.append("axes from OIHW to HWIO")
    if name == "conv1_1" and file.preprocessing.channels == "BGR":
        kernel = kernel[:, :, ::-1]
        done.append("input channels from BGR to RGB")
    return kernel, done


def _dense(file: WeightFile, name: str, kernel: np.ndarray) -> _View:
    if file.layout.kernels == "HWIO":
        return kernel, []
    if (name == "logits" and file.head == "linear") or name != next(iter(file.dense)):
        return kernel.T, ["transposed to [in, out]"]
    # The features are flattened in the order C, H, W there, and H, W, C here.
    channels = int(BASE_CHANNELS[-1] * file.width)
    units, inputs = kernel.shape
    side = math.isqrt(inputs // channels)
    by_place = kernel.reshape(units, channels, side, side).transpose(2, 3, 1, 0)
    return by_place, ["transposed to [in, out]", "inputs from (C, H, W) to (H, W, C)"]


def _finish(
    view: np.ndarray, done: list[str], parameter: str, source: str, table: list[Converted]
) -> np.ndarray:
    """Return a view as float32 in C order, dense kernels flat, and add its row to the table."""
    if view.dtype != np.float32:
        done = [*done, f"{view.dtype} to float32"]
    array = view if view.dtype == np.float32 and view.flags.c_contiguous else _copy(view)
    table.append(Converted(source, parameter, "; ".join(done) or "as it is"))
    if array.ndim == 4 and not parameter.startswith("conv"):
        return array.reshape(-1, array.shape[-1])
    return array


def _copy(view: np.ndarray) -> np.ndarray:
    """Return a copy as float32 in C order, which JAX can use without another one."""
    size = view.size * np.dtype(np.float32).itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    array = buffer[start : start + size].view(np.float32).reshape(view.shape)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        array[...] = view
    return array


def _values_not_finite(layers: Mapping[str, Pair], labels: Mapping[str, str]) -> Iterator[str]:
    for name, pair in layers.items():
        for role, array in zip(("kernel", "bias"), pair, strict=True):
            # The extremes are NaN or infinite where anything is, without a copy of the array.
            if not (np.isfinite(array.min()) and np.isfinite(array.max())):
                count = int(array.size - np.isfinite(array).sum())
                yield f"{labels[name]}: {role} has {count:,} values that are not finite"
