"""Features that earlier trainings left on disk: how many, and how long reading them takes."""

from __future__ import annotations

import dataclasses
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

_READ = 200  # beside a batch to have programs ready


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a table has of a split.

    Attributes:
        count: Pictures whose features are there.
        reading_seconds: Of bringing those of one into memory; 0 if there are too few to tell.
    """

    count: int = 0
    reading_seconds: float = 0.0


def find_stored(
    session: Session, data: DataSet, programs: Programs, split: Split, view: View
) -> Stored:
    """Find what is on disk of a split in a view, and read a part of it."""
    batch_size = batch_size_of(session.config, data.splits["train"])
    rows = padded_rows(batch_size, session.mesh.size)
    settings = settings_of(
        session.config, session.steps, session.frozen, view, rows // session.mesh.size
    )
    shape, dtype = programs.features.shape, programs.features.dtype
    table = ArrayTable.open_existing(cache_folder() / FEATURES, settings, shape, dtype)
    if table is None:
        return Stored()
    with closing(table):
        names = row_names(data.splits[split], augmented=view is not None)
        there = names[[name.tobytes() in table for name in names]]
        few = there[: batch_size + _READ]
        if len(few) <= batch_size:
            return Stored(len(there))
        pooled = programs.pooled
        memory = DeviceRows(session.mesh, len(few), pooled.shape, np.dtype(pooled.dtype))
        disk = DiskRows(session.mesh, table, few)
        with closing(InMemory(memory, session.steps.pool, disk)) as kept:
            kept.load(batch_size, batch_size, rows)
            begun = time.perf_counter()
            kept.load(len(few), batch_size, rows)
            jax.block_until_ready(kept.get(np.arange(1), rows))
            return Stored(len(there), (time.perf_counter() - begun) / len(few))
