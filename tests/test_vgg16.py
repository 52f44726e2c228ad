"""The backbone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax.errors import UnknownLayerError
from vgg_jax.layers import LAYERS
from vgg_jax.model.vgg16 import VGG16, max_pool_2x2


@pytest.fixture(scope="module")
def backbone() -> VGG16:
    return VGG16.random(1 / 16, seed=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)


def test_output_shapes(backbone, images):
    shapes = {name: out.shape for name, out in backbone.walk(backbone.normalise(images))}
    assert tuple(shapes) == LAYERS
    assert shapes["conv1_1"] == (2, 64, 48, 4)
    assert shapes["pool3"] == (2, 8, 6, 16)
    assert shapes["pool5"] == (2, 2, 1, 32)


@pytest.mark.parametrize("cut", ["conv1_2", "pool2", "conv5_1"])
def test_a_network_cut_in_two_gives_the_same(backbone, images, cut):
    x = backbone.normalise(images)
    halves = backbone.run(backbone.run(x, stop=cut), start=cut)
    np.testing.assert_array_equal(halves, backbone(x))


def test_an_unknown_layer_is_refused(backbone):
    with pytest.raises(UnknownLayerError, match="'block5_conv1'"):
        backbone.run(jnp.zeros((1, 32, 32, 3)), stop="block5_conv1")


def test_both_image_types_normalise_to_the_same(backbone, images):
    as_bytes = backbone.normalise(images)
    as_floats = backbone.normalise(images.astype(np.float32) / 255)
    np.testing.assert_allclose(as_bytes, as_floats, atol=1e-4)
    # Keras' preprocess_input(mode="caffe") of a black pixel, RGB
    black = backbone.normalise(np.zeros((1, 1, 1, 3), np.uint8))[0, 0, 0]
    np.testing.assert_allclose(black, [-123.68, -116.779, -103.939], rtol=1e-6)


def test_scale_is_applied_after_the_mean():
    backbone = VGG16.random(1 / 64, seed=0)
    backbone.mean, backbone.scale = (10.0, 20.0, 30.0), (1.0, 2.0, 3.0)
    white = backbone.normalise(np.full((1, 1, 1, 3), 255, np.uint8))[0, 0, 0]
    np.testing.assert_allclose(white, [245, 470, 675])


def test_pooling_agrees_with_flax_also_at_odd_sizes():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    np.testing.assert_array_equal(max_pool_2x2(x), nnx.max_pool(x, (2, 2), (2, 2)))


@pytest.mark.parametrize("image_size", [32, 95, 224])
def test_the_shape_of_the_output_is_known_beforehand(backbone, image_size):
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    output = nnx.eval_shape(lambda backbone, x: backbone(x), backbone, images)
    assert output.shape[1:] == backbone.output_shape(image_size)


def test_from_layers_gives_the_same_network(backbone, images):
    layers = {
        name: (np.asarray(getattr(backbone, name).kernel), np.asarray(getattr(backbone, name).bias))
        for name in LAYERS
        if name.startswith("conv")
    }
    copy = VGG16.from_layers(layers, mean=backbone.mean, scale=backbone.scale)
    assert copy.width == 1 / 16
    x = backbone.normalise(images)
    other = VGG16.random(1 / 16, seed=1)  # which shares no parameters with the first
    assert not np.array_equal(other(x), copy(x))
    np.testing.assert_array_equal(copy(x), backbone(x))
