"""What weight files hold, in three stages: found, read as it stands, and converted.

`Contents` is what a layout reader finds in a file before it reads any array. `WeightFile` is the
file read, its arrays as they stand in it. `SourceWeights` is the one form that every file is
converted into: float32, kernels HWIO, dense kernels `[in, out]` over features flattened in the
order height, width, channels, conv1_1 taking RGB. Nothing here imports JAX or HDF5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vgg_jax.layers import IMAGENET_MEAN_RGB

ALIGNMENT = 64  # bytes: JAX takes arrays that start so without a copy
TOP_LAYERS = ("fc6", "fc7", "fc8")
HEAD_LAYERS: Mapping[str, tuple[str, ...]] = {
    "": (),
    "top": TOP_LAYERS,
    "dense256": ("hidden", "logits"),
    "linear": ("logits",),
}
HeadName = Literal["", "top", "dense256", "linear"]  # what follows the backbone in a file
Pair = tuple[np.ndarray, np.ndarray]  # kernel, bias


@dataclass(frozen=True)
class Preprocessing:
    """What the weights of a file expect of their input.

    Attributes:
        name: `caffe`, `torch` and `tf` are the modes of Keras' `preprocess_input`; `rescale` is
            `ImageDataGenerator(rescale=1 / 255)`; `caffe-rgb` is caffe's for weights that were
            exported from here to PyTorch.
        channels: Order of the channels that the file's conv1_1 takes.
        mean: RGB means on the scale 0 to 255 that are subtracted.
        scale: RGB factors that the difference is multiplied by.
    """

    name: str
    channels: Literal["RGB", "BGR"]
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]


_TORCH_MEAN, _TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, in [0, 1]
PREPROCESSINGS: Mapping[str, Preprocessing] = {
    preprocessing.name: preprocessing
    for preprocessing in (
        Preprocessing("caffe", "BGR", IMAGENET_MEAN_RGB, (1.0, 1.0, 1.0)),
        Preprocessing("caffe-rgb", "RGB", IMAGENET_MEAN_RGB, (1.0, 1.0, 1.0)),
        Preprocessing(
            "torch",
            "RGB",
            (255 * _TORCH_MEAN[0], 255 * _TORCH_MEAN[1], 255 * _TORCH_MEAN[2]),
            (1 / (255 * _TORCH_STD[0]), 1 / (255 * _TORCH_STD[1]), 1 / (255 * _TORCH_STD[2])),
        ),
        Preprocessing("tf", "RGB", (127.5, 127.5, 127.5), (1 / 127.5, 1 / 127.5, 1 / 127.5)),
        Preprocessing("rescale", "RGB", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    )
}


@dataclass(frozen=True)
class Layout:
    """How a program arranges the weights of VGG16 in a file.

    Attributes:
        name: What `--layout` calls it.
        description: In words, for messages and reports.
        kernels: Order of a convolution's axes. A dense kernel is `[in, out]` with HWIO and
            `[out, in]` with OIHW, and flattened features are in the order H, W, C with HWIO and
            C, H, W with OIHW.
        preprocessing: What such weights expect unless the user knows better.
    """

    name: str
    description: str
    kernels: Literal["HWIO", "OIHW"]
    preprocessing: str


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "keras-h5", "Keras weights (.h5), as published and by Keras 1 and 2", "HWIO", "caffe"
        ),
        Layout("keras-model-h5", "whole Keras model (.h5)", "HWIO", "caffe"),
        Layout("keras-weights-h5", "Keras 3 weights (.weights.h5)", "HWIO", "caffe"),
        Layout("keras", "whole Keras 3 model (.keras)", "HWIO", "caffe"),
        Layout("torch-safetensors", "torchvision's names in safetensors", "OIHW", "torch"),
        Layout("torch-pth", "torchvision's names saved by PyTorch (.pth)", "OIHW", "torch"),
    )
}


@dataclass(frozen=True)
class SourceArray:
    """One array of a file, not yet read.

    Attributes:
        path: Its name within the file, unique there.
        shape: As the file declares it.
        dtype: As the file declares it: float16, float32 or float64, little-endian.
        read_into: Fills a C-contiguous array of that shape and type with the values.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read_into: Callable[[np.ndarray], None]


