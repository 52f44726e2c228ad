"""Builds narrow weight files, as read and as converted, by hand; and the network to prove them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax import nn
from weight_files import keras_arrays

from vgg_jax.layers import CONVOLUTIONS
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.weights.proof import Forward, prove
from vgg_jax.weights.report import Proof
from vgg_jax.weights.source import (
    HEAD_LAYERS,
    LAYOUTS,
    PREPROCESSINGS,
    Converted,
    FileLayer,
    HeadName,
    ModelFacts,
    Pair,
    SourceWeights,
    WeightFile,
)

WIDTH = 1 / 16
FEATURES = int(512 * WIDTH)
PLACES = 4  # of pool5 on a picture of side 64
DENSE_SHAPES = {
    "": [],
    "top": [(PLACES * FEATURES, 40), (40, 40), (40, 10)],
    "dense256": [(PLACES * FEATURES, 24), (24, 5)],
    "linear": [(FEATURES, 5)],
}
# Paths of kernel and bias, and what the layers are called there.
PATHS = {
    "published": ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),
    "nested": ("vgg16/{0}/kernel:0", "vgg16/{0}/bias:0"),
    "numbered": ("layers/{0}/vars/0", "layers/{0}/vars/1"),
    "torch": ("{0}.weight", "{0}.bias"),
}
PUBLISHED = list(keras_arrays(1 / 64))
NUMBERED = ["conv2d", *(f"conv2d_{i}" for i in range(1, 13))]
TORCH = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
LABELS = {"published": PUBLISHED, "nested": PUBLISHED, "numbered": NUMBERED, "torch": TORCH}
DENSE_LABELS = {
    "published": ["fc1", "fc2", "predictions"],
    "nested": ["my_output", "dense", "a"],  # in no order of the alphabet
    "numbered": ["dense", "dense_1", "dense_2"],
    "torch": ["classifier.0", "classifier.3", "classifier.6"],
}


def make_file(
    layout: str = "keras-h5",
    preprocessing: str = "caffe",
    head: HeadName = "",
    paths: str = "published",
    dtype: str = "float32",
) -> WeightFile:
    """Draw a narrow file in the axes of `layout`, its first layer made for `preprocessing`."""
    rng = np.random.default_rng(7)
    pairs = list(keras_arrays(WIDTH, seed=3).values())
    if preprocessing != "caffe":
        pairs[0] = pairs[0][0] * np.float32(64), pairs[0][1]
    for shape in DENSE_SHAPES[head]:
        kernel = rng.standard_normal(shape) * np.sqrt(2 / shape[0])
        pairs.append((kernel.astype(np.float32), rng.normal(0, 0.05, shape[1]).astype(np.float32)))
    if LAYOUTS[layout].kernels == "OIHW":
        pairs = [(np.ascontiguousarray(np.moveaxis(k, (-1, -2), (0, 1))), b) for k, b in pairs]
    dense_labels = DENSE_LABELS[paths][: len(DENSE_SHAPES[head])]
    found = [
        FileLayer(label, *(path.format(label) for path in PATHS[paths]))
        for label in (*LABELS[paths], *dense_labels)
    ]
    arrays = {}
    for layer, (kernel, bias) in zip(found, pairs, strict=True):
        arrays |= {layer.kernel: kernel.astype(dtype), layer.bias: bias.astype(dtype)}
    return WeightFile(
        path=Path("narrow.h5"),
        size=1234,
        sha256="5" * 64,
        layout=LAYOUTS[layout],
        preprocessing=PREPROCESSINGS[preprocessing],
        arrays=arrays,
        layers=dict(zip(CONVOLUTIONS, found, strict=False)),
        dense=dict(zip(HEAD_LAYERS[head], found[len(CONVOLUTIONS) :], strict=True)),
        head=head,
        width=WIDTH,
        facts=ModelFacts(),
    )


def convert(file: WeightFile) -> SourceWeights:
    """Convert by hand what `make_file` drew."""
    pairs: dict[str, Pair] = {}
    table: list[Converted] = []
    for name, layer in (*file.layers.items(), *file.dense.items()):
        kernel = file.arrays[layer.kernel].astype(np.float32)
        if file.layout.kernels == "OIHW" and name == next(iter(file.dense), "") != "logits":
            by_place = kernel.reshape(len(kernel), FEATURES, 2, 2)
            kernel = by_place.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
        elif file.layout.kernels == "OIHW":
            kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
        if name == "conv1_1" and file.preprocessing.channels == "BGR":
            kernel = kernel[:, :, ::-1]
        pairs[name] = np.ascontiguousarray(kernel), file.arrays[layer.bias].astype(np.float32)
        table += [
            Converted(layer.kernel, f"{name}/kernel", "arranged"),
            Converted(layer.bias, f"{name}/bias", "as it is"),
        ]
    dense = {name: pairs.pop(name) for name in file.dense}
    return SourceWeights(
        layers=pairs,
        top=dense if file.head == "top" else {},
        head={} if file.head == "top" else dense,
        width=file.width,
        mean=file.preprocessing.mean,
        scale=file.preprocessing.scale,
        layout=file.layout.name,
        source=file.path.name,
        sha256=file.sha256,
        table=tuple(table),
    )


def network(weights: SourceWeights, dense_relu: bool = True) -> Forward:
    """Return the real network, with its dense layers written out."""
    backbone = VGG16.from_layers(weights.layers, mean=weights.mean, scale=weights.scale)
    dense = {**weights.top, **weights.head}

    def forward(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        x = backbone.normalise(images)
        for name, output in backbone.walk(x):
            x = output
            yield name, np.asarray(x)
        x = x.mean((1, 2)) if len(dense) == 1 else x.reshape(1, -1)
        for name, (kernel, bias) in dense.items():
            x = x @ kernel + bias
            x = nn.relu(x) if dense_relu and name not in ("fc8", "logits") else x
            yield name, np.asarray(x)

    return forward


def proof_of(
    file: WeightFile, weights: SourceWeights | None = None, forward: Forward | None = None
) -> Proof:
    weights = convert(file) if weights is None else weights
    with jax.default_matmul_precision("highest"):
        return prove(file, weights, forward or network(weights), {"numpy": np.__version__})


def with_layer(weights: SourceWeights, name: str, pair: Pair) -> SourceWeights:
    parts = {part: dict(getattr(weights, part)) for part in ("layers", "top", "head")}
    for pairs in parts.values():
        if name in pairs:
            pairs[name] = pair
    return replace(weights, **parts)


def with_kernel(
    weights: SourceWeights, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> SourceWeights:
    kernel, bias = {**weights.layers, **weights.top, **weights.head}[name]
    return with_layer(weights, name, (np.ascontiguousarray(change(kernel)), bias))
