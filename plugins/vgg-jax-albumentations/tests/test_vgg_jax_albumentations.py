"""Albumentations: seeded by the generator alone, from any thread, by name or from a file."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import albumentations
import numpy as np
import pytest
from vgg_jax_albumentations import Albumentations

from vgg_jax.api import OptionError
from vgg_jax.testing import check_augmentation

NOISY = Albumentations(transforms=("HorizontalFlip", "GaussNoise", "RandomBrightnessContrast"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def view(augmentation, image, seed) -> np.ndarray:
    return augmentation.apply(np.random.default_rng(seed), image)


def test_the_contract_is_kept():
    check_augmentation(Albumentations)
    check_augmentation(Albumentations, transforms=("CLAHE", "GridDistortion"))


def test_the_generator_decides_whatever_thread_it_runs_in(image):
    alone = [view(NOISY, image, seed) for seed in range(40)]
    assert len({found.tobytes() for found in alone}) > 15
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            together = list(threads.map(lambda seed: view(NOISY, image, seed), range(40)))
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, other)


def test_transforms_are_those_of_the_library(image):
    flipped = Albumentations(transforms=("HorizontalFlip",))
    found = [view(flipped, image, seed) for seed in range(40)]
    share = np.mean([np.array_equal(picture, image[:, ::-1]) for picture in found])
    assert 0.25 < share < 0.75  # its own default is a half
    rest = [picture for picture in found if not np.array_equal(picture, image[:, ::-1])]
    assert all(np.array_equal(picture, image) for picture in rest)


def test_transforms_are_drawn_independently(image):
    both = Albumentations(transforms=("HorizontalFlip", "VerticalFlip"))
    ways = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    counts = [0, 0, 0, 0]
    for seed in range(100):
        found = view(both, image, seed)
        counts[[np.array_equal(found, way) for way in ways].index(True)] += 1
    assert min(counts) > 10


def test_probability_is_how_often_the_pipeline_runs(image):
    rare = Albumentations(transforms=("InvertImg",) * 2, probability=0.0)
    assert view(rare, image, 0) is image


def test_by_default_most_pictures_change():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    found = [view(Albumentations(), image, seed) for seed in range(40)]
    changed = np.mean([not np.array_equal(picture, image) for picture in found])
    assert 0.5 < changed < 1  # two transforms, each with its own probability of a half


def saved(pipeline, folder):
    path = folder / "pipeline.json"
    albumentations.save(pipeline, path, data_format="json")
    return str(path)


@pytest.mark.parametrize("name", ["Affine", "NoOp", "Pad", "ToRGB", "XYMasking"])
def test_a_transform_without_effect_is_refused(name):
    with pytest.raises(OptionError, match=f"{name} changes no picture with its default options"):
        Albumentations(transforms=("CLAHE", name))


@pytest.mark.parametrize(
    ("pipeline", "what"),
    [
        (albumentations.Affine(p=1), "Affine"),
        (albumentations.Compose([]), "the pipeline"),
        (albumentations.Compose([albumentations.CLAHE(p=1)], p=0), "the pipeline"),
        (albumentations.Compose([albumentations.CLAHE(p=0)]), "CLAHE"),
        (
            albumentations.Compose(
                [
                    albumentations.HorizontalFlip(p=1),
                    albumentations.Sequential([albumentations.Posterize(num_bits=7, p=0)], p=1),
                ]
            ),
            "Posterize",
        ),
        (albumentations.OneOf([albumentations.NoOp(p=1), albumentations.Affine(p=1)]), "OneOf"),
    ],
)
def test_a_saved_pipeline_without_effect_is_refused(pipeline, what, tmp_path):
    with pytest.raises(OptionError, match=rf"pipeline.json cannot be used: {what} changes no"):
        Albumentations(file=saved(pipeline, tmp_path))


@pytest.mark.parametrize(
    "step",
    [
        albumentations.HorizontalFlip(p=1e-6),
        albumentations.AutoContrast(p=0.5),
        albumentations.Solarize(threshold_range=(0.99, 0.99), p=0.5),
        albumentations.PixelDropout(dropout_prob=1e-4, p=1),
        albumentations.SmallestMaxSize(max_size=61, p=1),
        albumentations.CenterCrop(height=480, width=640, p=1),
        albumentations.CenterCrop(height=1000, width=1000, p=1),
        albumentations.OneOf([albumentations.NoOp(p=1), albumentations.CLAHE(p=1e-3)], p=0.1),
        albumentations.Sequential([albumentations.HorizontalFlip(p=1)] * 2, p=0.1),
    ],
    ids=lambda step: type(step).__name__,
)
def test_rare_and_small_effects_are_accepted(step, tmp_path):
    Albumentations(file=saved(albumentations.Compose([step]), tmp_path))


def test_trying_a_pipeline_leaves_it_as_it_is(image, tmp_path):
    rare = Albumentations(file=saved(albumentations.InvertImg(p=1e-6), tmp_path))
    assert all(np.array_equal(view(rare, image, seed), image) for seed in range(10))


@pytest.mark.parametrize("digits", [12, 64])
def test_a_checksum_tells_whether_a_file_was_changed(digits, image, tmp_path):
    file = saved(albumentations.InvertImg(p=1), tmp_path)
    digest = hashlib.sha256((tmp_path / "pipeline.json").read_bytes()).hexdigest()
    given = Albumentations(file=file, sha256=digest[:digits].upper())
    assert given == Albumentations(file=file)
    assert given.sha256 == digest
    saved(albumentations.VerticalFlip(p=1), tmp_path)
    with pytest.raises(OptionError, match=f"not the file that was meant.*not {digest[:digits]}"):
        Albumentations(file=file, sha256=digest[:digits])


def test_a_file_that_changes_changes_nothing_that_has_begun(image, tmp_path):
    file = saved(albumentations.InvertImg(p=1), tmp_path)
    before = Albumentations(file=file)
    saved(albumentations.VerticalFlip(p=1), tmp_path)
    after = Albumentations(file=file)
    assert before != after
    for augmentation in (before, pickle.loads(pickle.dumps(before))):
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(view, augmentation, image, 0).result()
        np.testing.assert_array_equal(found, 255 - image)
    np.testing.assert_array_equal(view(after, image, 0), image[::-1])


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_saved_pipeline_can_be_named(suffix, image, tmp_path):
    path = tmp_path / f"pipeline.{suffix}"
    pipeline = albumentations.Compose(
        [albumentations.InvertImg(p=1), albumentations.VerticalFlip(p=1)]
    )
    albumentations.save(pipeline, path, data_format=suffix)
    found = view(Albumentations(file=str(path)), image, 0)
    np.testing.assert_array_equal(found, 255 - image[::-1])


def test_a_single_saved_transform_can_be_named(image, tmp_path):
    path = tmp_path / "one.json"
    albumentations.save(albumentations.InvertImg(p=1), path, data_format="json")
    np.testing.assert_array_equal(view(Albumentations(file=str(path)), image, 0), 255 - image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": ("Sparkle",)}, "option 'transforms' is 'Sparkle'"),
        ({"transforms": ("Compose",)}, "option 'transforms' is 'Compose'"),
        ({"file": "pipeline.pkl"}, "must be a file that ends in .json or .yaml"),
        ({"file": "/nowhere/pipeline.json"}, "pipeline.json cannot be used: FileNotFoundError"),
        ({"transforms": ()}, "at least one name"),
        ({"sha256": "0" * 64}, "option 'sha256' is '0+', but must be left out where there is no"),
        ({"file": "x.json", "sha256": "0123"}, "12 to 64 hexadecimal digits"),
        ({"file": "x.json", "sha256": "g" * 64}, "12 to 64 hexadecimal digits"),
        ({"probability": 2.0}, "option 'probability' is 2.0"),
    ],
)
def test_options_that_cannot_be_used_say_why(options, message):
    with pytest.raises(OptionError, match=message):
        Albumentations(**options)


def test_a_file_that_is_no_pipeline_says_so(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(OptionError, match="Write it with"):
        Albumentations(file=str(tmp_path / "x.json"))


def test_importing_it_is_light_and_using_it_asks_nobody():
    code = """
import socket, sys
import vgg_jax_albumentations as plugin
assert "albumentations" not in sys.modules
assert "jax" not in sys.modules
def refuse(*arguments, **options):
    raise AssertionError("it uses the network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
plugin.Albumentations()
"""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
