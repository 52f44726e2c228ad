"""RandAugment and TrivialAugment: each operation beside Pillow's, and what is drawn."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from vgg_jax_randaugment import (
    _RAND,
    OPERATIONS,
    Draw,
    RandAugment,
    TrivialAugment,
    _transform,
    transform,
)

from vgg_jax.api import OptionError
from vgg_jax.testing import check_augmentation

KEYS = jax.random.split(jax.random.key(0), 300)


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:33, :33]
    shades = np.stack((40 + 5 * x, 200 - 4 * y, 90 + 2 * x + 2 * y), -1)
    return np.clip(shades + rng.normal(0, 4, shades.shape), 20, 235).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def transformed(name, image, share, sign):
    draws = Draw(jnp.array([OPERATIONS.index(name)]), share[None], sign[None])
    return transform(image, draws, _RAND)


@functools.partial(jax.jit, static_argnums=0)
def views(augmentation, image):
    return jax.vmap(lambda key: augmentation.apply(key, image))(KEYS)


def affine(picture: Image.Image, matrix: np.ndarray) -> Image.Image:
    """Warp about the centre, as the map says where output pixels come from."""
    centre = (picture.width - 1) / 2
    to_centre = np.array([[1, 0, -centre], [0, 1, -centre], [0, 0, 1]])
    full = np.linalg.inv(to_centre) @ matrix @ to_centre
    # Pillow takes (x + 0.5, y + 0.5) for a pixel's middle.
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    full = np.linalg.inv(half) @ full @ half
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        tuple(full[:2].ravel()),
        Image.Resampling.BILINEAR,
        fillcolor=(128, 128, 128),
    )


def expected(name: str, picture: Image.Image, share: float, sign: float) -> Image.Image:
    factor = 1 + sign * share * 0.9
    angle = np.deg2rad(30 * share * sign)
    cos, sin = np.cos(angle), np.sin(angle)
    slant, distance = 0.3 * share * sign, 150 / 331 * share * sign * picture.width
    matrices = {
        "rotate": [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]],
        "shear-x": [[1, slant, 0], [0, 1, 0], [0, 0, 1]],
        "shear-y": [[1, 0, 0], [slant, 1, 0], [0, 0, 1]],
        "translate-x": [[1, 0, distance], [0, 1, 0], [0, 0, 1]],
        "translate-y": [[1, 0, 0], [0, 1, distance], [0, 0, 1]],
    }
    if name in matrices:
        return affine(picture, np.array(matrices[name]))
    return {
        "identity": lambda: picture,
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        "posterize": lambda: ImageOps.posterize(picture, 8 - round(share * 4)),
        "solarize": lambda: ImageOps.solarize(picture, int(np.ceil(255 * (1 - share)))),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
    }[name]()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name, sign, levels):
    image = jnp.asarray(levels, jnp.float32) / 255
    found = np.asarray(transformed(name, image, jnp.float32(0.5), jnp.float32(sign)))
    wanted = np.asarray(expected(name, Image.fromarray(levels), 0.5, sign)) / 255
    inside = slice(None)
    if name in ("rotate", "shear-x", "shear-y", "translate-x", "translate-y"):
        # At the edges of the picture itself the two blend differently with what lies beyond.
        covered = np.asarray(affine(Image.new("RGB", (33, 33), "white"), np.eye(3)))
        assert covered.min() == 255
        inside = np.abs(wanted - 128 / 255).max(-1) > 0.02
        inside &= np.abs(found - 0.5).max(-1) > 0.02
        assert inside.mean() > 0.5
        assert np.quantile(np.abs(found - wanted)[inside], 0.9) < 0.02
        return
    assert np.abs(found - wanted)[inside].max() < 2.6 / 255


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in ("autocontrast", "equalize")])
def test_no_strength_is_no_change(name, levels):
    image = jnp.asarray(levels, jnp.float32) / 255
    found = transformed(name, image, jnp.float32(0), jnp.float32(1))
    np.testing.assert_allclose(found, image, atol=1e-5)


@pytest.mark.parametrize("kind", [RandAugment, TrivialAugment])
def test_the_contract_is_kept(kind):
    check_augmentation(kind)


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, Draw]:
    """Return pictures, and three operations for each: every one is drawn."""
    rng = np.random.default_rng(0)
    images = rng.random((28, 40, 48, 3), np.float32)
    picked = np.stack([rng.permutation(28) % len(OPERATIONS) for _ in range(3)], 1)
    share, sign = rng.random((28, 3), np.float32), rng.choice([-1.0, 1.0], (28, 3))
    draws = Draw(jnp.array(picked), jnp.array(share), jnp.array(sign, jnp.float32))
    return jnp.array(images), draws


# What `jax.vmap` is on accelerators.
usual_vmap = jax.jit(jax.vmap(functools.partial(_transform, strengths=_RAND)))


@jax.jit
def vectorised(images: jax.Array, draws: Draw) -> jax.Array:
    return jax.vmap(lambda image, own: transform(image, own, _RAND))(images, draws)


def test_vectorised_in_any_way_it_is_the_same(batch):
    images, draws = batch
    wanted = np.stack(
        [transform(images[i], Draw(*(d[i] for d in draws)), _RAND) for i in range(28)]
    )
    np.testing.assert_allclose(vectorised(images, draws), wanted, atol=1e-5)
    np.testing.assert_allclose(usual_vmap(images, draws), wanted, atol=1e-5)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 14, *leaf.shape[1:]), batch)
    nested = jax.jit(jax.vmap(vectorised))(*halves)
    np.testing.assert_allclose(nested.reshape(images.shape), wanted, atol=1e-5)


def test_one_picture_can_have_many_draws(batch):
    images, draws = batch
    found = jax.vmap(lambda own: transform(images[0], own, _RAND))(draws)
    same = jnp.broadcast_to(images[0], images.shape)
    np.testing.assert_allclose(found, vectorised(same, draws), atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of CPUs only")
def test_on_cpus_only_what_was_drawn_is_computed(batch):
    def seconds(function) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(function(*batch))
            times.append(time.perf_counter() - start)
        return min(times[1:])  # the first compiles

    assert seconds(vectorised) < 0.5 * seconds(usual_vmap)


def test_several_devices_share_the_pictures():
    code = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from vgg_jax_randaugment import RandAugment
apply = jax.jit(jax.vmap(RandAugment().apply))
keys = jax.random.split(jax.random.key(0), 4)
images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
spread = apply(*jax.device_put((keys, images), rows))
assert spread.sharding.is_equivalent_to(rows, 4), spread.sharding
alone = [RandAugment().apply(key, image) for key, image in zip(keys, images)]
np.testing.assert_allclose(spread, alone, atol=1e-5)
"""
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_operation_has_its_turn(levels):
    image = jnp.asarray(levels, jnp.float32) / 255
    found = np.asarray(views(RandAugment(operations=1, magnitude=30), image))
    distinct = {np.round(view, 3).tobytes() for view in found}
    # identity, autocontrast, equalize, posterize, solarize: one each; the nine others have signs.
    assert len(distinct) == 5 + 2 * 9


