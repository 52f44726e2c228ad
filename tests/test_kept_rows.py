"""Rows in memory and on disk, by themselves; trainings that keep them are in test_features.py."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.array_shards import ROWS_FILE
from vgg_jax.array_store import ArrayTable
from vgg_jax.data.pipeline import Batch
from vgg_jax.errors import CacheError
from vgg_jax.training.features import Features, Keep, pieces_of
from vgg_jax.training.kept_rows import InMemory, OnDisk
from vgg_jax.training.rows import DeviceRows, DiskRows, HostRows, padded
from vgg_jax.training.steps import data_mesh

COUNT, SHAPE, FLOAT = 7, (2, 3), np.dtype(np.float32)
ROWS = np.random.default_rng(0).standard_normal((COUNT, *SHAPE), np.float32)
NAMES = np.arange(COUNT * 16, dtype=np.uint8).reshape(COUNT, 16)
ALL = np.arange(COUNT)


def batch(positions: np.ndarray, rows: int = 4) -> jnp.ndarray:
    """Return the rows of positions as the prefix gives them: with padding that is no row."""
    values = np.full((rows, *SHAPE), np.nan, np.float32)
    values[: len(positions)] = ROWS[positions]
    return jnp.asarray(values)


def put_all(rows) -> None:
    for positions in (np.array([5, 0, 2, 6]), np.array([1, 4, 3])):
        rows.put(positions, batch(positions))


def got(rows, positions: np.ndarray, count: int = 4) -> np.ndarray | None:
    found = rows.get(positions, count)
    return None if found is None else np.asarray(found)[: len(positions)]


def rows_of(kept, positions: np.ndarray) -> np.ndarray:
    found = got(kept, positions, 8)
    assert found is not None
    return found


def open_table(root: Path) -> ArrayTable:
    return ArrayTable(root, {"of": "rows"}, SHAPE, FLOAT)


def on_disk(table: ArrayTable) -> DiskRows:
    return DiskRows(data_mesh(), table, NAMES)


def spoil(folder: Path) -> None:
    """Damage the row that was written last."""
    (file,) = folder.rglob(ROWS_FILE)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.fixture
def spoilt(tmp_path) -> Generator[ArrayTable]:
    """A table that holds all rows, one of them damaged since."""
    with closing(open_table(tmp_path)) as table, closing(on_disk(table)) as rows:
        put_all(rows)
        rows.flush()
    spoil(tmp_path)
    with closing(open_table(tmp_path)) as table:
        yield table


def mean(features: jnp.ndarray) -> jnp.ndarray:
    return features.mean(1)


@pytest.mark.parametrize("kind", [DeviceRows, HostRows])
def test_memory_gives_what_was_put_and_knows_what_was_not(kind):
    rows = kind(data_mesh(), COUNT, SHAPE, FLOAT)
    assert not rows.has(ALL).any()
    first = np.array([5, 0, 2])
    rows.put(first, batch(first))
    assert rows.has(ALL).tolist() == [True, False, True, False, False, True, False]
    rows.put(np.array([1, 6]), batch(np.array([1, 6])))
    np.testing.assert_array_equal(got(rows, np.array([6, 2, 5])), ROWS[[6, 2, 5]])
    # Rows that are not there may stand for padding, and must not spoil a sum that leaves them out.
    assert np.isfinite(rows.get(np.array([3]), 4)).all()


def test_disk_gives_rows_before_and_after_they_are_written(tmp_path):
    with closing(open_table(tmp_path)) as table, closing(on_disk(table)) as rows:
        put_all(rows)
        assert rows.has(ALL).all()
        np.testing.assert_array_equal(got(rows, np.array([3, 5])), ROWS[[3, 5]])
        rows.flush()
        assert all(name.tobytes() in table for name in NAMES)
        rows.prefetch(np.array([6, 1]), 4)
        np.testing.assert_array_equal(got(rows, np.array([6, 1])), ROWS[[6, 1]])
    with closing(open_table(tmp_path)) as table, closing(on_disk(table)) as rows:
        np.testing.assert_array_equal(got(rows, ALL, 8), ROWS)


def test_a_row_that_is_lost_is_told_when_it_is_read_and_can_be_put_anew(spoilt):
    with closing(OnDisk(on_disk(spoilt), mean)) as kept:
        assert kept.has(ALL).all()
        assert got(kept, ALL, 8) is None
        (lost,) = np.flatnonzero(~kept.has(ALL))
        kept.put(np.array([lost]), batch(np.array([lost])))
        kept.flush()
        np.testing.assert_allclose(rows_of(kept, ALL), ROWS.mean(1), rtol=1e-6)


def test_memory_is_filled_from_the_disk_but_for_what_is_lost(spoilt):
    memory = HostRows(data_mesh(), COUNT, (3,), FLOAT)
    with closing(InMemory(memory, mean, on_disk(spoilt))) as kept:
        kept.load(batch_size=3, rows=4)
        assert kept.has(ALL).sum() == COUNT - 1
        there = np.flatnonzero(kept.has(ALL))
        np.testing.assert_allclose(rows_of(kept, there), ROWS[there].mean(1), rtol=1e-6)


def test_memory_is_filled_in_the_order_in_which_rows_lie_on_the_disk(tmp_path, monkeypatch):
    """One after the other, whatever was there before them, and however the examples are sorted."""
    written = np.array([5, 0, 2, 6, 1, 4])
    for number, positions in enumerate((written[:4], written[4:])):
        with closing(open_table(tmp_path)) as table, closing(on_disk(table)) as rows:
            assert len([*tmp_path.rglob(ROWS_FILE)]) == number  # a shard each
            rows.put(positions, batch(positions))
            rows.flush()
    read: list[np.ndarray] = []
    get = DiskRows.get
    monkeypatch.setattr(
        DiskRows, "get", lambda rows, at, count: read.append(at) or get(rows, at, count)
    )
    memory = HostRows(data_mesh(), COUNT, SHAPE, FLOAT)
    with closing(open_table(tmp_path)) as table:
        assert table.in_order([b"absent" + bytes(10), *(n.tobytes() for n in NAMES)]) == [
            *(written + 1)
        ]
        with closing(InMemory(memory, lambda features: features, on_disk(table))) as kept:
            kept.load(batch_size=4, rows=4)
            assert np.concatenate(read).tolist() == written.tolist()
            read.clear()
            kept.load(batch_size=4, rows=4, order=np.array([1, 6, 0]))
            assert np.concatenate(read).tolist() == [1, 6, 0]
            np.testing.assert_array_equal(rows_of(kept, np.sort(written)), ROWS[np.sort(written)])


def test_memory_goes_on_where_the_disk_fails(tmp_path, monkeypatch):
    told: list[CacheError] = []
    with closing(open_table(tmp_path)) as table:
        memory = DeviceRows(data_mesh(), COUNT, SHAPE, FLOAT)
        kept = InMemory(memory, lambda features: features, on_disk(table), told.append)

        def fail(ids: object, rows: object) -> None:
            raise CacheError("no room")

        monkeypatch.setattr(table, "append", fail)
        put_all(kept)
        kept.flush()
        kept.flush()
        kept.close()
    assert [str(error) for error in told] == ["no room"]
    np.testing.assert_array_equal(got(kept, ALL, 8), ROWS)


def test_disk_alone_raises_where_it_fails(tmp_path, monkeypatch):
    with closing(open_table(tmp_path)) as table, closing(on_disk(table)) as rows:

        def fail(ids: object, values: object) -> None:
            raise CacheError("no room")

        monkeypatch.setattr(table, "append", fail)

        def put_one() -> None:  # whether putting or flushing notices is a matter of time
            rows.put(np.array([1]), batch(np.array([1])))
            rows.flush()

        with pytest.raises(CacheError, match="no room"):
            put_one()


def test_disk_alone_goes_on_with_what_it_has_where_it_can_no_longer_be_written(
    tmp_path, monkeypatch
):
    told: list[CacheError] = []
    first, rest = np.array([5, 0, 2]), np.array([1, 3, 4, 6])
    with closing(open_table(tmp_path)) as table:
        kept = OnDisk(on_disk(table), mean, told.append)
        kept.put(first, batch(first))
        kept.flush()

        def fail(ids: object, rows: object) -> None:
            raise CacheError("no room")

        monkeypatch.setattr(table, "append", fail)
        for _ in range(2):  # in the second epoch they are computed again
            kept.put(rest, batch(rest))
            kept.flush()
            assert kept.has(ALL).all()
            np.testing.assert_allclose(rows_of(kept, ALL), ROWS.mean(1), rtol=1e-6)
            assert np.flatnonzero(kept.has(ALL)).tolist() == sorted(first)
        kept.close()
    assert [str(error) for error in told] == ["no room"]


def in_pairs(compute: Callable[[Batch, int], jnp.ndarray], kept: OnDisk) -> Features:
    """Return features in batches of two, kept there."""

    def read(order: np.ndarray, view: int) -> Iterator[Batch]:
        for piece in pieces_of(order, 2):
            index, valid = padded(piece, 2), np.arange(2) < len(piece)
            yield Batch(np.zeros((2, 1, 1, 3), np.uint8), index, valid, index, index)

    return Features(
        labels=np.arange(COUNT, dtype=np.int32),
        batch_size=2,
        rows=2,
        read=read,
        put=lambda arrays: arrays,
        compute=compute,
        pool=mean,
        keep=cast("Keep", SimpleNamespace(rows=lambda *_: kept, passed=lambda *_: kept.flush())),
    )


def test_rows_that_turn_out_to_be_lost_are_not_counted_as_compared(tmp_path):
    with closing(open_table(tmp_path)) as table:
        table.append([NAMES[i].tobytes() for i in (5, 0, 2)], ROWS[[5, 0, 2]])
    spoil(tmp_path)
    with closing(open_table(tmp_path)) as table:
        kept = OnDisk(on_disk(table), mean)
        features = in_pairs(lambda batch, view: jnp.asarray(ROWS[batch.index] + 1), kept)
        there = np.flatnonzero(kept.has(ALL))
        assert there.tolist() == [0, 2, 5]
        difference, count = features.compare(kept, there, 1)
        assert count == len(np.flatnonzero(kept.has(ALL))) == 2
        assert difference > 0
        kept.close()


def test_an_epoch_holds_little_where_the_disk_fails_and_rows_are_lost(tmp_path, monkeypatch):
    """With two equal pictures, whose features have one name."""
    names, values = NAMES.copy(), ROWS.copy()
    names[6], values[6] = names[1], values[1]
    with closing(open_table(tmp_path)) as table:
        table.append([names[i].tobytes() for i in (5, 0, 2)], values[[5, 0, 2]])
    spoil(tmp_path)

    def fail(ids: object, rows: object) -> None:
        raise CacheError("no room")

    with closing(open_table(tmp_path)) as table:
        monkeypatch.setattr(table, "append", fail)
        disk = DiskRows(data_mesh(), table, names)
        kept = OnDisk(disk, mean)
        held: list[int] = []

        def compute(batch: Batch, view: int) -> jnp.ndarray:
            held.append(len(disk._fresh))
            return jnp.asarray(values[batch.index])

        features = in_pairs(compute, kept)
        for order in ([2, 1, 3, 4, 6, 5, 0], [6, 4, 1, 3, 0, 2, 5], [0, 5, 2, 1, 6, 3, 4]):
            found = [*features.batches(np.array(order), 1)]
            pooled = np.concatenate([np.asarray(inputs.features) for inputs in found])
            np.testing.assert_allclose(pooled[:COUNT], values[order].mean(1), rtol=1e-6)
            assert max(held) <= 4
        kept.close()


def test_positions_are_padded():
    assert padded(np.array([4, 2]), 4).tolist() == [4, 2, 0, 0]
    assert padded(np.array([4, 2]), 3, filler=9).tolist() == [4, 2, 9]
