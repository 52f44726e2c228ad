"""Geometric augmentations: directions by effect, ranges, and Keras' matrices."""

import dataclasses
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vgg_jax import plugins
from vgg_jax.api import Augmentation, GeometricAugmentation
from vgg_jax.augment.geometric import (
    CropResize,
    HeightShift,
    HorizontalFlip,
    Perspective,
    Rotation,
    Shear,
    VerticalFlip,
    WidthShift,
    Zoom,
    rotation_matrix,
    scaling_matrix,
    shear_matrix,
    translation_matrix,
)
from vgg_jax.augment.warp import warp
from vgg_jax.errors import OptionError

GOLDEN = Path(__file__).parent / "golden" / "keras_affine.npz"
HEIGHT, WIDTH = 5, 9
KEYS = jax.random.split(jax.random.key(0), 500)

warped = jax.jit(warp, static_argnums=(2, 3))


def draw(augmentation, keys=KEYS, height=HEIGHT, width=WIDTH):
    return np.asarray(jax.vmap(lambda key: augmentation.matrix(key, height, width))(keys))


def dot_at(row, column):
    return jnp.zeros((HEIGHT, WIDTH, 1)).at[row, column].set(1.0)


def where_dot_went(image):
    assert np.max(image) > 0.99
    return tuple(int(i) for i in np.unravel_index(np.argmax(image), image.shape)[:2])


@pytest.mark.parametrize(
    ("name", "matrix", "start", "end"),
    [
        ("positive x moves left", translation_matrix(2, 0), (2, 4), (2, 2)),
        ("positive y moves up", translation_matrix(0, 2), (2, 4), (0, 4)),
        ("positive angle turns counterclockwise", rotation_matrix(90), (2, 6), (0, 4)),
        ("factor over 1 shrinks the width", scaling_matrix(2, 1), (2, 8), (2, 6)),
        ("factor over 1 shrinks the height", scaling_matrix(1, 2), (4, 4), (3, 4)),
        ("flip of x swaps left and right", scaling_matrix(-1, 1), (1, 0), (1, 8)),
        ("flip of y swaps top and bottom", scaling_matrix(1, -1), (0, 3), (4, 3)),
    ],
)
def test_directions(name, matrix, start, end):
    moved = warped(dot_at(*start), matrix, "constant", 0.0)
    assert where_dot_went(moved) == end, name


def test_positive_shear_moves_the_lower_half_right():
    upright = jnp.zeros((HEIGHT, WIDTH, 1)).at[:, 4].set(1.0)
    slanted = np.asarray(warped(upright, shear_matrix(30), "nearest", 0.0))[..., 0]
    centres = slanted @ np.arange(WIDTH) / slanted.sum(axis=1)
    np.testing.assert_allclose(centres, 4 + np.arange(-2, 3) * 0.5, atol=1e-5)


def test_matrices_compose_to_what_keras_computes():
    golden = np.load(GOLDEN)
    columns = golden["columns"].tolist()
    for fill in ("nearest", "reflect"):
        for row, expected in zip(golden["parameters"], golden[fill], strict=True):
            p = dict(zip(columns, row.tolist(), strict=True))
            matrix = rotation_matrix(p["theta"]) @ translation_matrix(p["tx"], p["ty"])
            matrix = matrix @ shear_matrix(p["shear"]) @ scaling_matrix(p["zx"], p["zy"])
            result = warped(jnp.asarray(golden["image"]), matrix, fill, 0.0)
            np.testing.assert_allclose(
                result, expected, atol=1e-5, err_msg=f"{fill} {p}; see make_affine_golden.py"
            )


@pytest.mark.parametrize(
    ("augmentation", "read", "low", "high"),
    [
        (Rotation(degrees=40), lambda m: np.rad2deg(np.arctan2(m[:, 1, 0], m[:, 0, 0])), -40, 40),
        (WidthShift(fraction=0.2), lambda m: m[:, 0, 2], -0.2 * WIDTH, 0.2 * WIDTH),
        (HeightShift(fraction=0.2), lambda m: m[:, 1, 2], -0.2 * HEIGHT, 0.2 * HEIGHT),
        (Shear(degrees=10), lambda m: np.rad2deg(np.arcsin(-m[:, 0, 1])), -10, 10),
        (Zoom(fraction=0.2), lambda m: m[:, 0, 0], 0.8, 1.2),
        (Zoom(fraction=0.2), lambda m: m[:, 1, 1], 0.8, 1.2),
    ],
)
def test_draws_fill_the_range(augmentation, read, low, high):
    drawn = read(draw(augmentation))
    margin = 0.02 * (high - low)
    assert low - 1e-4 <= drawn.min() <= low + margin
    assert high - margin <= drawn.max() <= high + 1e-4


