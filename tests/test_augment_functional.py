"""Functions on images, each beside what Pillow, SciPy or the standard library computes."""

from __future__ import annotations

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from vgg_jax import api
from vgg_jax.augment import functional

HALF_LEVEL = 0.5 / 255
FACTORS = [0.0, 0.3, 1.0, 1.7]


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """uint8 [H, W, 3]: a smooth picture with noise, not of the whole range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:23, :31]
    shades = np.stack((40 + 5 * x, 200 - 4 * y, 90 + 2 * x + 2 * y), -1)
    return np.clip(shades + rng.normal(0, 12, shades.shape), 20, 235).astype(np.uint8)


@pytest.fixture(scope="module")
def image(levels) -> jax.Array:
    return jnp.asarray(levels, jnp.float32) / 255


def as_floats(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32) / 255


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("change", "enhancer"),
    [
        (functional.adjust_brightness, ImageEnhance.Brightness),
        (functional.adjust_contrast, ImageEnhance.Contrast),
        (functional.adjust_saturation, ImageEnhance.Color),
        (functional.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows(change, enhancer, factor, levels, image):
    expected = as_floats(enhancer(Image.fromarray(levels)).enhance(factor))
    # Pillow rounds the picture that it blends with, and cuts off what comes out of it.
    tolerance = 1.01 * HALF_LEVEL * (2 + abs(1 - factor))
    np.testing.assert_allclose(change(image, factor), expected, atol=tolerance)


def test_greys_are_pillows(levels, image):
    expected = as_floats(ImageOps.grayscale(Image.fromarray(levels)))
    np.testing.assert_allclose(functional.grayscale(image), expected, atol=1.01 * HALF_LEVEL)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hues_turn_as_in_the_standard_library(turn, image):
    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    expected = [[turned(pixel) for pixel in row] for row in np.asarray(image, np.float64)]
    np.testing.assert_allclose(functional.adjust_hue(image, turn), expected, atol=1e-5)


def test_hues_turn_alike_after_other_changes_that_are_compiled_with_them(image):
    def changed(image, turn):
        image = functional.adjust_saturation(functional.adjust_contrast(image, 1.3), 1.2)
        return functional.adjust_hue(image, turn)

    yellow = image.at[..., 1].set(image[..., 0] * 1.001)  # red and green nearly the same
    for picture in (image, yellow):
        for turn in (-0.04, 0.03):
            plain = changed(picture, turn)
            np.testing.assert_allclose(jax.jit(changed)(picture, turn), plain, atol=1e-5)


def test_greys_have_no_hue_to_turn():
    greys = jnp.broadcast_to(jnp.linspace(0, 1, 5)[:, None, None], (5, 2, 3))
    np.testing.assert_allclose(functional.adjust_hue(greys, 0.3), greys, atol=1e-6)


def test_the_negative_is_pillows(levels, image):
    expected = as_floats(ImageOps.invert(Image.fromarray(levels)))
    np.testing.assert_allclose(functional.invert(image), expected, atol=1e-6)


@pytest.mark.parametrize("threshold", [0, 77, 128, 256])
def test_solarize_is_pillows(threshold, levels, image):
    expected = as_floats(ImageOps.solarize(Image.fromarray(levels), threshold))
    found = functional.solarize(image, (threshold - 0.5) / 255)  # between two levels
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_posterize_is_pillows(bits, levels, image):
    expected = as_floats(ImageOps.posterize(Image.fromarray(levels), bits))
    np.testing.assert_allclose(functional.posterize(image, bits), expected, atol=1e-6)


def test_autocontrast_is_pillows(levels, image):
    expected = as_floats(ImageOps.autocontrast(Image.fromarray(levels)))
    np.testing.assert_allclose(functional.autocontrast(image), expected, atol=2.01 * HALF_LEVEL)


@pytest.mark.parametrize("kind", ["smooth", "few levels", "one level", "two levels"])
def test_equalize_is_pillows(kind, levels):
    pictures = {
        "smooth": levels,
        "few levels": levels // 64 * 64,
        "one level": np.full_like(levels, 77),
        "two levels": np.where(levels > 120, 200, 10).astype(np.uint8),
    }
    expected = as_floats(ImageOps.equalize(Image.fromarray(pictures[kind])))
    found = functional.equalize(jnp.asarray(pictures[kind], jnp.float32) / 255)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_has_one_value_stays_as_it_is():
    flat = jnp.full((4, 5, 3), 0.3)
    np.testing.assert_array_equal(functional.autocontrast(flat), flat)
    np.testing.assert_allclose(functional.equalize(flat), flat, atol=HALF_LEVEL)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.5])
def test_blur_is_scipys(sigma, image):
    radius = 6
    expected = ndimage.gaussian_filter(
        np.asarray(image, np.float64), (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0)
    )
    np.testing.assert_allclose(functional.gaussian_blur(image, sigma, radius), expected, atol=2e-6)


FUNCTIONS = {
    "adjust_brightness": (1.3,),
    "adjust_contrast": (1.3,),
    "adjust_hue": (0.2,),
    "adjust_saturation": (1.3,),
    "adjust_sharpness": (1.3,),
    "autocontrast": (),
    "equalize": (),
    "gaussian_blur": (0.8, 3),
    "grayscale": (),
    "invert": (),
    "posterize": (3,),
    "solarize": (0.4,),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_packages_find_the_functions_and_can_compile_them(name, image):
    function, arguments = getattr(api, name), FUNCTIONS[name]
    assert name in api.__all__
    assert function is getattr(functional, name)
    expected = function(image, *arguments)
    assert (expected.shape, expected.dtype) == (image.shape, jnp.float32)
    compiled = jax.jit(jax.vmap(lambda x: function(x, *arguments)))(image[None])
    np.testing.assert_allclose(compiled[0], expected, atol=1e-5)


def test_the_api_names_what_it_has():
    for name in api.__all__:
        assert getattr(api, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'blur'"):
        _ = api.blur
