"""Pictures that the program draws itself, so that a fresh machine has something to train on.

A picture is one black-and-white pattern, seen at a random place, scale and rotation, painted in two
random colours, with uneven light and noise. Only the pattern tells the class: the colours are drawn
independently
of it and swapped at random, so that mean colour gives nothing away. Everything is a function of the
seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vgg_jax.cache import cache_folder
from vgg_jax.errors import DataError

SIZE_PX = 96
SEED = 0
VERSION = 1  # of the pictures; it is in the name of the folder that holds them
EXAMPLES_PER_CLASS = {"train": 60, "validation": 20, "test": 20}
JPEG_QUALITY = 90
_SUPERSAMPLING = 2

# (generator, x, y) -> where the pattern is, as booleans or floats in [0, 1]; x and y are [H, W]
# coordinates
# in units of the pattern's own size, turned and shifted at random.
Pattern = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


def stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Straight parallel bars."""
    del y
    return x % 1 < rng.uniform(0.35, 0.65)


def checkerboards(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squares of alternating colour."""
    del rng
    return (np.floor(x * 1.25) + np.floor(y * 1.25)) % 2 == 0


def dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Discs on a square lattice, every other row shifted in half of the pictures."""
    x = x + 0.5 * (np.floor(y) % 2) * rng.integers(0, 2)
    return np.hypot(x % 1 - 0.5, y % 1 - 0.5) < rng.uniform(0.2, 0.34)


def rings(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Concentric circles."""
    return np.hypot(x, y) % 1 < rng.uniform(0.35, 0.65)


def blobs(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rounded irregular patches: a sum of plane waves of one wavelength in random directions."""
    field = np.zeros_like(x)
    for angle, phase in rng.uniform(0, 2 * np.pi, (12, 2)):
        wavelength = rng.uniform(1.4, 2.2)
        field += np.cos(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / wavelength + phase)
    return field > rng.uniform(-0.5, 0.5)


PATTERNS: Mapping[str, Pattern] = {
    "blobs": blobs,
    "checkerboards": checkerboards,
    "dots": dots,
    "rings": rings,
    "stripes": stripes,
}


def draw(pattern: Pattern, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture of `pattern`; returns `[SIZE_PX, SIZE_PX, 3]` uint8 RGB."""
    side = SIZE_PX * _SUPERSAMPLING
    cell_px = rng.uniform(10, 24)
    centre = rng.uniform(0.25, 0.75, 2) * SIZE_PX
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = (np.mgrid[0:side, 0:side] + 0.5) / _SUPERSAMPLING
    u, v = (columns - centre[0]) / cell_px, (rows - centre[1]) / cell_px
    x, y = np.cos(angle) * u + np.sin(angle) * v, -np.sin(angle) * u + np.cos(angle) * v
    mask = np.asarray(pattern(rng, x, y), np.float64)
    mask = mask.reshape(SIZE_PX, _SUPERSAMPLING, SIZE_PX, _SUPERSAMPLING).mean((1, 3))[..., None]

    first, second = _two_colours(rng)
    slope = rng.uniform(-0.25, 0.25, 2)
    light = (
        1
        + slope[0] * np.linspace(-1, 1, SIZE_PX)[:, None]
        + slope[1] * np.linspace(-1, 1, SIZE_PX)[None]
    )
    picture = (mask * first + (1 - mask) * second) * light[..., None]
    picture += rng.normal(0, rng.uniform(2, 16), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw two RGB colours, 0 to 255, whose brightness differs enough to tell them apart."""
    while True:
        first, second = rng.uniform(0, 255, (2, 3))
        if abs(first.mean() - second.mean()) > 50:
            return first, second


def demo_folder() -> Path:
    """Return the folder of the demo's pictures in the user's cache, drawn if need be.

    Raises:
        DataError: If they cannot be written.
    """
    return ensure_demo_data(cache_folder() / "data" / f"demo-v{VERSION}")


def ensure_demo_data(folder: Path) -> Path:
    """Write the demo's 500 JPEG files to `folder` unless they are there; returns `folder`.

    The folder appears whole or not at all.

    Raises:
        DataError: If it cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            whole = Path(scratch) / "whole"
            write_pictures(whole, EXAMPLES_PER_CLASS, SEED)
            # A rename, not shutil.move: that would put it inside a folder which has appeared.
            whole.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process was quicker, with the same bytes
            return folder
        raise DataError(
            f"The demo's pictures cannot be written to {folder} ({error.strerror or error}). "
            "Make room or set the permissions there, or use data of your own."
        ) from error
    return folder


def write_pictures(folder: Path, examples_per_class: Mapping[str, int], seed: int) -> None:
    """Write class folders of JPEG files, so many of each class in each split.

    Raises:
        OSError: If they cannot be written.
    """
    for split_number, (split, count) in enumerate(examples_per_class.items()):
        for class_number, (name, pattern) in enumerate(PATTERNS.items()):
            target = folder / split / name
            target.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([seed, split_number, class_number, i])
                path = target / f"{name}-{i:03}.jpg"
                Image.fromarray(draw(pattern, rng)).save(path, quality=JPEG_QUALITY)
