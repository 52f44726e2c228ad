"""A right conversion is proven; a wrong one, and a check that could not tell, are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import nn
from proof_files import (
    FEATURES,
    NUMBERED,
    PUBLISHED,
    convert,
    make_file,
    network,
    proof_of,
    with_kernel,
    with_layer,
)

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS, LAYERS
from vgg_jax.model.vgg16 import max_pool_2x2
from vgg_jax.weights.proof import SEED, TOLERANCE, Forward, draw_picture
from vgg_jax.weights.reference import read_reference
from vgg_jax.weights.source import HEAD_LAYERS, ModelFacts, SourceWeights, WeightFile

CONTROLS = [
    "swapped channels",
    "wrong mean",
    "transposed kernels",
    "VALID for SAME padding",
    "missing ReLU",
]
HEAD_CONTROLS = ["flattened in the other order", "missing dense ReLU"]


@pytest.mark.parametrize(
    ("layout", "preprocessing", "head", "paths"),
    [
        ("keras-h5", "caffe", "", "published"),
        ("keras-h5", "caffe", "top", "published"),
        ("keras-h5", "rescale", "dense256", "published"),
        ("keras-model-h5", "tf", "linear", "nested"),
        ("keras-model-h5", "caffe", "top", "nested"),
        ("keras-weights-h5", "rescale", "", "numbered"),
        ("keras", "caffe", "dense256", "numbered"),
        ("torch-safetensors", "torch", "", "torch"),
        ("torch-pth", "torch", "top", "torch"),
        ("torch-pth", "caffe", "dense256", "torch"),
        ("torch-safetensors", "torch", "linear", "torch"),
    ],
)
def test_a_right_conversion_is_proven(layout, preprocessing, head, paths):
    file = make_file(layout, preprocessing, head, paths)
    proof = proof_of(file)
    assert list(proof.errors) == [*LAYERS, *HEAD_LAYERS[file.head]]
    assert 0 < proof.largest.error <= TOLERANCE
    assert list(proof.controls) == CONTROLS + (HEAD_CONTROLS if head in ("top", "dense256") else [])
    assert all(error > 100 * TOLERANCE for _, error in proof.controls.values())
    assert proof.controls["missing ReLU"].layer == "conv3_1"
    assert (proof.source, proof.size, proof.sha256) == ("narrow.h5", 1234, "5" * 64)
    assert (proof.image_side, proof.preprocessing) == (64 if head else 48, preprocessing)
    assert proof.versions == {"numpy": np.__version__}


@pytest.mark.parametrize("head", ["", "dense256"])
@pytest.mark.parametrize(("layout", "paths"), [("keras-h5", "published"), ("torch-pth", "torch")])
def test_one_changed_value_is_noticed_though_no_picture_shows_it(layout, paths, head):
    file = make_file(layout, head=head, paths=paths)
    converted = convert(file)
    name = "hidden" if head else "conv4_2"

    def change_one(kernel: np.ndarray) -> np.ndarray:
        changed = kernel.copy()
        middle = np.argsort(kernel, axis=None)[kernel.size // 2]  # neither least nor greatest
        changed.flat[middle] = np.nextafter(kernel.flat[middle], np.float32(1))
        return changed

    with pytest.raises(WeightsError, match=f"{name}/kernel does not hold the values"):
        proof_of(file, with_kernel(converted, name, change_one))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_files_of_other_precision_are_proven(dtype):
    assert proof_of(make_file(dtype=dtype)).rows[0].source_dtype == dtype


def swap_files_layers(file: WeightFile, order: Sequence[str]) -> WeightFile:
    """Let the converter take the file's convolutions in another order, its books being in order."""
    by_label = {layer.label: layer for layer in file.layers.values()}
    return replace(file, layers=dict(zip(CONVOLUTIONS, map(by_label.get, order), strict=True)))


def swap_biases(file: WeightFile) -> WeightFile:
    a, b = file.layers["conv4_2"], file.layers["conv4_3"]
    swapped = {"conv4_2": replace(a, bias=b.bias), "conv4_3": replace(b, bias=a.bias)}
    return replace(file, layers={**file.layers, **swapped})


@dataclass(frozen=True)
class Wrong:
    """A conversion gone wrong, and the layer where that must be noticed."""

    name: str
    layer: str
    file: WeightFile
    read: Callable[[WeightFile], WeightFile] = lambda file: file
    spoil: Callable[[SourceWeights], SourceWeights] = lambda weights: weights


