"""What one head makes of features that several have in common; sweeps are in test_chunks.py."""

from __future__ import annotations

import gc
import weakref
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from test_kept_rows import ALL, COUNT, FLOAT, ROWS, SHAPE, batch, mean, on_disk, open_table, put_all

from vgg_jax.training.features import Features, Keep
from vgg_jax.training.kept_rows import InMemory, OnDisk
from vgg_jax.training.pooled_rows import PooledKeep, PooledRows
from vgg_jax.training.rows import DeviceRows, HostRows
from vgg_jax.training.steps import data_mesh


def same(array):
    return array


def in_memory() -> InMemory:
    return InMemory(HostRows(data_mesh(), COUNT, SHAPE, FLOAT), same)


def copy(count: int) -> DeviceRows:
    return DeviceRows(data_mesh(), count, SHAPE[1:], FLOAT)


def test_a_copy_is_pooled_once_of_rows_as_they_come():
    pooled_batches: list[int] = []

    def pool(features):
        pooled_batches.append(len(features))
        return mean(features)

    shared = in_memory()
    rows = PooledRows(shared, pool, copy(COUNT), 4)
    assert rows.in_memory
    first = np.array([5, 0, 2, 6])
    rows.put(first, batch(first))  # as the prefix gives them: other heads find them
    assert shared.has(first).all()
    assert not rows.has(ALL).all()
    put_all(shared)
    for order in (ALL, ALL[::-1].copy()):
        found = np.asarray(rows.get(order, 8))[:COUNT]
        np.testing.assert_allclose(found, ROWS[order].mean(1), rtol=1e-6)
    assert pooled_batches == [4, 4]  # of 7 rows, in the first of both rounds


def test_without_a_copy_a_row_that_is_lost_is_told(tmp_path):
    with closing(open_table(tmp_path)) as table:
        rows = PooledRows(OnDisk(on_disk(table), same), mean, None, 4)
        assert not rows.in_memory
        assert rows.get(np.array([1, 2]), 4) is None
        put_all(rows)
        rows.flush()
        found = np.asarray(rows.get(np.array([3, 1]), 4))[:2]
        np.testing.assert_allclose(found, ROWS[[3, 1]].mean(1), rtol=1e-6)
        rows.close()


@pytest.mark.parametrize("views", [1, 2])
def test_each_view_has_a_copy_which_goes_with_the_head(views):
    shared = [in_memory() for _ in range(views)]
    passed: list[Any] = []
    keep = SimpleNamespace(
        rows=lambda features, view: shared[(view - 1) % views],
        passed=lambda features, view: passed.append((features, view)),
    )
    features = cast("Features", SimpleNamespace(labels=ALL, rows=4))
    of_head = PooledKeep(features, cast("Keep", keep), mean, copy)
    others = cast("Features", None)
    copies = {of_head.rows(others, view) for view in (1, 2, 3, 4)}
    assert len(copies) == views
    of_head.passed(others, 2)
    assert passed == [(features, 2)]  # those that are not pooled, to be verified
    gone = [weakref.ref(rows) for rows in copies]
    del of_head, copies
    gc.collect()
    assert all(rows() is None for rows in gone)