@dataclass(frozen=True)
class FoundLayer:
    """A layer with its arrays, not yet read; `label` is what messages call it."""

    label: str
    kernel: SourceArray
    bias: SourceArray


@dataclass(frozen=True)
class ModelFacts:
    """What a file that holds a whole model says beside its arrays; None where it does not say.

    Attributes:
        image_size: Side in pixels of the model's square input.
        output: Activation of the last layer.
        flattened: Whether the features are flattened, or else averaged over places.
        preprocessing: What the model does to its input or expects of it, a key of
            `PREPROCESSINGS`.
        class_names: In the order of the last layer's outputs.
        interpolation: How pictures were resized for the model.
    """

    image_size: int | None = None
    output: Literal["softmax", "sigmoid"] | None = None
    flattened: bool | None = None
    preprocessing: str | None = None
    class_names: tuple[str, ...] | None = None
    interpolation: Literal["bilinear", "nearest"] | None = None


@dataclass(frozen=True)
class Contents:
    """What a layout reader found in a file.

    Attributes:
        layout: Name of the layout.
        layers: `conv1_1` to `conv5_3`, as far as found.
        dense: The dense layers behind them, in order.
        problems: Everything that is wrong, in words; an empty list promises all thirteen layers.
        head_problems: What is wrong with what follows the backbone.
        facts: What the file says of the model.
    """

    layout: str
    layers: Mapping[str, FoundLayer]
    dense: tuple[FoundLayer, ...] = ()
    problems: tuple[str, ...] = ()
    head_problems: tuple[str, ...] = ()
    facts: ModelFacts = ModelFacts()


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file that was read: its label and the paths of its arrays."""

    label: str
    kernel: str
    bias: str


@dataclass(frozen=True)
class WeightFile:
    """A weight file, read and checked; its arrays as they stand in it.

    Attributes:
        path: The file.
        size: Its bytes.
        sha256: Its SHA-256, in hexadecimal.
        layout: The arrangement of its arrays.
        preprocessing: What its weights expect of their input.
        arrays: By path: float16, float32 or float64.
        layers: `conv1_1` to `conv5_3`, in order.
        dense: The layers behind them: none, `HEAD_LAYERS[head]` in order.
        head: What those are.
        width: Channels relative to the published network.
        facts: What the file says of the model.
    """

    path: Path
    size: int
    sha256: str
    layout: Layout
    preprocessing: Preprocessing
    arrays: Mapping[str, np.ndarray]
    layers: Mapping[str, FileLayer]
    dense: Mapping[str, FileLayer]
    head: HeadName
    width: float
    facts: ModelFacts


@dataclass(frozen=True)
class Converted:
    """One row of the table from the file's arrays to parameters.

    Attributes:
        source: Path of the array in the file.
        parameter: Layer and role, such as `conv1_1/kernel`.
        done: What was done to it, in words.
    """

    source: str
    parameter: str
    done: str


@dataclass(frozen=True)
class SourceWeights:
    """Checked weights of a VGG16 that takes RGB, and where they came from.

    Attributes:
        layers: `conv1_1` to `conv5_3`, in order: kernel `[3, 3, in, out]`, bias `[out]`, float32.
        top: `fc6`, `fc7`, `fc8`: kernel `[in, out]`, bias `[out]`, float32; empty without top.
        head: A classifier's own layers, `hidden` and `logits` or `logits` alone, like `top`.
        width: Channels relative to the published network.
        mean: RGB means on the scale 0 to 255 that the network's input has subtracted.
        scale: RGB factors on the scale 0 to 255 that it is then multiplied by.
        layout: Name of the file's layout.
        source: The file's name.
        sha256: The file's SHA-256, in hexadecimal.
        path: Where the file was, absolute.
        preprocessing: Name of what its weights expect of their input.
        table: Where each parameter came from, and what was done to it.
    """

    layers: Mapping[str, Pair]
    top: Mapping[str, Pair]
    width: float
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    layout: str
    source: str
    sha256: str
    path: str = ""
    preprocessing: str = ""
    head: Mapping[str, Pair] = field(default_factory=dict)
    table: tuple[Converted, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers they hold."""
        layers = (*self.layers.values(), *self.top.values(), *self.head.values())
        return sum(kernel.size + bias.size for kernel, bias in layers)