def _wrong_conversions() -> list[Wrong]:
    caffe, tf = make_file(), make_file(preprocessing="tf")
    torch = make_file("torch-pth", "torch", "dense256", "torch")
    top = make_file(head="top")
    swapped = [*PUBLISHED]
    swapped[5], swapped[6] = swapped[6], swapped[5]
    bgr = tuple(reversed(caffe.preprocessing.mean))
    numbered = make_file("keras-weights-h5", paths="numbered")
    return [
        Wrong("same-shaped layers", "conv3_2", caffe, lambda f: swap_files_layers(f, swapped)),
        Wrong(
            "numbers sorted as text",
            "conv4_3",
            numbered,
            lambda f: swap_files_layers(f, [*NUMBERED[:9], *sorted(NUMBERED[9:])]),
        ),
        Wrong("biases", "conv4_2", caffe, swap_biases),
        Wrong(
            "BGR as it was",
            "conv1_1",
            caffe,
            spoil=lambda w: with_kernel(w, "conv1_1", lambda k: k[:, :, ::-1]),
        ),
        Wrong("mean in the order BGR", "conv1_1", caffe, spoil=lambda w: replace(w, mean=bgr)),
        Wrong("no mean", "conv1_1", tf, spoil=lambda w: replace(w, mean=(0.0, 0.0, 0.0))),
        Wrong("no scale", "conv1_1", tf, spoil=lambda w: replace(w, scale=(1.0, 1.0, 1.0))),
        Wrong(
            "scale in the order BGR",
            "conv1_1",
            torch,
            spoil=lambda w: replace(w, scale=tuple(reversed(w.scale))),
        ),
        Wrong(
            "height and width",
            "conv2_2",
            caffe,
            spoil=lambda w: with_kernel(w, "conv2_2", lambda k: k.swapaxes(0, 1)),
        ),
        Wrong(
            "upside down",
            "conv5_3",
            caffe,
            spoil=lambda w: with_kernel(w, "conv5_3", lambda k: k[::-1]),
        ),
        Wrong(
            "inputs for outputs",
            "conv2_2",
            caffe,
            spoil=lambda w: with_kernel(w, "conv2_2", lambda k: k.swapaxes(2, 3)),
        ),
        Wrong(
            "reshaped, not transposed",
            "conv4_1",
            torch,
            spoil=lambda w: with_kernel(
                w, "conv4_1", lambda k: k.transpose(3, 2, 0, 1).reshape(k.shape)
            ),
        ),
        Wrong(
            "order of flattening",
            "hidden",
            torch,
            spoil=lambda w: with_kernel(
                w,
                "hidden",
                lambda k: (
                    k.reshape(2, 2, FEATURES, -1).transpose(2, 0, 1, 3).reshape(-1, k.shape[1])
                ),
            ),
        ),
        Wrong(
            "square dense kernel",
            "fc7",
            top,
            spoil=lambda w: with_kernel(w, "fc7", np.transpose),
        ),
        Wrong(
            "values in other places",
            "conv3_3",
            caffe,
            spoil=lambda w: with_kernel(
                w, "conv3_3", lambda k: np.roll(k.ravel(), 1).reshape(k.shape)
            ),
        ),
    ]


@pytest.mark.parametrize("wrong", _wrong_conversions(), ids=lambda wrong: wrong.name)
def test_a_wrong_conversion_is_refused(wrong: Wrong):
    weights = wrong.spoil(convert(wrong.read(wrong.file)))
    with pytest.raises(WeightsError, match=rf"was not converted rightly: {wrong.layer}.* by .* of"):
        proof_of(wrong.file, weights)


def test_a_network_without_relu_in_its_head_is_refused():
    file = make_file(head="top")
    weights = convert(file)
    with pytest.raises(WeightsError, match="converted rightly: fc6"):
        proof_of(file, weights, network(weights, dense_relu=False))


