"""From pictures to what a step takes: through the frozen prefix, or from where that is kept.

What the prefix makes of a picture does not change during a training. Where nothing random comes
before it, or only a fixed number of views, it can be kept: later epochs then cost the suffix alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.data.pipeline import Batch
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.kept_rows import KeptRows
from vgg_jax.training.rows import DeviceRows, padded
from vgg_jax.training.validation import closing_at_end

# Gives batches of the pictures at some positions, in that order, as they are in a view.
Read = Callable[[np.ndarray, int], Iterator[Batch]]


class Keep(Protocol):
    """Keeps the features of one split."""

    def rows(self, features: Features, view: int) -> KeptRows:
        """Return where those of a view are kept."""
        ...

    def passed(self, features: Features, view: int) -> None:
        """Take notice that all batches of a view were given."""
        ...


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of one split's examples, batch by batch.

    Attributes:
        labels: int32 `[N]`.
        batch_size: Examples in a batch.
        rows: Rows of a batch, with padding: `batch_size` or more.
        chunk_size: Batches of a chunk, see `vgg_jax.training.inputs.Inputs`; with 1 there are no
            chunks. Otherwise `rows` must be `batch_size`.
        read: Gives pictures in batches of `batch_size`.
        put: Transfers arrays of labels, and the like, to the devices.
        compute: Maps such a batch, in a view, to its features `[rows, …]`.
        pool: Maps features to what the steps take.
        keep: Where the features are kept; None if they are not.
    """

    labels: np.ndarray
    batch_size: int
    rows: int
    read: Read
    put: Callable[[Any], Any]
    compute: Callable[[Batch, int], jax.Array]
    pool: Callable[[jax.Array], jax.Array]
    chunk_size: int = 1
    keep: Keep | None = None

    def batches(self, order: np.ndarray, view: int) -> Iterator[Inputs]:
        """Yield the examples at the positions `order`, in batches; the last is padded.

        Or in chunks of them: of one batch each, unless all features are in memory.
        """
        if self.keep is None:
            with closing(self._computed(order, view)) as computed:
                for positions, features in computed:
                    yield self._inputs(positions, self.pool(features))
            return
        with closing(self._through(self.keep.rows(self, view), order, view)) as found:
            yield from found
        self.keep.passed(self, view)

    def _through(self, rows: KeptRows, order: np.ndarray, view: int) -> Generator[Inputs]:
        """Yield batches out of `rows`, computed first where they are missing."""
        missing = order[~rows.has(order)]
        at_once = self.chunk_size if rows.in_memory else 1
        count = at_once * self.rows  # of one shape, whether or not rows are missing
        pieces = pieces_of(order, (1 if len(missing) else at_once) * self.batch_size)
        coming = {*missing.tolist()}
        with closing(self._computed(missing, view)) as computed:
            for positions, following in itertools.zip_longest(pieces, pieces[1:]):
                features = None
                while features is None:  # as long as rows turn out to be lost when they are read
                    self._complete(rows, positions, view, computed, coming)
                    if following is not None and rows.has(following).all():
                        rows.prefetch(following, count)
                    features = rows.get(positions, count)
                yield self._inputs(positions, features)

    def _complete(
        self,
        rows: KeptRows,
        positions: np.ndarray,
        view: int,
        computed: Iterator[tuple[np.ndarray, jax.Array]],
        coming: set[int],
    ) -> None:
        """Put rows until those at `positions` are there: of `computed`, where they are coming."""
        while not coming.isdisjoint(positions[~rows.has(positions)].tolist()):
            found = next(computed)
            coming.difference_update(found[0].tolist())
            rows.put(*found)
        with closing(self._computed(positions[~rows.has(positions)], view)) as anew:
            for found in anew:
                rows.put(*found)

    def _computed(self, order: np.ndarray, view: int) -> Generator[tuple[np.ndarray, jax.Array]]:
        """Yield the positions of a batch and their features, batch by batch."""
        if len(order):
            for batch in closing_at_end(self.read(order, view)):
                yield batch.index[batch.valid], self.compute(batch, view)

    def compare(self, rows: KeptRows, positions: np.ndarray, view: int) -> tuple[float, int]:
        """Compute features once more, and compare them with those in `rows`.

        Returns:
            The largest difference, relative to the largest value, and of how many pictures: those
            whose rows do not turn out to be lost.
        """
        largest, count = 0.0, 0
        with closing(self._computed(positions, view)) as computed:
            for piece, features in computed:
                there = rows.has(piece)
                while (found := rows.get(piece[there], self.rows)) is None:
                    there = rows.has(piece)
                anew = np.asarray(self.pool(features), np.float32)[: len(piece)][there]
                kept = np.asarray(found, np.float32)[: len(anew)]
                count += len(anew)
                if not np.array_equal(anew, kept, equal_nan=True):
                    difference = float(np.abs(anew - kept).max() / np.abs(anew).max())
                    largest = max(largest, difference if math.isfinite(difference) else math.inf)
        return largest, count

    def _inputs(self, positions: np.ndarray, features: jax.Array) -> Inputs:
        count = self.chunk_size * self.rows
        labels, valid = self.labels[padded(positions, count)], np.arange(count) < len(positions)
        if self.chunk_size > 1:
            features = in_chunk(features, self.chunk_size, self.rows)
            labels, valid = (array.reshape(-1, self.rows) for array in (labels, valid))
        return Inputs(features, *self.put((labels, valid)))


class ResidentPictures:
    """Reads pictures once, and has them on the devices from then on; a `Read`."""

    def __init__(
        self,
        read: Read,
        pictures: DeviceRows,
        labels: np.ndarray,
        batch_size: int,
        rows: int,
    ) -> None:
        """Take pictures that are the same in every view from `read`; the rest as in `Features`.

        `pictures` has room for all, uint8 `[S, S, 3]` each.
        """
        self._read, self._pictures, self._labels = read, pictures, labels
        self._batch_size, self._rows = batch_size, rows
        self._content = np.zeros((len(labels), 3), np.uint32)

    def __call__(self, order: np.ndarray, view: int) -> Iterator[Batch]:
        """Yield the pictures at the positions `order`, in batches."""
        if not self._pictures.has(order).all():
            for batch in closing_at_end(self._read(order, view)):
                positions = batch.index[batch.valid]
                self._content[positions] = batch.content[batch.valid]
                images = jnp.asarray(batch.images)
                self._pictures.put(positions, images)
                yield dataclasses.replace(batch, images=cast("np.ndarray", images))  # good as one
            return
        for positions in pieces_of(order, self._batch_size):
            index = padded(positions, self._rows)
            valid = np.arange(self._rows) < len(positions)
            images = cast("np.ndarray", self._pictures.get(positions, self._rows))
            yield Batch(images, self._labels[index], valid, self._content[index], index)


@partial(jax.jit, static_argnums=(1, 2))
def in_chunk(array: jax.Array, batches: int, rows: int) -> jax.Array:
    """Cut an array, `[n, …]` of one batch or more, into batches `[batches, rows, …]`, padded."""
    missing = batches * rows - len(array)
    padded = jnp.pad(array, ((0, missing), *[(0, 0)] * (array.ndim - 1)))
    return padded.reshape(batches, rows, *array.shape[1:])


def pieces_of(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an order into pieces of `size`; the last may be smaller."""
    return np.split(order, range(size, len(order), size)) if len(order) else []
