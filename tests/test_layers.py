"""Names and shapes of VGG16's layers."""

from __future__ import annotations

import pytest

from vgg_jax.errors import UnknownLayerError, WeightsError
from vgg_jax.layers import CONVOLUTIONS, LAYERS, keras_name, kernel_shapes, resolve_layer


def test_there_are_thirteen_convolutions_and_five_pools_in_order():
    assert len(CONVOLUTIONS) == 13
    assert len(LAYERS) == 18
    assert LAYERS[:3] == ("conv1_1", "conv1_2", "pool1")
    assert LAYERS[-4:] == ("conv5_1", "conv5_2", "conv5_3", "pool5")


@pytest.mark.parametrize(
    ("typed", "layer"),
    [
        ("conv5_1", "conv5_1"),
        ("block5_conv1", "conv5_1"),
        ("features.24", "conv5_1"),
        ("features.0", "conv1_1"),
        ("features.30", "pool5"),
        ("block3_pool", "pool3"),
        ("head", "head"),
    ],
)
def test_a_layer_is_known_by_three_names(typed, layer):
    assert resolve_layer(typed) == layer


def test_an_unknown_layer_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownLayerError, match=r"'conv5_4'.*Did you mean 'conv5_"):
        resolve_layer("conv5_4")


def test_keras_names_cover_all_layers():
    assert [keras_name(layer) for layer in LAYERS[:3]] == [
        "block1_conv1",
        "block1_conv2",
        "block1_pool",
    ]


def test_parameters_of_the_published_network():
    shapes = kernel_shapes(1)
    count = sum(h * w * i * o + o for h, w, i, o in shapes.values())
    assert count == 14_714_688  # Keras' VGG16 without top


@pytest.mark.parametrize("width", [0, -1, 0.01, 1 / 3, float("nan"), float("inf")])
def test_a_width_without_whole_channels_is_refused(width):
    with pytest.raises(WeightsError, match="multiple of 1/64"):
        kernel_shapes(width)
