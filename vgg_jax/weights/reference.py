"""An independent VGG16 in float64 NumPy, to compare the converted one with.

It reads a file's arrays as they stand there. It shares neither code nor numbers with the network or
with the converter: which array is which layer's, the order of the channels, the means, all that is
found or written down here once more. Whoever edits this keeps it so.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vgg_jax.errors import WeightsError

BLOCKS = (2, 2, 3, 3, 3)  # convolutions in each; a pool follows
# What the pixels are divided by, what is then subtracted and divided by, in the channels' order.
_INPUTS: Mapping[str, tuple[str, float, tuple[float, ...], tuple[float, ...]]] = {
    "caffe": ("BGR", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "caffe-rgb": ("RGB", 1.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "torch": ("RGB", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tf": ("RGB", 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "rescale": ("RGB", 255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_TRANSPOSED = str.maketrans("HW", "WH")
_PIECE = 1 << 12  # numbers that are turned into float64, or multiplied, at once: at least so many,
_PIECES = 1 << 8  # and of a large kernel this share
_Pair = tuple[np.ndarray, np.ndarray]  # kernel, bias


@dataclass(frozen=True)
class Reference:
    """A forward pass over a file's own arrays; each field is one thing that can be got wrong.

    Attributes:
        convolutions: Kernel and bias of the thirteen, in order.
        dense: Those of the layers behind them, by name, in order.
        kernels: Order of a convolution's axes.
        channels: Order of the channels that the first convolution takes.
        divisor: The pixels, 0 to 255, are divided by it.
        mean: Is then subtracted, in the order of `channels`.
        std: Is then divided by, in the order of `channels`.
        flatten: Order of the axes of flattened features; empty: features are averaged over places.
        linear: A layer without its ReLU.
        border: Whether convolutions give values where the kernel hangs over the border (SAME).
    """

    convolutions: Sequence[_Pair]
    dense: Mapping[str, _Pair]
    kernels: str
    channels: str
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flatten: str
    linear: str = ""
    border: bool = True

    @property
    def places(self) -> int:
        """How many places the dense layers take features of; 0 where any number will do."""
        if not self.dense or not self.flatten:
            return 0
        kernel, _ = next(iter(self.dense.values()))
        inputs = kernel.shape[0] if self.kernels == "HWIO" else kernel.shape[1]
        return inputs // len(self.convolutions[-1][1])

    def parameters(self) -> Iterator[tuple[str, _Pair]]:
        """Yield each layer's kernel and bias as a network holds them that takes RGB.

        Its kernels are HWIO, and `[in, out]` over features flattened in the order H, W, C: those of
        the first dense layer come as `[h, w, c, out]` where the file has them otherwise.
        """
        names = (f"conv{b}_{i}" for b, n in enumerate(BLOCKS, 1) for i in range(1, n + 1))
        for name, (kernel, bias) in zip(names, self.convolutions, strict=True):
            kernel = kernel.transpose([self.kernels.index(axis) for axis in "HWIO"])
            if name == "conv1_1":
                kernel = kernel[:, :, [self.channels.index(channel) for channel in "RGB"]]
            yield name, (kernel, bias)
        for number, (name, (kernel, bias)) in enumerate(self.dense.items()):
            if self.kernels == "OIHW":
                kernel = kernel.T
            if number == 0 and self.flatten == "CHW":
                side = math.isqrt(self.places)
                kernel = kernel.reshape(-1, side, side, len(bias)).transpose(1, 2, 0, 3)
            yield name, (kernel, bias)

    def backbone(self, image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each layer's name and output `[h, w, c]` for an RGB uint8 image `[H, W, 3]`."""
        x = image[:, :, ["RGB".index(channel) for channel in self.channels]] / self.divisor
        x = (x - np.array(self.mean)) / np.array(self.std)
        convolutions = iter(self.convolutions)
        for block, count in enumerate(BLOCKS, start=1):
            for i in range(1, count + 1):
                x = self._rectified(f"conv{block}_{i}", self._convolved(x, *next(convolutions)))
                yield f"conv{block}_{i}", x
            height, width, channels = x.shape
            x = x[: height // 2 * 2, : width // 2 * 2]
            x = x.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3))
            yield f"pool{block}", x

    def head(self, features: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and output `[n]` of each layer behind features `[h, w, c]`."""
        if self.flatten:
            x = features.transpose(["HWC".index(axis) for axis in self.flatten]).reshape(-1)
        else:
            x = features.mean((0, 1))
        *_, last = ("", *self.dense)
        for name, (kernel, bias) in self.dense.items():
            out = bias.astype(np.float64)
            for rows, piece in _pieces(kernel):
                if self.kernels == "HWIO":
                    out += x[rows] @ piece  # [in, out]
                else:
                    out[rows] += piece @ x  # [out, in]
            x = out if name == last else self._rectified(name, out)
            yield name, x

    def _rectified(self, name: str, x: np.ndarray) -> np.ndarray:
        return x if name == self.linear else np.maximum(x, 0, out=x)

    def _convolved(self, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Add up a matrix product for each place of the 3x3 kernel, some rows at a time."""
        kernel = kernel.transpose([self.kernels.index(axis) for axis in "HWIO"])
        height, width, channels = x.shape
        out = np.empty((height, width, len(bias)))
        rows = max(1, _PIECE // (width * (channels + len(bias))))
        for start in range(0, height, rows):
            part = out[start : start + rows]
            part[...] = bias
            lines = x[max(start - 1, 0) : start + rows + 1]
            above, below = int(start == 0), int(start + rows >= height)
            lines = np.pad(lines, ((above, below), (1, 1), (0, 0)))
            for i, j in np.ndindex(3, 3):
                window = lines[i : i + len(part), j : j + width].reshape(-1, channels)
                for inputs, piece in _pieces(kernel[i, j]):
                    part += (window[:, inputs] @ piece).reshape(part.shape)
        if not self.border:
            out[[0, -1]], out[:, [0, -1]] = 0, 0
        return out


def read_reference(
    arrays: Mapping[str, np.ndarray],
    *,
    kernels: str,
    preprocessing: str,
    dense_names: Sequence[str] = (),
    pooled: bool = False,
) -> Reference:
    """Find the layers among a file's arrays, by their paths and shapes alone.

    Args:
        arrays: By path, as they stand in the file.
        kernels: Order of a convolution's axes: `HWIO`, where dense kernels are `[in, out]` and
            features are flattened in the order H, W, C; or `OIHW`, where they are `[out, in]` and
            the order is C, H, W.
        preprocessing: `caffe`, `torch`, `tf` or `rescale`.
        dense_names: What to call the layers behind the convolutions.
        pooled: Whether the first of those takes features averaged over places, not flattened.

    Raises:
        WeightsError: If the arrays are not those of a VGG16 with that many dense layers.
    """
    by_rank = {n: [path for path, array in arrays.items() if array.ndim == n] for n in (1, 2, 4)}
    biases = {_owner(path): path for path in by_rank[1]}
    convolutions = sorted(by_rank[4], key=_natural)
    owners = [_owner(path) for path in (*convolutions, *by_rank[2])]
    counts = [len(convolutions), len(by_rank[2])]
    needed = [sum(BLOCKS), len(dense_names)]
    if counts != needed or sorted(owners) != sorted(biases) or len(by_rank[1]) != sum(needed):
        raise WeightsError(
            f"The independent reference finds {counts[0]} convolutions, {counts[1]} dense layers "
            f"and {len(by_rank[1])} biases, not {needed[0]}, {needed[1]} and one bias for each."
        )
    ins, outs = ([arrays[path].shape[kernels.index(i)] for path in convolutions] for i in "IO")
    if ins != [3, *outs[:-1]]:
        raise WeightsError(
            "The independent reference cannot tell the order of the convolutions: sorted by name, "
            f"they do not follow one upon the other ({convolutions[0]} comes first). A file of "
            "model.save with the ending .keras numbers them in order."
        )
    channels = outs[-1]
    # Dense layers are called what their makers like (dense_1, predictions), which tells no order.
    # Shapes do, and the file's order, which is tried first, where two are alike.
    for dense in itertools.permutations(by_rank[2]):
        shapes = [arrays[path].shape for path in dense]
        ins_outs = shapes if kernels == "HWIO" else [shape[::-1] for shape in shapes]
        if _is_chain(channels, ins_outs, pooled):
            break
    else:
        listed = ", ".join(f"{path} {arrays[path].shape}" for path in by_rank[2])
        raise WeightsError(
            "The independent reference cannot order the dense layers: they do not follow one upon "
            f"the other and upon {channels} channels: {listed}."
        )
    pairs = [(arrays[path], arrays[biases[_owner(path)]]) for path in (*convolutions, *dense)]
    order, divisor, mean, std = _INPUTS[preprocessing]
    flattened = "HWC" if kernels == "HWIO" else "CHW"
    return Reference(
        convolutions=pairs[: len(convolutions)],
        dense=dict(zip(dense_names, pairs[len(convolutions) :], strict=True)),
        kernels=kernels,
        channels=order,
        divisor=divisor,
        mean=mean,
        std=std,
        flatten="" if pooled else flattened,
    )


def spoil(reference: Reference) -> dict[str, Reference]:
    """Return the controls: references with one thing wrong, which the check must notice."""
    mean = reference.mean[::-1]
    if mean == reference.mean:  # a mean that is the same in either order is moved
        mean = tuple(value + 0.5 for value in mean)
    return {
        "swapped channels": replace(reference, channels=reference.channels[::-1]),
        "wrong mean": replace(reference, mean=mean),
        "transposed kernels": replace(reference, kernels=reference.kernels.translate(_TRANSPOSED)),
        "VALID for SAME padding": replace(reference, border=False),
        "missing ReLU": replace(reference, linear="conv3_1"),
    }


def spoil_head(reference: Reference) -> dict[str, Reference]:
    """Return the controls of the dense layers, likewise."""
    controls: dict[str, Reference] = {}
    if reference.places > 1:
        controls["flattened in the other order"] = replace(
            reference, flatten="CHW" if reference.flatten == "HWC" else "HWC"
        )
    if len(reference.dense) > 1:
        controls["missing dense ReLU"] = replace(reference, linear=next(iter(reference.dense)))
    return controls


def _is_chain(channels: int, ins_outs: Sequence[tuple[int, ...]], pooled: bool) -> bool:
    """Tell whether layers follow upon each other and upon `channels` times a square of places."""
    places, rest = divmod(ins_outs[0][0], channels) if ins_outs else (1, 0)
    follows = all(a[1] == b[0] for a, b in itertools.pairwise(ins_outs))
    squares = (1,) if pooled else (math.isqrt(places) ** 2,)
    return follows and rest == 0 and places >= 1 and places in squares


def _natural(path: str) -> list[list[str | int]]:
    """Return a key that sorts numbers as numbers: `conv2d`, `conv2d_1`, …, `conv2d_12`."""
    return [
        [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
        for name in path.split("/")
    ]


def _owner(path: str) -> str:
    """Return what stands before the last `/` or `.`: kernel and bias of a layer have it alike."""
    return re.sub(r"[/.][^/.]*$", "", path)


def _pieces(array: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield an array in float64, some rows at a time: no whole copy of fc6, which has 411 MB."""
    rows = max(1, max(_PIECE, array.size // _PIECES) // max(1, array[0].size))
    for start in range(0, len(array), rows):
        yield slice(start, start + rows), array[start : start + rows].astype(np.float64)
