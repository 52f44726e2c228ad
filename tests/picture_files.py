"""Small seeded pictures and folders of them, made by code."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgg_jax.data.examples import DataSet, Examples
from vgg_jax.data.sources import open_data

CLASSES = {"cat": 4, "dog": 3}


def pixels(seed: int | Sequence[int], height: int = 12, width: int = 16) -> np.ndarray:
    """Return uint8 `[height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, file_format: str, **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def image_bytes(seed: int | Sequence[int], suffix: str = ".png") -> bytes:
    return encode(pixels(seed), {".png": "PNG", ".jpg": "JPEG"}[suffix])


def write_classes(folder: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """Write `counts[name]` pictures, all different, to `folder/name` for each name."""
    for number, (name, count) in enumerate(counts.items()):
        target = folder / name
        target.mkdir(parents=True)
        for i in range(count):
            suffix = (".png", ".jpg")[i % 2]
            (target / f"{i:03}{suffix}").write_bytes(image_bytes([seed, number, i], suffix))
    return folder


def examples_of(pictures: Sequence[bytes], labels: Sequence[int] | None = None) -> Examples:
    """Return examples that lie in memory."""
    return Examples(
        [f"picture-{i}" for i in range(len(pictures))],
        [i % 3 for i in range(len(pictures))] if labels is None else labels,
        pictures.__getitem__,
        lambda: [len(picture) for picture in pictures],
    )


def real_data(name: str) -> Path:
    """Return a folder of the real data, or skip the test."""
    shared = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VGG_JAX_REAL_DATA", shared)) / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set VGG_JAX_REAL_DATA")
    return folder


def open_folder(folder: Path, seed: int = 0, **options: Any) -> DataSet:
    return open_data(str(folder), demo_folder=no_demo, seed=seed, **options)


def no_demo() -> Path:
    raise AssertionError("the demo was not asked for")


def write_splits(folder: Path, **splits: Mapping[str, int]) -> Path:
    for seed, (split, counts) in enumerate(splits.items()):
        write_classes(folder / split, counts, seed)
    return folder
