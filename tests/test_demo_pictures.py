"""The demo's pictures: all there, reproducible, told apart by pattern and not by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgg_jax.demo import pictures
from vgg_jax.demo.pictures import PATTERNS, draw, ensure_demo_data
from vgg_jax.errors import DataError

COUNTS = {"train": 60, "validation": 20, "test": 20}
Split = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo_data(tmp_path_factory.mktemp("cache") / "demo")


@pytest.fixture(scope="module")
def splits(folder: Path) -> dict[str, Split]:
    """Return pictures `[N, 96, 96, 3]` in [0, 1] and labels `[N]` of each split."""

    def read(split: str) -> Split:
        paths = sorted((folder / split).glob("*/*.jpg"))
        names = sorted(PATTERNS)
        images = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
        return images, np.array([names.index(path.parent.name) for path in paths])

    return {split: read(split) for split in COUNTS}


def test_there_are_60_20_20_jpegs_a_class(folder, splits):
    assert sorted(path.name for path in folder.iterdir()) == sorted(COUNTS)
    for split, count in COUNTS.items():
        images, labels = splits[split]
        assert images.shape[1:] == (96, 96, 3)
        assert np.bincount(labels).tolist() == [count] * 5
    for path in folder.glob("*/*/*"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]  # no scratch is left


def test_no_picture_occurs_twice(folder):
    paths = list(folder.glob("*/*/*.jpg"))
    assert len({path.read_bytes() for path in paths}) == len(paths) == 500


def nearest_neighbours(train: Split, test: Split) -> float:
    """Return the accuracy of the majority among the five nearest."""
    distances = np.linalg.norm(test[0][:, None] - train[0][None], axis=-1)
    votes = train[1][np.argsort(distances, axis=1)[:, :5]]
    chosen = [np.bincount(row, minlength=5).argmax() for row in votes]
    return float(np.mean(chosen == test[1]))


def least_squares(train: Split, test: Split) -> float:
    """Return the accuracy of a linear classifier."""

    def with_one(x: np.ndarray) -> np.ndarray:
        return np.c_[x, np.ones(len(x))]

    weights, *_ = np.linalg.lstsq(with_one(train[0]), np.eye(5)[train[1]], rcond=None)
    return float(np.mean((with_one(test[0]) @ weights).argmax(1) == test[1]))


def features(splits: dict[str, Split], describe) -> tuple[Split, Split]:
    train, test = splits["train"], splits["test"]
    return (describe(train[0]), train[1]), (describe(test[0]), test[1])


@pytest.mark.parametrize("classify", [nearest_neighbours, least_squares])
def test_mean_colour_does_not_give_the_class_away(splits, classify):
    train, test = features(splits, lambda images: images.mean((1, 2)))
    assert classify(train, test) < 0.35  # chance is 0.2
    # The same classifier does learn from colour where there is something to learn.
    painted = [(x + np.arange(5)[y, None] / 4, y) for x, y in (train, test)]
    assert classify(*painted) > 0.4


def test_patterns_differ_by_class(splits):
    def spectrum(images: np.ndarray) -> np.ndarray:
        """Describe the edges: how strong in which frequency, over all directions."""
        grey = images.mean(-1)
        grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
        power = np.abs(np.fft.rfft2(grey))[:, :48]
        radius = np.hypot(*np.meshgrid(np.arange(48), np.arange(49), indexing="ij")).astype(int)
        rings = [power[:, radius == r] for r in range(1, 30)]
        peaks = np.stack([ring.max(1) / ring.sum(1) for ring in rings], -1)
        return np.log1p(np.c_[np.stack([ring.mean(1) for ring in rings], -1), peaks * 100])

    train, test = features(splits, spectrum)
    assert least_squares(train, test) > 0.5


@pytest.mark.parametrize("name", PATTERNS)
def test_pictures_are_reproducible(folder, name):
    number = list(PATTERNS).index(name)
    again = draw(PATTERNS[name], np.random.default_rng([0, 0, number, 7]))
    assert (again.shape, again.dtype) == ((96, 96, 3), np.uint8)
    path = folder / "train" / name / f"{name}-007.jpg"
    with Image.open(path) as image:
        assert abs(np.asarray(image).astype(int) - again).mean() < 16  # JPEG's loss on noise
    other = draw(PATTERNS[name], np.random.default_rng([0, 0, number, 8]))
    assert not np.array_equal(again, other)


def blank(pattern: object, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)


def test_bytes_are_the_same_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "draw", blank)
    first, second = (ensure_demo_data(tmp_path / name) for name in ("first", "deep/second"))
    for path in first.glob("*/*/*"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_an_existing_folder_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "draw", None)
    assert ensure_demo_data(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(pattern: object, rng: np.random.Generator) -> np.ndarray:
        if rng.integers(20) == 0:
            raise KeyboardInterrupt
        return blank(pattern, rng)

    monkeypatch.setattr(pictures, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_data(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_the_quicker_of_two_processes_wins(tmp_path, monkeypatch):
    demo = tmp_path / "demo"

    def raced(pattern: object, rng: np.random.Generator) -> np.ndarray:
        demo.mkdir(exist_ok=True)
        (demo / "train").mkdir(exist_ok=True)
        return blank(pattern, rng)

    monkeypatch.setattr(pictures, "draw", raced)
    assert ensure_demo_data(demo) == demo
    assert [path.name for path in demo.iterdir()] == ["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match=r"cache/demo \(File exists\)"):
        ensure_demo_data(tmp_path / "cache" / "demo")