@pytest.mark.parametrize(
    ("augmentation", "drawn"),
    [(WidthShift(), (0, 2)), (HeightShift(), (1, 2)), (Shear(), ([0, 1], [1, 1]))],
)
def test_other_entries_are_the_identitys(augmentation, drawn):
    matrices = draw(augmentation).copy()
    matrices[:, *drawn] = np.eye(3)[*drawn]
    np.testing.assert_array_equal(matrices, np.broadcast_to(np.eye(3), matrices.shape))


def test_zoom_draws_each_axis_on_its_own():
    matrices = draw(Zoom(fraction=0.2))
    assert abs(np.corrcoef(matrices[:, 0, 0], matrices[:, 1, 1])[0, 1]) < 0.15


@pytest.mark.parametrize(("flip", "axis"), [(HorizontalFlip, 0), (VerticalFlip, 1)])
@pytest.mark.parametrize("probability", [0, 0.3, 1])
def test_flips_happen_as_often_as_asked(flip, axis, probability):
    flipped = draw(flip(probability=probability))[:, axis, axis] < 0
    assert abs(flipped.mean() - probability) < (0.06 if 0 < probability < 1 else 1e-9)


@pytest.mark.parametrize(
    ("factory", "option", "bad"),
    [
        *[(Rotation, "degrees", v) for v in (-1, 181, float("nan"))],
        *[(WidthShift, "fraction", v) for v in (-0.1, 1.1)],
        *[(HeightShift, "fraction", v) for v in (-0.1, 1.1)],
        *[(Shear, "degrees", v) for v in (-1, 90)],
        *[(Zoom, "fraction", v) for v in (-0.1, 1)],
        *[(HorizontalFlip, "probability", v) for v in (-0.1, 1.1)],
        *[(VerticalFlip, "probability", v) for v in (-0.1, 1.1)],
    ],
)
def test_options_out_of_range_are_refused(factory, option, bad):
    with pytest.raises(OptionError, match=rf"option '{option}' is {bad}, but must be"):
        factory(**{option: bad})


def built_in_augmentations():
    found = [p for p in plugins.list_plugins("augmentation") if p.package == "vgg-jax"]
    return [pytest.param(p.load(), id=p.name) for p in found]


@pytest.mark.parametrize("factory", built_in_augmentations())
def test_built_ins_are_documented_and_keyword_only(factory):
    documentation = inspect.getdoc(factory) or ""
    assert len(documentation.splitlines()[0]) > 20
    if not inspect.isclass(factory):
        assert all(isinstance(a, Augmentation) for a in factory())
        return
    assert issubclass(factory, Augmentation)
    assert dataclasses.is_dataclass(factory)
    assert factory.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert "Raises:\n    OptionError: " in documentation
    for field in dataclasses.fields(factory):
        assert field.kw_only, field.name
        text = re.search(rf"^    {field.name}: (.*(?:\n {{8}}.*)*)", documentation, re.MULTILINE)
        assert text, f"{field.name} is not described under Attributes"
        ranged = re.search(r"in [\[(][\w.]+, [\w.]+[\])]", text[1])
        assert ranged or field.type == "bool", f"no range: {text[1]}"


def test_every_declared_geometric_augmentation_is_one():
    names = [Rotation, WidthShift, HeightShift, Shear, Zoom, HorizontalFlip, VerticalFlip]
    declared = [p.values[0] for p in built_in_augmentations()]
    for factory in names:
        assert issubclass(factory, GeometricAugmentation)
        assert factory in declared


def places(matrix, points):
    """Return where a matrix sends points (x, y)."""
    found = np.asarray(matrix) @ np.vstack([np.asarray(points, float).T, np.ones(len(points))])
    return (found[:2] / found[2]).T


def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for():
    crop = CropResize(scale=(0.2, 0.5), ratio=(0.5, 2))
    keys = jax.random.split(jax.random.key(0), 300)
    matrices = np.asarray(jax.vmap(lambda key: crop.matrix(key, 60, 80))(keys))
    widths, heights = matrices[:, 0, 0], matrices[:, 1, 1]
    areas, ratios = widths * heights, widths / heights
    assert 0.19 < areas.min() < 0.22
    assert 0.48 < areas.max() < 0.51
    assert 0.49 < ratios.min() < 0.55
    assert 1.8 < ratios.max() < 2.01
    for matrix in matrices:
        corners = places(matrix, [(-40, -30), (40, 30)])
        assert (corners[0] >= (-40.001, -30.001)).all()
        assert (corners[1] <= (40.001, 30.001)).all()


