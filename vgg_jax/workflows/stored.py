"""Features that earlier trainings left on disk: how many, and how long reading them takes."""

from __future__ import annotations

import time
from contextlib import closing

import jax
import numpy as np

from vgg_jax.array_store import ArrayTable
from vgg_jax.cache import cache_folder
from vgg_jax.data.examples import DataSet, Split
from vgg_jax.table_folders import FEATURES
from vgg_jax.training.feature_names import row_names, settings_of
from vgg_jax.training.keeping import View
from vgg_jax.training.kept_rows import InMemory
from vgg_jax.training.rows import DeviceRows, DiskRows
from vgg_jax.workflows.feed import batch_size_of, padded_rows
from vgg_jax.workflows.programs import Programs
from vgg_jax.workflows.session import Session

_MOST_ROWS, _MOST_BYTES = 200, 100_000_000  # that are timed, but for two batches at least


def count_stored(
    session: Session, data: DataSet, programs: Programs, split: Split, view: View
) -> int:
    """Return how many pictures of a split have their features of a view on disk.

    Raises:
        CacheError: If it cannot be read.
    """
    table = _open(session, data, programs, view)
    if table is None:
        return 0
    with closing(table):
        return len(_names_in(table, data, split, view))


def time_reading(
    session: Session,
    data: DataSet,
    programs: Programs,
    split: Split,
    view: View,
    *,
    held: bool,
) -> float:
    """Bring some of those features into memory; returns the seconds of one picture's.

    Where fewer than two batches are there it is 0.

    Args:
        session: Of the training.
        data: Of the training.
        programs: Of the training.
        split: Whose features.
        view: Of which view.
        held: Whether they stay in memory, so that they are read as they lie on the disk; else each
            epoch reads them in another order.

    Raises:
        CacheError: If they cannot be read.
    """
    table = _open(session, data, programs, view)
    if table is None:
        return 0.0
    batch_size = batch_size_of(session.config, data.splits["train"])
    rows = padded_rows(batch_size, session.mesh.size)
    features, pooled = programs.features, programs.pooled
    most = min(_MOST_ROWS, _MOST_BYTES // (features.size * features.dtype.itemsize))
    with closing(table):
        names = _names_in(table, data, split, view)
        if held:  # as a training reads them, side by side
            names = names[table.in_order([name.tobytes() for name in names])]
        batches = min(max(most // batch_size, 2), len(names) // batch_size - 1)
        if batches < 1:
            return 0.0
        count = batches * batch_size
        seconds = 0.0
        for few in (names[:batch_size], names[batch_size:][:count]):  # the first warms up
            memory = DeviceRows(session.mesh, count, pooled.shape, np.dtype(pooled.dtype))
            begun = time.perf_counter()  # a start is measured elsewhere
            disk = DiskRows(session.mesh, table, few)
            with closing(InMemory(memory, session.steps.pool, disk)) as kept:
                order = None if held else np.random.default_rng(0).permutation(len(few))
                kept.load(batch_size, rows, order)
                jax.block_until_ready(kept.get(np.arange(1), rows))
            seconds = time.perf_counter() - begun
    return seconds / count


def _open(session: Session, data: DataSet, programs: Programs, view: View) -> ArrayTable | None:
    rows = padded_rows(batch_size_of(session.config, data.splits["train"]), session.mesh.size)
    settings = settings_of(
        session.config, session.steps, session.frozen, view, rows // session.mesh.size
    )
    shape, dtype = programs.features.shape, programs.features.dtype
    return ArrayTable.open_existing(cache_folder() / FEATURES, settings, shape, dtype)


def _names_in(table: ArrayTable, data: DataSet, split: Split, view: View) -> np.ndarray:
    """Return the names of those rows of a split that the table has, uint8 `[n, 16]`."""
    names = row_names(data.splits[split], augmented=view is not None)
    return names[[name.tobytes() in table for name in names]]
