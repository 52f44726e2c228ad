"""Chains: one resampling that agrees with SciPy's, the order as written, and reproducible draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vgg_jax import plugins
from vgg_jax.api import (
    Augmentation,
    BatchAugmentation,
    GeometricAugmentation,
    HostAugmentation,
    PixelAugmentation,
)
from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.augment.geometric import (
    HeightShift,
    HorizontalFlip,
    Rotation,
    Shear,
    VerticalFlip,
    WidthShift,
    Zoom,
)
from vgg_jax.augment.pixel import Brightness, ChannelShift
from vgg_jax.augment.presets import keras
from vgg_jax.augment.warp import FILLS, warp
from vgg_jax.errors import OptionError, PluginError, UnknownPluginError
from vgg_jax.plugin_choices import PluginChoice, parse_choice

SCIPY_MODES = {
    "nearest": "nearest",
    "constant": "grid-constant",
    "reflect": "reflect",
    "wrap": "grid-wrap",
}
ROTATE = ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
UNROTATE = ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
STRETCH = ((1.7, 0.2, 1.4), (-0.3, 0.6, -2.3), (0.0, 0.0, 1.0))
FAR = ((5.0, 0.0, 31.0), (0.0, 5.0, -47.0), (0.0, 0.0, 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(GeometricAugmentation):
    """One matrix, always."""

    rows: tuple[tuple[float, ...], ...]

    def matrix(self, key, height, width):
        return jnp.asarray(self.rows, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert(PixelAugmentation):
    """The negative."""

    def apply(self, key, image):
        return 1 - image


class Returns(PixelAugmentation):
    """Whatever it was told to return."""

    def __init__(self, change):
        self.change = change

    def apply(self, key, image):
        return self.change(image)


class Host(HostAugmentation):
    def apply(self, rng, image):
        return image


class Batch(BatchAugmentation):
    def apply(self, key, images, targets, valid):
        return images, targets


class NoKind(Augmentation):
    pass


apply = jax.jit(Chain.apply, static_argnums=0)
warped = jax.jit(warp, static_argnums=(2, 3))


def keys_for(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 12, 17, 3), dtype=np.uint8)


EVERYTHING = Chain((*keras(), Brightness(), VerticalFlip(), ChannelShift()), fill="reflect")


def scipy_warp(image, matrix, mode, fill_value):
    height, width, _ = image.shape
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    whole = centre @ np.asarray(matrix, np.float64) @ np.linalg.inv(centre)
    rows_first = whole[np.ix_([1, 0, 2], [1, 0, 2])]
    return np.stack(
        [
            scipy.ndimage.affine_transform(
                channel, rows_first[:2], order=1, mode=mode, cval=fill_value
            )
            for channel in np.moveaxis(image.astype(np.float64), -1, 0)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [(12, 17), (1, 6), (6, 1), (2, 2)])
def test_one_composed_warp_agrees_with_scipy(fill, size):
    image = np.random.default_rng(1).random((*size, 3)).astype(np.float32)
    chain = Chain((Fixed(rows=ROTATE), Fixed(rows=STRETCH)), fill=fill, fill_value=0.3)
    result = apply(chain, keys_for(1), jnp.asarray(image)[None])[0]
    expected = scipy_warp(image, np.array(ROTATE) @ np.array(STRETCH), SCIPY_MODES[fill], 0.3)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("fill", FILLS)
def test_places_far_outside_agree_with_scipy(fill):
    image = np.random.default_rng(1).random((7, 8, 3)).astype(np.float32)
    result = warped(jnp.asarray(image), jnp.asarray(FAR), fill, 0.3)
    expected = scipy_warp(image, FAR, SCIPY_MODES[fill], 0.3)
    np.testing.assert_allclose(result, expected, atol=5e-5)


def test_neighbours_are_one_product_and_one_resampling(pictures):
    composed = apply(Chain((Fixed(rows=ROTATE), Fixed(rows=UNROTATE))), keys_for(5), pictures)
    np.testing.assert_allclose(composed, pictures / 255, atol=1e-5)

    apart = Chain((Fixed(rows=ROTATE), Brightness(low=1, high=1), Fixed(rows=UNROTATE)))
    assert np.abs(apply(apart, keys_for(5), pictures) - pictures / 255).max() > 0.1


def test_a_chain_a_b_is_a_times_b(pictures):
    first, second = np.array(ROTATE), np.array(STRETCH)
    chained = apply(Chain((Fixed(rows=ROTATE), Fixed(rows=STRETCH))), keys_for(5), pictures)
    for product, agrees in ((first @ second, True), (second @ first, False)):
        rows = tuple(map(tuple, product.tolist()))
        result = apply(Chain((Fixed(rows=rows),)), keys_for(5), pictures)
        assert np.allclose(result, chained, atol=1e-5) == agrees


def test_pixel_and_geometric_ones_alternate_as_written(pictures):
    shift = Fixed(rows=((1, 0, 4), (0, 1, 0), (0, 0, 1)))
    inverted_first = apply(Chain((Invert(), shift), fill="constant"), keys_for(5), pictures)
    inverted_last = apply(Chain((shift, Invert()), fill="constant"), keys_for(5), pictures)
    expected = 1 - pictures[:, :, 4:] / 255
    np.testing.assert_allclose(inverted_first[:, :, :-4], expected, atol=1e-6)
    np.testing.assert_allclose(inverted_last[:, :, :-4], expected, atol=1e-6)
    assert np.all(inverted_first[:, :, -4:] == 0)
    assert np.all(inverted_last[:, :, -4:] == 1)


def test_projective_maps_divide_by_depth():
    image = np.random.default_rng(1).random((9, 9, 1)).astype(np.float32)
    matrix = jnp.asarray(((1.0, 0, 0), (0, 1, 0), (0.1, 0, 1)))
    result = warped(jnp.asarray(image), matrix, "constant", 0.0)
    for column in range(1, 9):  # x = column - 4 comes from x / (1 + x / 10)
        x = column - 4
        np.testing.assert_allclose(
            result[:, column, 0],
            scipy_line(image[..., 0], 4 + np.arange(-4, 5) / (1 + x / 10), 4 + x / (1 + x / 10)),
            atol=1e-5,
        )


def scipy_line(image, rows, column):
    places = np.stack([rows, np.full(rows.shape, column)])
    return scipy.ndimage.map_coordinates(image, places, order=1, mode="grid-constant")


def test_a_horizon_inside_the_picture_gives_finite_values(pictures):
    horizon = Fixed(rows=((1, 0, 0), (0, 1, 0), (0.5, 0, 0)))
    for fill in FILLS:
        result = apply(Chain((horizon,), fill=fill), keys_for(5), pictures)
        assert np.all(np.isfinite(result)), fill


def test_images_come_back_as_unit_floats(pictures):
    for images in (pictures, jnp.asarray(pictures, jnp.float32) / 255):
        result = apply(EVERYTHING, keys_for(5), images)
        assert result.shape == pictures.shape
        assert result.dtype == jnp.float32
        assert result.min() >= 0
        assert result.max() <= 1
    white = apply(Chain(keras()), keys_for(5), np.full_like(pictures, 255))
    np.testing.assert_allclose(white, 1, atol=1e-6)
    assert white.max() <= 1


@pytest.mark.parametrize("fill", FILLS)
def test_strength_zero_gives_the_image_back(fill, pictures):
    chain = Chain(
        (
            Rotation(degrees=0),
            WidthShift(fraction=0),
            HeightShift(fraction=0),
            Shear(degrees=0),
            Zoom(fraction=0),
            HorizontalFlip(probability=0),
            VerticalFlip(probability=0),
            Brightness(low=1, high=1),
            ChannelShift(fraction=0),
            Rotation(degrees=0),
        ),
        fill=fill,
        fill_value=0.5,
    )
    images = jnp.asarray(pictures, jnp.float32) / 255
    np.testing.assert_array_equal(apply(chain, keys_for(5), images), images)
    np.testing.assert_allclose(apply(chain, keys_for(5), pictures), images, atol=1e-7)


def test_flips_are_exact(pictures):
    both = Chain((HorizontalFlip(probability=1), VerticalFlip(probability=1)))
    images = jnp.asarray(pictures, jnp.float32) / 255
    np.testing.assert_array_equal(apply(both, keys_for(5), images), images[:, ::-1, ::-1])


def test_an_empty_chain_only_converts(pictures):
    chain = Chain()
    assert not chain.on_device
    np.testing.assert_allclose(apply(chain, keys_for(5), pictures), pictures / 255, atol=1e-7)


def test_the_key_decides(pictures):
    once, again = (apply(EVERYTHING, keys_for(5), pictures) for _ in range(2))
    other = apply(EVERYTHING, keys_for(5, seed=1), pictures)
    np.testing.assert_array_equal(once, again)
    assert all(np.abs(a - b).max() > 0.05 for a, b in zip(once, other, strict=True))


def test_each_place_in_the_chain_draws_from_its_own_key(pictures):
    (key,) = keys_for(1)
    first, last = (WidthShift().matrix(jax.random.fold_in(key, i), 12, 17) for i in (0, 2))
    assert not np.array_equal(first, last)
    image = jnp.asarray(pictures[0], jnp.float32) / 255
    expected = warped(1 - warped(image, first, "nearest", 0), last, "nearest", 0)
    result = apply(Chain((WidthShift(), Invert(), WidthShift())), key[None], image[None])[0]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_jit_equals_eager(pictures):
    eager = EVERYTHING.apply(keys_for(5), jnp.asarray(pictures))
    np.testing.assert_allclose(apply(EVERYTHING, keys_for(5), pictures), eager, atol=1e-5)


def test_slot_and_batch_size_do_not_matter(pictures):
    keys = keys_for(5)
    whole = apply(EVERYTHING, keys, pictures)
    order = np.array([3, 1, 4, 0, 2])
    moved = apply(EVERYTHING, keys[order], pictures[order])
    np.testing.assert_array_equal(moved, whole[order])
    for stop in (1, 3):
        part = apply(EVERYTHING, keys[:stop], pictures[:stop])
        np.testing.assert_array_equal(part, whole[:stop])


def test_equal_chains_compile_once(pictures):
    traced = []

    def trace(chain, keys, images):
        traced.append(chain)
        return chain.apply(keys, images)

    jitted = jax.jit(trace, static_argnums=0)
    choices = [parse_choice("keras")]
    for seed in range(3):
        jitted(build_chain(choices, fill="wrap"), keys_for(5, seed), pictures)
    assert len(traced) == 1
    jitted(build_chain(choices, fill="nearest"), keys_for(5), pictures)
    assert len(traced) == 2


def test_chains_are_built_from_what_a_user_types():
    texts = ["rotation:degrees=10", "vgg-jax/brightness:low=0.5,high=2", "keras", "channel-shift"]
    chain = build_chain(list(map(parse_choice, texts)), fill="constant", fill_value=1)
    assert chain == Chain(
        (Rotation(degrees=10), Brightness(low=0.5, high=2), *keras(), ChannelShift()),
        "constant",
        1,
    )
    assert chain.on_device
    assert chain.host == ()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("rotation:degrees=steep", OptionError, "rotation: option 'degrees' is 'steep', but must"),
        ("rotation:degrees=true", OptionError, "'degrees' is True, but must be a number"),
        ("rotation:degrees=400", OptionError, r"is 400.0, but must be a number in \[0, 180\]"),
        ("rotation:degree=4", OptionError, "no option named 'degree'. Did you mean 'degrees'"),
        ("keras:rotation=4", OptionError, "keras: no option named 'rotation'. Options: none"),
        (
            "rotatoin",
            UnknownPluginError,
            "No augmentation named 'rotatoin'. Did you mean 'rotation'",
        ),
        ("dense256", UnknownPluginError, "No augmentation named 'dense256'"),
    ],
)
def test_what_a_user_mistypes_is_named(text, error, message):
    with pytest.raises(error, match=message):
        build_chain([parse_choice(text)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "mirror"}, "'fill' is 'mirror', but must be one of nearest, constant, reflect"),
        ({"fill_value": 255}, r"'fill_value' is 255, but must be a number in \[0, 1\]"),
        (
            {"augmentations": [Rotation(), Host()]},
            "The host augmentation Host comes after the geom",
        ),
        ({"augmentations": [Brightness(), Host()]}, "after the pixel .* put Host first"),
        ({"augmentations": [Batch(), Rotation()]}, "The geometric augmentation Rotation comes aft"),
        ({"augmentations": [NoKind()]}, "is none of the augmentations that a chain holds"),
        ({"augmentations": [Rotation]}, "is none of the augmentations that a chain holds"),
    ],
)
def test_chains_that_cannot_be_applied_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Chain(**options)


def test_host_augmentations_are_handed_out_and_keep_their_place(pictures):
    host = Host()
    chain = Chain((host, Rotation()))
    assert chain.host == (host,)
    assert chain.on_device
    assert not Chain((host,)).on_device
    (key,) = keys_for(1)
    matrix = Rotation().matrix(jax.random.fold_in(key, 1), 12, 17)
    expected = warped(jnp.asarray(pictures[0], jnp.float32) / 255, matrix, "nearest", 0)
    np.testing.assert_allclose(apply(chain, key[None], pictures[:1])[0], expected, atol=1e-6)


@pytest.mark.parametrize("returned", [lambda: 3, lambda: (Rotation(), None), lambda: Rotation])
def test_a_plugin_that_gives_no_augmentation_is_named(monkeypatch, returned):
    plugin = plugins.Plugin("augmentation", "odd", "odd-package", "1.2", "odd:make")
    monkeypatch.setattr(plugins, "list_plugins", lambda kind=None: [plugin])
    monkeypatch.setattr(plugins.Plugin, "load", lambda self: returned)
    with pytest.raises(
        PluginError, match=r"augmentation 'odd' of odd-package 1.2 gives a \w+, but"
    ):
        build_chain([PluginChoice("odd")])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            Returns(lambda image: image[:-1]),
            r"apply of test_augment_chain.Returns returned float32 \[11, 17, 3\], but",
        ),
        (Returns(lambda image: image.astype(jnp.bfloat16)), r"returned bfloat16 \[12, 17, 3\]"),
        (Returns(lambda image: None), r"returned NoneType \[\], but must return float32 \[12, 17"),
        (
            Fixed(rows=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))),
            r"matrix of test_augment_chain.Fixed returned float32 \[2, 3\]",
        ),
    ],
)
def test_an_augmentation_that_breaks_its_contract_is_named(bad, message, pictures):
    with pytest.raises(PluginError, match=message):
        apply(Chain((bad,)), keys_for(5), pictures)
