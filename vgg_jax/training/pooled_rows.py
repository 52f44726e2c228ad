"""Kept features that several heads have in common, as one of them pools them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from vgg_jax.training.features import Features, Keep, pieces_of
from vgg_jax.training.kept_rows import KeptRows, Pool
from vgg_jax.training.rows import Rows


class PooledKeep:
    """Gives the kept features of one split to one head; a `vgg_jax.training.features.Keep`."""

    def __init__(
        self, features: Features, keep: Keep, pool: Pool, copy: Callable[[int], Rows] | None
    ) -> None:
        """Pool what `keep` has of `features`; `copy` makes room in memory for so many rows."""
        self._features, self._keep, self._pool, self._copy = features, keep, pool, copy
        self._pooled: dict[KeptRows, PooledRows] = {}  # a split that is not augmented has one

    def rows(self, features: Features, view: int) -> KeptRows:
        """As in `Keep`."""
        rows = self._keep.rows(self._features, view)
        if rows not in self._pooled:
            copy = None
            if self._copy is not None and rows.in_memory:
                copy = self._copy(len(self._features.labels))
            self._pooled[rows] = PooledRows(rows, self._pool, copy, self._features.rows)
        return self._pooled[rows]

    def passed(self, features: Features, view: int) -> None:
        """As in `Keep`."""
        self._keep.passed(self._features, view)


class PooledRows:
    """Rows of others, pooled; a `KeptRows`."""

    def __init__(self, rows: KeptRows, pool: Pool, copy: Rows | None, rows_of_batch: int) -> None:
        """Pool `rows` in batches, as they are asked for: once into `copy`, or else each time."""
        self._rows, self._pool, self._copy, self._batch = rows, pool, copy, rows_of_batch
        self.in_memory = copy is not None
        self.has, self.put, self.prefetch = rows.has, rows.put, rows.prefetch
        self.flush, self.stop_writing, self.close = rows.flush, rows.stop_writing, rows.close

    def get(self, positions: np.ndarray, rows: int) -> jax.Array | None:
        """As in `vgg_jax.training.rows.Rows`."""
        if self._copy is None:
            return self._got(positions, rows)
        for piece in pieces_of(positions[~self._copy.has(positions)], self._batch):
            pooled = self._got(piece, self._batch)
            if pooled is None:
                return None
            self._copy.put(piece, pooled)
        return self._copy.get(positions, rows)

    def _got(self, positions: np.ndarray, rows: int) -> jax.Array | None:
        features = self._rows.get(positions, rows)
        return None if features is None else self._pool(features)
