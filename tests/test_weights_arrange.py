"""The one form that the arrays of every weight file are converted into."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from proof_files import convert, make_file

from vgg_jax.errors import WeightsError
from vgg_jax.weights.arrange import arrange_weights
from vgg_jax.weights.source import PREPROCESSINGS

TO_HWIO = "axes from OIHW to HWIO"
TO_RGB = "input channels from BGR to RGB"
TRANSPOSED = "transposed to [in, out]"
BY_PLACE = "inputs from (C, H, W) to (H, W, C)"


@pytest.mark.parametrize("head", ["", "top", "dense256", "linear"])
@pytest.mark.parametrize(
    ("layout", "preprocessing"), [("keras-h5", "caffe"), ("torch-pth", "torch"), ("keras", "tf")]
)
def test_every_layout_becomes_the_same_form(layout, preprocessing, head):
    file = make_file(layout, preprocessing, head)
    found, expected = arrange_weights(file), convert(file)
    for part in ("layers", "top", "head"):
        pairs, wanted = getattr(found, part), getattr(expected, part)
        assert list(pairs) == list(wanted)
        for name, pair in pairs.items():
            for array, wanted_array in zip(pair, wanted[name], strict=True):
                assert array.dtype == np.float32
                assert array.flags.c_contiguous
                np.testing.assert_array_equal(array, wanted_array, err_msg=name)
    assert (found.mean, found.scale) == (
        PREPROCESSINGS[preprocessing].mean,
        PREPROCESSINGS[preprocessing].scale,
    )
    assert found.parameters == sum(array.size for array in file.arrays.values())


def test_fc6_of_torch_takes_the_features_by_place():
    file = make_file("torch-pth", "torch", "top", "torch")
    source = file.arrays[file.dense["fc6"].kernel]  # [units, inputs], inputs in the order C, H, W
    kernel = arrange_weights(file).top["fc6"][0]  # [inputs, units], inputs in the order H, W, C
    units, inputs = source.shape
    channels, side = inputs // 4, 2
    for unit in range(units):
        for y in range(side):
            for x in range(side):
                for channel in range(channels):
                    there = channel * side * side + y * side + x
                    here = (y * side + x) * channels + channel
                    assert kernel[here, unit] == source[unit, there]


def test_the_head_that_averages_is_only_transposed():
    file = make_file("torch-pth", "torch", "linear", "torch")
    source = file.arrays[file.dense["logits"].kernel]
    np.testing.assert_array_equal(arrange_weights(file).head["logits"][0], source.T)


def test_the_table_says_what_was_done_to_each_array():
    def done(*arguments: str, **options: str) -> dict[str, str]:
        table = arrange_weights(make_file(*arguments, **options)).table  # pyright: ignore
        return {row.parameter: row.done for row in table}

    keras = done("keras-h5", "caffe", "top")
    assert keras.pop("conv1_1/kernel") == TO_RGB
    assert set(keras.values()) == {"as it is"}
    assert len(keras) == 2 * 16 - 1
    torch = done("torch-pth", "torch", "top", dtype="float16")
    assert torch["conv1_1/kernel"] == f"{TO_HWIO}; float16 to float32"
    assert torch["fc6/kernel"] == f"{TRANSPOSED}; {BY_PLACE}; float16 to float32"
    assert torch["fc7/kernel"] == f"{TRANSPOSED}; float16 to float32"
    assert torch["fc8/bias"] == "float16 to float32"
    assert done("torch-pth", "torch", "dense256")["hidden/kernel"] == f"{TRANSPOSED}; {BY_PLACE}"
    assert done("torch-pth", "torch", "linear")["logits/kernel"] == TRANSPOSED
    assert done("torch-pth", "caffe")["conv1_1/kernel"] == f"{TO_HWIO}; {TO_RGB}"


def test_what_needs_no_change_is_not_copied():
    file = make_file()
    layers = arrange_weights(file).layers
    assert np.shares_memory(layers["conv3_1"][0], file.arrays[file.layers["conv3_1"].kernel])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_as_float32_are_counted_and_named(value):
    file = make_file(head="linear", dtype="float64")
    arrays = {path: array.copy() for path, array in file.arrays.items()}
    arrays[file.layers["conv3_2"].kernel][0, 0, 0, :2] = value
    with pytest.raises(WeightsError, match=r"block3_conv2: kernel has 2 values that are not fin"):
        arrange_weights(dataclasses.replace(file, arrays=arrays))
    arrays[file.dense["logits"].bias][1] = value
    with pytest.raises(WeightsError, match=r"2 mismatches:(?s:.*)bias has 1 values"):
        arrange_weights(dataclasses.replace(file, arrays=arrays))