def test_more_operations_and_magnitude_change_more(levels):
    image = jnp.asarray(levels, jnp.float32) / 255

    def change(augmentation) -> float:
        return float(jnp.abs(views(augmentation, image) - image).mean())

    weak, strong = RandAugment(magnitude=3), RandAugment(magnitude=27)
    more = RandAugment(magnitude=27, operations=4)
    assert change(weak) < change(strong) < change(more)
    assert change(RandAugment(operations=0)) == 0


def test_a_deviation_makes_magnitudes_differ(levels):
    image = jnp.asarray(levels, jnp.float32) / 255
    found = np.asarray(views(RandAugment(operations=1, deviation=3), image))
    assert len({view.tobytes() for view in found}) > 150


def test_trivialaugment_leaves_some_pictures(levels):
    image = jnp.asarray(levels, jnp.float32) / 255
    found = np.asarray(views(TrivialAugment(probability=0.5), image))
    same = (np.abs(found - np.asarray(image)).max((1, 2, 3)) < 1e-6).mean()
    assert 0.45 < same < 0.65


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RandAugment, {"operations": 11}),
        (RandAugment, {"magnitude": 31}),
        (RandAugment, {"deviation": -1}),
        (TrivialAugment, {"probability": 2}),
    ],
)
def test_options_out_of_range_are_refused(kind, options):
    with pytest.raises(OptionError, match=f"option '{next(iter(options))}'"):
        kind(**options)