def test_a_crop_of_everything_is_the_picture():
    crop = CropResize(scale=(1, 1), ratio=(1, 1))
    np.testing.assert_allclose(crop.matrix(jax.random.key(0), 5, 7), np.eye(3), atol=1e-6)


def test_perspective_moves_corners_inwards_and_back_to_the_pictures_own():
    keys = jax.random.split(jax.random.key(0), 100)
    tilt = Perspective(distortion=0.8, probability=1)
    matrices = np.asarray(jax.vmap(lambda key: tilt.matrix(key, 60, 80))(keys), np.float64)
    own = np.array([(-40, -30), (40, -30), (40, 30), (-40, 30)], float)
    farthest = np.zeros(2)
    for matrix in matrices:
        shown_at = places(np.linalg.inv(matrix), own)  # where the output shows the corners
        np.testing.assert_allclose(places(matrix, shown_at), own, atol=1e-2)
        inwards = (own - shown_at) * np.sign(own)
        assert (inwards >= -1e-2).all()
        farthest = np.maximum(farthest, inwards.max(0))
    # Up to 0.8 of half a side.
    np.testing.assert_allclose(farthest, (0.8 * 40, 0.8 * 30), rtol=0.06)


def test_perspective_happens_as_often_as_asked_for():
    keys = jax.random.split(jax.random.key(0), 300)
    tilt = Perspective(probability=0.3)
    matrices = np.asarray(jax.vmap(lambda key: tilt.matrix(key, 60, 80))(keys))
    share = (np.abs(matrices - np.eye(3)).max((1, 2)) > 1e-5).mean()
    assert 0.2 < share < 0.4
    still = Perspective(distortion=0, probability=1).matrix(keys[0], 5, 7)
    np.testing.assert_array_equal(still, np.eye(3))


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (CropResize, {"scale": (0.5, 1.5)}, r"option 'scale' is \[0.5, 1.5\].* at most 1"),
        (CropResize, {"ratio": (2, 1)}, "option 'ratio'.*smaller one first"),
        (Perspective, {"distortion": 2}, "option 'distortion' is 2"),
    ],
)
def test_crops_and_perspectives_out_of_range_are_refused(factory, options, message):
    with pytest.raises(OptionError, match=message):
        factory(**options)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth picture of one channel, `[60, 80]`."""
    noise = np.random.default_rng(0).random((15, 20)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC))


def test_crops_are_what_pillow_cuts_out_and_resizes(picture):
    crop = CropResize(scale=(0.2, 0.9), ratio=(0.5, 2))
    for key in jax.random.split(jax.random.key(1), 20):
        matrix = crop.matrix(key, 60, 80)
        found = np.asarray(warped(picture[..., None], matrix, "nearest", 0.0))[..., 0]
        (left, top), (right, bottom) = np.add(places(matrix, [(-40, -30), (40, 30)]), (40, 30))
        box = tuple(np.clip((left, top, right, bottom), 0, (80, 60, 80, 60)).tolist())
        expected = Image.fromarray(picture).resize((80, 60), Image.Resampling.BILINEAR, box=box)
        # At the edge Pillow takes pixels of the box alone, where the warp still sees beyond it.
        np.testing.assert_allclose(
            found[4:-4, 4:-4], np.asarray(expected)[4:-4, 4:-4], atol=2e-3, err_msg=str(box)
        )


def test_perspectives_are_what_pillow_computes(picture):
    tilt = Perspective(distortion=0.5, probability=1)
    to_centre = np.array([[1, 0, -40], [0, 1, -30], [0, 0, 1]], float)
    for key in jax.random.split(jax.random.key(2), 20):
        matrix = np.asarray(tilt.matrix(key, 60, 80), np.float64)
        found = np.asarray(warped(picture[..., None], matrix, "constant", 0.0))[..., 0]
        ours = np.linalg.inv(to_centre) @ matrix @ to_centre  # with the origin at the corner
        coefficients = (ours / ours[2, 2]).ravel()[:8].tolist()
        method = Image.Transform.PERSPECTIVE
        expected = np.asarray(
            Image.fromarray(picture).transform(
                (80, 60), method, coefficients, Image.Resampling.BILINEAR
            )
        )
        y, x = np.mgrid[0:60, 0:80]
        source = places(matrix, np.stack([x.ravel() - 39.5, y.ravel() - 29.5], 1))
        inside = (np.abs(source) < (38.5, 28.5)).all(1).reshape(60, 80)  # not mixed with the fill
        assert inside.mean() > 0.4
        np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
