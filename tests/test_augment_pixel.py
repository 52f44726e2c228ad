"""Pixel augmentations: Keras' semantics, range and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.augment.pixel import Brightness, ChannelShift
from vgg_jax.errors import OptionError

KEYS = jax.random.split(jax.random.key(0), 500)


@pytest.fixture
def image():
    return jnp.asarray(np.random.default_rng(0).random((6, 5, 3)), jnp.float32)


def views(augmentation, image):
    return np.asarray(jax.vmap(lambda key: augmentation.apply(key, image))(KEYS))


def test_brightness_multiplies_all_values_by_one_factor(image):
    for view in views(Brightness(low=0.5, high=1.0), image):
        ratio = view / np.asarray(image)
        np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-5)


def test_brightness_factors_fill_the_range():
    factors = views(Brightness(low=0.5, high=1.5), jnp.full((1, 1, 3), 0.5)).max((1, 2, 3)) / 0.5
    assert 0.5 <= factors.min() < 0.52
    assert 1.48 < factors.max() <= 1.5


def test_brightness_stops_at_white_and_keeps_black():
    picture = jnp.asarray([[[0.0, 0.9, 1.0]]])
    for view in views(Brightness(low=2, high=3), picture):
        np.testing.assert_array_equal(view, [[[0.0, 1.0, 1.0]]])


def test_channel_shift_adds_one_offset_within_the_pictures_own_range(image):
    low, high = float(image.min()), float(image.max())
    shifts = []
    for view in views(ChannelShift(fraction=0.3), image):
        inside = (view > low) & (view < high)
        offsets = (view - np.asarray(image))[inside]
        np.testing.assert_allclose(offsets, offsets[0], atol=1e-6)
        np.testing.assert_allclose(view, np.clip(image + offsets[0], low, high), atol=1e-6)
        shifts.append(offsets[0])
    assert -0.3 <= min(shifts) < -0.28
    assert 0.28 < max(shifts) <= 0.3


@pytest.mark.parametrize("neutral", [Brightness(low=1, high=1), ChannelShift(fraction=0)])
def test_neutral_options_change_nothing(neutral, image):
    np.testing.assert_array_equal(neutral.apply(KEYS[0], image), image)


@pytest.mark.parametrize("augmentation", [Brightness(low=0, high=5), ChannelShift(fraction=1)])
def test_shape_type_and_range_are_kept(augmentation, image):
    results = views(augmentation, image)
    assert results.shape == (len(KEYS), *image.shape)
    assert results.dtype == np.float32
    assert results.min() >= 0
    assert results.max() <= 1


@pytest.mark.parametrize(
    ("factory", "options", "named"),
    [
        (Brightness, {"low": -0.1}, "low"),
        (Brightness, {"low": 1.5, "high": 1.2}, "high"),
        (Brightness, {"low": 2}, "high"),
        (Brightness, {"high": float("inf")}, "high"),
        (Brightness, {"low": float("nan")}, "low"),
        (ChannelShift, {"fraction": -0.1}, "fraction"),
        (ChannelShift, {"fraction": 20}, "fraction"),
    ],
)
def test_options_out_of_range_are_refused(factory, options, named):
    with pytest.raises(OptionError, match=f"option '{named}' is .* but must be a number"):
        factory(**options)