@pytest.mark.parametrize("fault", ["no ReLU", "VALID", "mean for max"])
def test_a_network_with_a_fault_is_refused(fault):
    file = make_file()
    weights = convert(file)

    def forward(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        x = (jnp.asarray(images) - jnp.array(weights.mean)) * jnp.array(weights.scale)
        for name in LAYERS:
            if name.startswith("conv"):
                kernel, bias = map(jnp.asarray, weights.layers[name])
                padding = "VALID" if fault == "VALID" and name == "conv2_1" else "SAME"
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = x + bias
                x = x if fault == "no ReLU" and name == "conv2_1" else nn.relu(x)
            elif fault == "mean for max" and name == "pool1":
                height, width = x.shape[1] // 2, x.shape[2] // 2
                x = x.reshape(1, height, 2, width, 2, -1).mean((2, 4))
            else:
                x = max_pool_2x2(x)
            yield name, np.asarray(x)

    layer = "pool1" if fault == "mean for max" else "conv2_1"
    with pytest.raises(WeightsError, match=layer):
        proof_of(file, weights, forward)


@pytest.mark.parametrize("count", [0, 17, 19])
def test_a_network_of_more_or_fewer_layers_is_refused(count):
    file = make_file()
    right = network(convert(file))

    def forward(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        layers = list(right(images))
        return iter([*layers, layers[-1]][:count])

    with pytest.raises(WeightsError, match=f"a network of {count} layers, not 18"):
        proof_of(file, forward=forward)


def test_outputs_that_are_not_finite_are_refused():
    file = make_file()
    right = network(convert(file))

    def forward(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for name, x in right(images):
            x = x.copy()
            if name == "conv2_2":
                x[0, 5, 5, 0] = np.nan
            yield name, x

    with pytest.raises(WeightsError, match=r"conv2_2 differs .* by nan"):
        proof_of(file, forward=forward)


def changed(file: WeightFile, change: Callable[[str, np.ndarray], np.ndarray]) -> WeightFile:
    return replace(file, arrays={path: change(path, a) for path, a in file.arrays.items()})


def test_a_dead_network_is_refused():
    zeros = changed(make_file(), lambda path, a: np.zeros_like(a))
    with pytest.raises(WeightsError, match=r"conv1_1 gives nothing but zeros.*\n.*trained"):
        proof_of(zeros)
    constant = changed(make_file(), lambda path, a: a * 0 + (a.ndim == 1))
    with pytest.raises(WeightsError, match="did not fail: swapped channels, wrong mean, transp"):
        proof_of(constant)


@pytest.mark.parametrize(
    ("control", "blind"),
    [
        ("transposed kernels", lambda a: (a + a.swapaxes(0, 1)) / 2),
        ("swapped channels", lambda a: a * 0 + a.mean(2, keepdims=True)),
    ],
)
def test_a_control_that_does_not_fail_stops_the_conversion(control, blind):
    def change(path: str, array: np.ndarray) -> np.ndarray:
        first = path.startswith("block1_conv1") or control != "swapped channels"
        return blind(array).astype(np.float32) if array.ndim == 4 and first else array

    file = changed(make_file(preprocessing="tf"), change)
    with pytest.raises(WeightsError, match=rf"cannot tell .* did not fail: .*{control}"):
        proof_of(file)


def test_picture_has_three_different_channels_and_never_changes():
    image = draw_picture(64)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    np.testing.assert_array_equal(image, draw_picture(64, SEED))
    channels = image.reshape(-1, 3).T.astype(float)
    correlations = np.corrcoef(channels)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.9
    assert channels.std(axis=1).min() > 20


def replay(file: WeightFile) -> Forward:
    """Return a network that gives what the reference gives; it has nothing to compile."""
    reference = read_reference(
        file.arrays,
        kernels=file.layout.kernels,
        preprocessing=file.preprocessing.name,
        dense_names=HEAD_LAYERS[file.head],
        pooled=file.head == "linear",
    )

    def forward(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        x = images[0]
        for name, x in reference.backbone(images[0]):
            yield name, x[None].astype(np.float32)
        for name, logits in reference.head(x):
            yield name, logits[None].astype(np.float32)

    return forward


@pytest.mark.parametrize(
    ("head", "declared", "side"),
    [("", 150, 48), ("linear", None, 64), ("linear", 96, 96), ("linear", 9999, 224),
     ("dense256", 70, 64)],
)  # fmt: skip
def test_picture_is_of_a_size_that_the_head_can_take(head, declared, side):
    file = make_file(preprocessing="tf", head=head)
    file = replace(file, facts=ModelFacts(image_size=declared))
    assert proof_of(file, forward=replay(file)).image_side == side


def test_an_absurd_picture_size_is_refused():
    file = make_file(head="dense256")
    wide = np.zeros((40 * 40 * FEATURES, 24), np.float32)
    arrays = {**file.arrays, "fc1/fc1_W_1:0": wide}
    weights = with_layer(convert(file), "hidden", (wide, file.arrays["fc1/fc1_b_1:0"]))
    with pytest.raises(WeightsError, match="images of 1280 x 1280 pixels, but at most 1024"):
        proof_of(replace(file, arrays=arrays), weights)
