"""Albumentations: seeded by the generator alone, from any thread, by name or from a file."""

from __future__ import annotations

import os
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


def test_probability_is_how_often_the_pipeline_runs(image):
    rare = Albumentations(transforms=("InvertImg",) * 2, probability=0.0)
    assert view(rare, image, 0) is image


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
