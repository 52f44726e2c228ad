"""Colour augmentations, blur, noise and erasing: what is drawn, and how often."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.augment import functional
from vgg_jax.augment.chain import Chain
from vgg_jax.augment.colour import (
    AutoContrast,
    ColorJitter,
    Contrast,
    Equalize,
    Grayscale,
    Hue,
    Posterize,
    Saturation,
    Solarize,
)
from vgg_jax.augment.erasing import RandomErasing
from vgg_jax.augment.pixel import GaussianBlur, Noise
from vgg_jax.augment.presets import keras, light, strong
from vgg_jax.errors import OptionError

KEYS = jax.random.split(jax.random.key(0), 400)


@pytest.fixture(scope="module")
def image() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (12, 10, 3)), jnp.float32)


def views(augmentation, image, keys=KEYS) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda key: augmentation.apply(key, image)))(keys))


def changed(found: np.ndarray, image: jax.Array) -> np.ndarray:
    return np.abs(found - np.asarray(image)).max((1, 2, 3)) > 1e-4


@pytest.mark.parametrize(
    ("augmentation", "wanted"),
    [
        (Grayscale(probability=0.3), functional.grayscale),
        (AutoContrast(probability=0.3), functional.autocontrast),
        (Equalize(probability=0.3), functional.equalize),
        (Posterize(bits=2, probability=0.3), lambda x: functional.posterize(x, 2)),
        (Solarize(threshold=0.4, probability=0.3), lambda x: functional.solarize(x, 0.4)),
    ],
)
def test_what_happens_sometimes_happens_as_often_as_asked_for(augmentation, wanted, image):
    found = views(augmentation, image)
    share = changed(found, image)
    assert 0.2 < share.mean() < 0.4
    np.testing.assert_allclose(found[share][0], wanted(image), atol=1e-5)
    np.testing.assert_array_equal(found[~share][0], image)


@pytest.mark.parametrize(
    ("augmentation", "change", "low", "high"),
    [
        (Contrast(low=0.5, high=1.5), functional.adjust_contrast, 0.5, 1.5),
        (Saturation(low=0.2, high=0.9), functional.adjust_saturation, 0.2, 0.9),
        (Hue(fraction=0.1), functional.adjust_hue, -0.1, 0.1),
    ],
)
def test_one_factor_is_drawn_from_the_whole_range(augmentation, change, low, high, image):
    found = views(augmentation, image)
    ends = [np.asarray(change(image, value)) for value in (low, high)]
    for end in ends:  # some view comes near each end of the range, and none lies beyond
        assert np.abs(found - end).max((1, 2, 3)).min() < 0.02
    spread = np.abs(ends[0] - ends[1]).max()
    assert all(np.abs(found - end).max() <= spread + 1e-5 for end in ends)


def test_jitter_draws_each_change_by_itself(image):
    alone = ColorJitter(brightness=0.5, contrast=0, saturation=0, hue=0)
    for view in views(alone, image, KEYS[:20]):
        ratio = view / np.asarray(image)
        inside = view < 1
        np.testing.assert_allclose(ratio[inside], ratio[inside][0], rtol=1e-4)
    assert changed(views(ColorJitter(), image), image).mean() > 0.95


def test_blur_draws_its_width(image):
    found = views(GaussianBlur(low=0.5, high=1.5, probability=1), image)
    sharpness = np.abs(np.diff(found, axis=2)).mean((1, 2, 3))
    ends = [functional.gaussian_blur(image, sigma, 5) for sigma in (1.5, 0.5)]
    low, high = (float(jnp.abs(jnp.diff(end, axis=1)).mean()) for end in ends)
    assert low * 0.99 <= sharpness.min() < low * 1.1
    assert high * 0.9 < sharpness.max() <= high * 1.01


def test_noise_has_its_deviation():
    grey = jnp.full((50, 60, 3), 0.5)
    found = views(Noise(deviation=0.1), grey, KEYS[:10])
    assert found.std() == pytest.approx(0.1, rel=0.02)
    assert np.abs(np.corrcoef(found.reshape(10, -1)) - np.eye(10)).max() < 0.05


def test_erasing_covers_a_rectangle_of_the_area_and_ratio_asked_for():
    white = jnp.ones((40, 40, 3))
    augmentation = RandomErasing(probability=0.5, area=(0.1, 0.2), ratio=(0.5, 2), value=0.25)
    found = views(augmentation, white)
    share = changed(found, white)
    assert 0.4 < share.mean() < 0.6
    heights, widths = [], []
    for view in found[share]:
        erased = view[..., 0] != 1
        np.testing.assert_array_equal(view[erased], 0.25)
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        assert erased.sum() == len(rows) * len(columns)
        heights.append(len(rows))
        widths.append(len(columns))
    areas, ratios = np.multiply(heights, widths) / 1600, np.divide(widths, heights)
    assert 0.08 < areas.min() < 0.12
    assert 0.18 < areas.max() < 0.23
    assert 0.4 < ratios.min() < 0.65
    assert 1.6 < ratios.max() < 2.4


def test_erasing_can_fill_with_noise():
    white = jnp.ones((40, 40, 3))
    found = views(RandomErasing(probability=1, noise=True), white, KEYS[:5])
    for view in found:
        assert len(np.unique(view)) > 20


NEUTRAL = [
    Contrast(low=1, high=1),
    Saturation(low=1, high=1),
    Hue(fraction=0),
    ColorJitter(brightness=0, contrast=0, saturation=0, hue=0),
    Grayscale(probability=0),
    AutoContrast(probability=0),
    Equalize(probability=0),
    Posterize(probability=0),
    Posterize(bits=8, probability=1),
    Solarize(probability=0),
    GaussianBlur(probability=0),
    GaussianBlur(low=0, high=0, probability=1),
    Noise(deviation=0),
    RandomErasing(probability=0),
]


@pytest.mark.parametrize("augmentation", NEUTRAL, ids=repr)
def test_neutral_options_change_nothing(augmentation, image):
    np.testing.assert_allclose(augmentation.apply(KEYS[0], image), image, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (Contrast, {"low": -1}, "contrast: option 'low' is -1, but must be a number that is at"),
        (Saturation, {"low": 2, "high": 1}, "option 'high' is 1, but must be .* at least low"),
        (Hue, {"fraction": 0.6}, r"hue: option 'fraction' is 0.6, but must be a number in \[0, 0"),
        (ColorJitter, {"saturation": -1}, "color-jitter: option 'saturation' is -1"),
        (ColorJitter, {"hue": 1}, "color-jitter: option 'hue' is 1"),
        (Grayscale, {"probability": 2}, "grayscale: option 'probability' is 2"),
        (Posterize, {"bits": 9}, r"posterize: option 'bits' is 9.*whole number in \[0, 8\]"),
        (Solarize, {"threshold": -0.1}, "solarize: option 'threshold'"),
        (GaussianBlur, {"high": 50}, "gaussian-blur: option 'high' is 50, but must be at most 10"),
        (Noise, {"deviation": 2}, "noise: option 'deviation' is 2"),
        (RandomErasing, {"area": (0.5, 0.2)}, r"option 'area' is \[0.5, 0.2\].*smaller one first"),
        (RandomErasing, {"area": (0.5, 1.2)}, "above 0 and at most 1"),
        (RandomErasing, {"ratio": (0.0, 1.2)}, "option 'ratio'.* above 0"),
        (RandomErasing, {"value": 255}, "option 'value' is 255"),
    ],
)
def test_options_out_of_range_are_refused(factory, options, message):
    with pytest.raises(OptionError, match=message):
        factory(**options)


@pytest.mark.parametrize("preset", [keras, light, strong])
def test_presets_are_chains_of_pictures_that_differ(preset):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    chain = Chain(preset())
    found = np.asarray(jax.jit(chain.apply)(KEYS[:4], pictures))
    assert found.shape == pictures.shape
    assert ((found >= 0) & (found <= 1)).all()
    assert changed(found, jnp.asarray(pictures / 255)).all()
