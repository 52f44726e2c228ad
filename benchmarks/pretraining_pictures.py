"""The drawn classes that the demo's backbone was trained on; none is a class of the demo."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vgg_jax.demo.pictures import Pattern

Generator = np.random.Generator
Array = np.ndarray


def zigzag(rng: Generator, x: Array, y: Array) -> Array:
    """Bars with sharp bends."""
    return (x + rng.uniform(0.5, 1.2) * np.abs(y % 2 - 1)) % 1 < rng.uniform(0.35, 0.65)


def waves(rng: Generator, x: Array, y: Array) -> Array:
    """Bars with round bends."""
    return (
        x + rng.uniform(0.25, 0.5) * np.sin(np.pi * y * rng.uniform(0.7, 1.2))
    ) % 1 < rng.uniform(0.35, 0.65)


def bricks(rng: Generator, x: Array, y: Array) -> Array:
    """A wall of bricks with mortar."""
    x = x / 2 + 0.5 * (np.floor(y) % 2)
    joint = rng.uniform(0.1, 0.22)
    return (y % 1 > joint) & (x % 1 > joint / 2)


def rays(rng: Generator, x: Array, y: Array) -> Array:
    """Sectors around a centre."""
    return np.arctan2(y, x) / (2 * np.pi) * rng.integers(6, 16) % 1 < rng.uniform(0.35, 0.65)


def spirals(rng: Generator, x: Array, y: Array) -> Array:
    """One or more spiral arms."""
    turns = rng.choice([-3, -2, -1, 1, 2, 3]) * np.arctan2(y, x) / (2 * np.pi)
    return (np.hypot(x, y) * rng.uniform(0.6, 0.9) + turns) % 1 < rng.uniform(0.35, 0.65)


def grids(rng: Generator, x: Array, y: Array) -> Array:
    """Thin lines in two directions."""
    line = rng.uniform(0.1, 0.25)
    return (x % 1 < line) | (y % 1 < line)


def cells(rng: Generator, x: Array, y: Array) -> Array:
    """Irregular cells with walls, after Voronoi."""
    nearest, second = _two_nearest(rng, x, y, jitter=0.9)
    return second - nearest > rng.uniform(0.1, 0.22)


def plaid(rng: Generator, x: Array, y: Array) -> Array:
    """Crossing bands, half transparent."""
    duty = rng.uniform(0.35, 0.65)
    return 0.5 * (x % 1 < duty) + 0.5 * (y % 1 < duty)


def stars(rng: Generator, x: Array, y: Array) -> Array:
    """Five-pointed stars on a lattice."""
    u, v = _lattice(rng, x, y)
    angle = np.arctan2(v, u) / (2 * np.pi) * 5 % 1
    return np.hypot(u, v) < 0.2 + 0.28 * np.abs(2 * angle - 1)


def crosses(rng: Generator, x: Array, y: Array) -> Array:
    """Plus signs on a lattice."""
    u, v = np.abs(_lattice(rng, x, y))
    arm = rng.uniform(0.08, 0.14)
    return ((u < arm) & (v < 0.38)) | ((v < arm) & (u < 0.38))


def triangles(rng: Generator, x: Array, y: Array) -> Array:
    """A tiling of two-coloured triangles."""
    del rng
    thirds = [
        np.floor(1.4 * (x * np.cos(a) + y * np.sin(a))) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)
    ]
    return np.sum(thirds, axis=0) % 2 == 0


def hexagons(rng: Generator, x: Array, y: Array) -> Array:
    """Honeycomb."""
    nearest, second = _two_nearest(rng, x, y, jitter=0.0)
    return second - nearest > rng.uniform(0.1, 0.25)


def scales(rng: Generator, x: Array, y: Array) -> Array:
    """Overlapping round scales, seen as arcs."""
    row = np.floor(2 * y)
    distance = np.full_like(x, np.inf)
    for k in (1, 0):
        centre = (row + k) / 2
        u = (x + 0.5 * ((row + k) % 2)) % 1 - 0.5
        radius = np.hypot(u, y - centre)
        distance = np.where(radius < 0.6, radius, distance)
    return np.abs(distance - 0.5) < rng.uniform(0.06, 0.1)


def boxes(rng: Generator, x: Array, y: Array) -> Array:
    """Concentric squares."""
    return np.maximum(np.abs(x), np.abs(y)) % 1 < rng.uniform(0.35, 0.65)


def maze(rng: Generator, x: Array, y: Array) -> Array:
    """Diagonal walls, one of two directions a cell."""
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    flipped = rng.integers(0, 2, (64, 64))[row % 64, column % 64] == 1
    u, v = x % 1, y % 1
    diagonal = np.where(flipped, np.minimum(np.abs(u + v - 1), 9), np.abs(u - v))
    return diagonal < rng.uniform(0.15, 0.25)


def arcs(rng: Generator, x: Array, y: Array) -> Array:
    """Truchet tiles: quarter circles that join into winding bands."""
    column, row = np.floor(x / 1.2).astype(int), np.floor(y / 1.2).astype(int)
    flipped = rng.integers(0, 2, (64, 64))[row % 64, column % 64] == 1
    u, v = x / 1.2 % 1, y / 1.2 % 1
    u = np.where(flipped, 1 - u, u)
    radius = np.minimum(np.hypot(u, v), np.hypot(1 - u, 1 - v))
    return np.abs(radius - 0.5) < rng.uniform(0.1, 0.18)


def basket(rng: Generator, x: Array, y: Array) -> Array:
    """Woven strands: bars whose direction alternates from cell to cell."""
    upright = (np.floor(x / 1.5) + np.floor(y / 1.5)) % 2 == 0
    return np.where(upright, x, y) * 2 % 1 < rng.uniform(0.4, 0.65)


def petals(rng: Generator, x: Array, y: Array) -> Array:
    """One large flower of several outlines."""
    lobes = rng.integers(4, 9)
    radius = np.hypot(x, y) / (1 + rng.uniform(0.25, 0.4) * np.cos(lobes * np.arctan2(y, x)))
    return radius * 0.7 % 1 < rng.uniform(0.35, 0.65)


def scribbles(rng: Generator, x: Array, y: Array) -> Array:
    """Contour lines of a smooth random field."""
    return np.abs(_field(rng, x, y)) < rng.uniform(0.25, 0.4)


def confetti(rng: Generator, x: Array, y: Array) -> Array:
    """Small rectangles thrown at random."""
    mask = np.zeros_like(x, bool)
    for u, v, angle in zip(*rng.uniform(-6, 6, (2, 90)), rng.uniform(0, np.pi, 90), strict=True):
        p, q = x - u, y - v
        along, across = np.cos(angle) * p + np.sin(angle) * q, np.cos(angle) * q - np.sin(angle) * p
        mask |= (np.abs(along) < 0.4) & (np.abs(across) < 0.15)
    return mask


def ovals(rng: Generator, x: Array, y: Array) -> Array:
    """Outlines of ellipses thrown at random."""
    mask = np.zeros_like(x, bool)
    for u, v, angle in zip(*rng.uniform(-6, 6, (2, 40)), rng.uniform(0, np.pi, 40), strict=True):
        p, q = x - u, y - v
        along, across = np.cos(angle) * p + np.sin(angle) * q, np.cos(angle) * q - np.sin(angle) * p
        mask |= np.abs(np.hypot(along, 2 * across) - 0.9) < 0.2
    return mask


def chevrons(rng: Generator, x: Array, y: Array) -> Array:
    """Columns of arrowheads, divided by gaps."""
    u = np.abs(x % 1.6 - 0.8)
    return ((y + u) * 1.3 % 1 < rng.uniform(0.35, 0.6)) & (u < 0.66)


PATTERNS: Mapping[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (
        *(arcs, basket, boxes, bricks, cells, chevrons, confetti, crosses, grids, hexagons, maze),
        *(ovals, petals, plaid, rays, scales, scribbles, spirals, stars, triangles, waves, zigzag),
    )
}


def _lattice(rng: Generator, x: Array, y: Array) -> Array:
    """Fold the plane into cells with their origin at the centre; every other row may be shifted."""
    x, y = x / 1.2, y / 1.2
    x = x + 0.5 * (np.floor(y) % 2) * rng.integers(0, 2)
    return np.stack([x % 1 - 0.5, y % 1 - 0.5])


def _field(rng: Generator, x: Array, y: Array) -> Array:
    """A smooth random field: plane waves of about one wavelength in random directions."""
    field = np.zeros_like(x)
    for angle, phase in rng.uniform(0, 2 * np.pi, (12, 2)):
        wavelength = rng.uniform(1.8, 3)
        field += np.cos(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / wavelength + phase)
    return field / np.sqrt(6)


def _two_nearest(rng: Generator, x: Array, y: Array, jitter: float) -> tuple[Array, Array]:
    """Distances to the two nearest points of a hexagonal lattice moved by up to `jitter`."""
    offsets = rng.uniform(-jitter / 2, jitter / 2, (2, 64, 64))
    row_height = np.sqrt(3) / 2
    row, nearest, second = (
        np.floor(y / row_height),
        np.full_like(x, np.inf),
        np.full_like(x, np.inf),
    )
    for dr in (-1, 0, 1, 2):
        r = row + dr
        shift = 0.5 * (r % 2)
        column = np.floor(x - shift)
        for dc in (-1, 0, 1, 2):
            c = column + dc
            du, dv = offsets[:, r.astype(int) % 64, c.astype(int) % 64]
            distance = np.hypot(x - (c + shift + du), y - (r * row_height + dv))
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    return nearest, second
