"""The independent reference: what it computes, what it finds in a file, what memory it takes."""

from __future__ import annotations

import ast
import gzip
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_files import real_data
from proof_files import FEATURES, PATHS, WIDTH, convert, make_file, proof_of
from scipy.signal import correlate2d
from weight_files import keras_arrays

from vgg_jax.errors import WeightsError
from vgg_jax.layers import keras_name
from vgg_jax.weights import reference as reference_module
from vgg_jax.weights.proof import draw_picture
from vgg_jax.weights.reference import Reference, read_reference
from vgg_jax.weights.source import HEAD_LAYERS


def test_reference_stands_alone():
    tree = ast.parse(Path(reference_module.__file__).read_text())
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    ours = {name for name in imported if name and name.startswith(("vgg_jax", "jax", "flax"))}
    assert ours == {"vgg_jax.errors"}


def test_reference_does_not_believe_the_readers_order():
    file = make_file(head="dense256")
    backwards = dict(zip(file.layers, reversed([*file.layers.values()]), strict=True))
    weights = convert(file)
    assert proof_of(replace(file, layers=backwards, dense={}), weights).errors


@pytest.mark.parametrize("paths", list(PATHS))
@pytest.mark.parametrize("head", ["top", "dense256", "linear"])
def test_reference_finds_the_layers_in_any_order_of_the_file(paths, head):
    layout = "torch-pth" if paths == "torch" else "keras-h5"
    file = make_file(layout, "caffe", head, paths)
    shuffled = list(file.arrays)
    np.random.default_rng(1).shuffle(shuffled)
    reference = read_reference(
        {path: file.arrays[path] for path in shuffled},
        kernels=file.layout.kernels,
        preprocessing="caffe",
        dense_names=HEAD_LAYERS[file.head],
        pooled=head == "linear",
    )
    found = [*reference.convolutions, *reference.dense.values()]
    for (kernel, bias), layer in zip(
        found, [*file.layers.values(), *file.dense.values()], strict=True
    ):
        assert kernel is file.arrays[layer.kernel], layer.label
        assert bias is file.arrays[layer.bias], layer.label


def test_dense_layers_of_one_shape_are_taken_in_the_files_order():
    arrays = make_file().arrays
    square = {f"{name}/{role}": np.ones((32,) * n, np.float32) for name in "zay"
              for n, role in ((2, "kernel"), (1, "bias"))}  # fmt: skip
    reference = read_reference(
        {**arrays, **square}, kernels="HWIO", preprocessing="caffe", dense_names="abc"
    )
    assert [kernel for kernel, _ in reference.dense.values()] == [
        square["z/kernel"], square["a/kernel"], square["y/kernel"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda arrays: arrays.pop("block3_conv1/block3_conv1_W_1:0"), "finds 12 convolutions"),
        (lambda arrays: arrays.pop("block3_conv1/block3_conv1_b_1:0"), "2 dense layers and 14 "),
        (
            lambda arrays: arrays.update({"fc1/fc1_W_1:0": np.zeros((77, 24), np.float32)}),
            r"cannot order the dense layers: .*fc1/fc1_W_1:0 \(77, 24\)",
        ),
    ],
)
def test_arrays_of_another_network_are_refused(edit, message):
    arrays = dict(make_file(head="dense256").arrays)
    edit(arrays)
    with pytest.raises(WeightsError, match=message):
        read_reference(
            arrays, kernels="HWIO", preprocessing="caffe", dense_names=("hidden", "logits")
        )


@pytest.mark.parametrize("rows_at_once", [1 << 20, 60])
def test_first_layer_is_what_scipy_gives(monkeypatch, rows_at_once):
    monkeypatch.setattr(reference_module, "_PIECE", rows_at_once)
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    kernel, bias = rng.normal(size=(3, 3, 3, 4)).astype(np.float32), rng.normal(size=4)
    reference = Reference(
        convolutions=[(kernel, bias)],
        dense={},
        kernels="HWIO",
        channels="BGR",
        divisor=1,
        mean=(103.939, 116.779, 123.68),
        std=(1, 1, 1),
        flatten="HWC",
    )
    pixels = image.astype(np.float64)[:, :, ::-1] - (103.939, 116.779, 123.68)
    expected = [
        np.maximum(
            bias[o] + sum(correlate2d(pixels[..., i], kernel[..., i, o], "same") for i in range(3)),
            0,
        )
        for o in range(4)
    ]
    _, output = next(reference.backbone(image))
    np.testing.assert_allclose(output, np.stack(expected, axis=-1), rtol=1e-12, atol=1e-9)
    oihw = replace(reference, convolutions=[(kernel.transpose(3, 2, 0, 1), bias)], kernels="OIHW")
    np.testing.assert_array_equal(next(oihw.backbone(image))[1], output)


@pytest.mark.real_data
def test_reference_reproduces_the_recorded_activations_of_the_real_network():
    folder = real_data("vgg16_real")
    real = np.load(folder / "vgg16_blocks1-2.npz")
    arrays = {}
    for name, (kernel, bias) in keras_arrays(1.0).items():  # blocks 3 to 5 are not looked at
        arrays[f"{name}/kernel"] = real.get(f"{name}_kernel", kernel)
        arrays[f"{name}/bias"] = real.get(f"{name}_bias_q", bias)
    with gzip.open(folder / "persian_cat_input_bgr_minus_mean_224x224x3.txt.gz") as file:
        bgr = np.loadtxt(file).reshape(224, 224, 3) + np.array((103.939, 116.779, 123.68))
    image = np.rint(bgr[:, :, ::-1]).astype(np.uint8)
    reference = read_reference(arrays, kernels="HWIO", preprocessing="caffe")
    corners = json.loads((folder / "persian_cat_activation_corners.json").read_text())
    differences = {}
    for name, x in reference.backbone(image):
        recorded = corners[keras_name(name)]
        places = np.ix_(recorded["h"], recorded["w"], recorded["c"])
        differences[name] = np.abs(x[places] - recorded["values"]).max()
        if name == "pool2":
            break
    assert differences["conv1_1"] <= 0.0002, differences
    assert max(differences.values()) <= 0.005, differences
    assert len(differences) == 6


def _peak(work: Callable[[], object]) -> float:
    """Return the megabytes that NumPy held at most beyond what it held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_reference_copies_no_large_kernel():
    kernel = np.full((49 * FEATURES, 6400), 1e-3, np.float32)  # 40 MB
    bias = np.zeros(6400, np.float32)
    features = np.ones((7, 7, FEATURES))
    pairs = list(keras_arrays(WIDTH).values())
    for kernels, array in (("HWIO", kernel), ("OIHW", kernel.reshape(6400, -1))):
        reference = Reference(
            pairs, {"fc6": (array, bias)}, kernels, "BGR", 1, (0, 0, 0), (1, 1, 1), "HWC"
        )
        assert _peak(lambda reference=reference: list(reference.head(features))) < 20, kernels


def test_reference_holds_one_layer_at_a_time(monkeypatch):
    monkeypatch.setattr(reference_module, "_PIECE", 1 << 14)
    reference = read_reference(make_file().arrays, kernels="HWIO", preprocessing="caffe")
    image = draw_picture(224)
    largest = 224 * 224 * 4 * 8 / 1e6  # conv1_1 and conv1_2, one the other's input

    def work() -> None:
        for _ in reference.backbone(image):
            pass

    assert _peak(work) < 2 * largest + 1.5
