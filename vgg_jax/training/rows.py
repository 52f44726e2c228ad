"""Arrays of equal shape, one for each example of a split: held on the devices, the host or a disk.

A place to hold them tells which rows it has, takes those that were computed, and gives the rows of
a batch as an array on the devices. Positions count the examples of the split.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vgg_jax.array_store import ArrayTable
from vgg_jax.training.steps import put_batch, replicate

_READERS = 4
_MOST_UNWRITTEN = 4  # batches
_BY_ROW = PartitionSpec("data")


class Rows(Protocol):
    """A place that holds rows."""

    def has(self, positions: np.ndarray) -> np.ndarray:
        """Tell for each position whether its row is there, bool `[n]`."""
        ...

    def put(self, positions: np.ndarray, values: jax.Array) -> None:
        """Take the rows of n positions: the first n of `values` `[P, …]`."""
        ...

    def get(self, positions: np.ndarray, rows: int) -> jax.Array | None:
        """Return the rows of n positions `[rows, …]`, whatever beyond n; None if one is lost."""
        ...


class DeviceRows:
    """Rows in the memory of every device: for a batch of them the host sends positions alone."""

    def __init__(
        self, mesh: jax.sharding.Mesh, count: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        """Make room for `count` rows."""
        self._mesh = mesh
        self._rows = replicate(mesh, jnp.zeros((count, *shape), dtype))
        self._there = np.zeros(count, bool)

    def has(self, positions: np.ndarray) -> np.ndarray:
        """As in `Rows`."""
        return self._there[positions]

    def put(self, positions: np.ndarray, values: jax.Array) -> None:
        """As in `Rows`."""
        # Rows beyond the last position are dropped, so that one program serves every batch.
        where = padded(positions, len(values), filler=len(self._there))
        # Placed alike, wherever they are from, or it compiles twice.
        self._rows = _scatter(self._rows, where, put_batch(self._mesh, values))
        self._there[positions] = True

    def get(self, positions: np.ndarray, rows: int) -> jax.Array:
        """As in `Rows`."""
        return _gather(self._rows, padded(positions, rows), NamedSharding(self._mesh, _BY_ROW))


class HostRows:
    """Rows in the host's memory."""

    def __init__(
        self, mesh: jax.sharding.Mesh, count: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        """Make room for `count` rows."""
        self._mesh = mesh
        self._rows = np.zeros((count, *shape), dtype)  # padding may show what is not there yet
        self._there = np.zeros(count, bool)

    def has(self, positions: np.ndarray) -> np.ndarray:
        """As in `Rows`."""
        return self._there[positions]

    def put(self, positions: np.ndarray, values: jax.Array) -> None:
        """As in `Rows`."""
        self._rows[positions] = np.asarray(values)[: len(positions)]
        self._there[positions] = True

    def get(self, positions: np.ndarray, rows: int) -> jax.Array:
        """As in `Rows`."""
        return put_batch(self._mesh, self._rows[padded(positions, rows)])


class DiskRows:
    """Rows in a table of files, which other runs use, too; threads write, and read ahead."""

    def __init__(self, mesh: jax.sharding.Mesh, table: ArrayTable, names: np.ndarray) -> None:
        """Use a table in which row i goes by `names[i]`, uint8 `[N, 16]`."""
        self.table = table
        self._mesh = mesh
        self._names = [name.tobytes() for name in names]
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="features-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="features-write")
        self._writing: collections.deque[Future[None]] = collections.deque()
        # In order, until the table gives them; until they are got, where it is no longer written.
        self._fresh: dict[bytes, np.ndarray] = {}
        self._ahead: dict[bytes, _Reading] = {}
        self._writes = True

    def has(self, positions: np.ndarray) -> np.ndarray:
        """As in `Rows`."""
        names = [self._names[i] for i in positions]
        return np.array([name in self.table or name in self._fresh for name in names], bool)

    def put(self, positions: np.ndarray, values: jax.Array) -> None:
        """As in `Rows`; the writing goes on in the background.

        Raises:
            CacheError: If this or an earlier one cannot be written.
        """
        names, rows = [self._names[i] for i in positions], np.asarray(values)[: len(positions)]
        self._fresh.update(zip(names, rows, strict=True))
        if self._writes:
            self._append(names, values)
            for name in itertools.takewhile(self.table.__contains__, [*self._fresh]):
                del self._fresh[name]

    def in_order(self) -> np.ndarray:
        """Return the positions `[n]` of the rows that the table has, as they lie on the disk."""
        return np.array(self.table.in_order(self._names), int)

    def stop_writing(self) -> None:
        """From now on keep what is put until it is got, once, and give what the table has."""
        self._writes = False
        self._writer.shutdown(cancel_futures=True)
        self._writing.clear()

    def write(self, positions: np.ndarray, values: jax.Array) -> None:
        """Write rows in the background, which can be read some time later; errors as for `put`."""
        self._append([self._names[i] for i in positions], values)

    def _append(self, names: list[bytes], values: jax.Array) -> None:
        def write() -> None:
            self.table.append(names, np.ascontiguousarray(np.asarray(values)[: len(names)]))

        self._writing.append(self._writer.submit(write))
        while len(self._writing) > _MOST_UNWRITTEN or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()

    def flush(self) -> None:
        """Wait until all is written and can be read by other processes; errors as for `put`."""
        while self._writing:
            self._writing.popleft().result()
        if self._writes:
            self.table.flush()
            self._fresh.clear()

    def get(self, positions: np.ndarray, rows: int) -> jax.Array | None:
        """As in `Rows`."""
        reading = self._ahead.pop(positions.tobytes(), None) or self._start(positions, rows)
        found = reading.result()
        if found is None:
            return None
        if not self._writes:
            for i in positions:
                self._fresh.pop(self._names[i], None)
        return put_batch(self._mesh, found)

    def prefetch(self, positions: np.ndarray, rows: int) -> None:
        """Begin to read for a `get` of these positions."""
        self._ahead[positions.tobytes()] = self._start(positions, rows)

    def close(self) -> None:
        """End the threads; what is not written is not."""
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)

    def _start(self, positions: np.ndarray, rows: int) -> _Reading:
        found = np.empty((rows, *self.table.shape), self.table.dtype)
        found[len(positions) :] = 0  # no chance values, which may be infinite
        names = [self._names[i] for i in positions]
        stored: list[int] = []
        for i, name in enumerate(names):
            if (fresh := self._fresh.get(name)) is None:
                stored.append(i)
            else:
                found[i] = fresh
        parts = np.array_split(np.array(stored, int), min(_READERS, max(len(stored), 1)))
        return _Reading(
            found,
            [
                self._readers.submit(self._read, found, part.tolist(), [names[i] for i in part])
                for part in parts
            ],
        )

    def _read(self, found: np.ndarray, where: list[int], names: list[bytes]) -> bool:
        """Read rows, each to its place; tells whether all could be read."""
        if where and where[-1] - where[0] < len(where):  # side by side
            return bool(self.table.read(names, found[where[0] : where[-1] + 1]).all())
        places = zip(where, names, strict=True)
        return all(self.table.read([name], found[i : i + 1]).all() for i, name in places)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """Rows that threads are about to read."""

    rows: np.ndarray
    parts: list[Future[bool]]

    def result(self) -> np.ndarray | None:
        """Wait for the rows; None if one could not be read."""
        whole = [part.result() for part in self.parts]
        return self.rows if all(whole) else None


@partial(jax.jit, donate_argnums=0)
def _scatter(rows: jax.Array, where: jax.Array, values: jax.Array) -> jax.Array:
    return rows.at[where].set(values, mode="drop")


@partial(jax.jit, static_argnums=2)
def _gather(rows: jax.Array, where: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(rows[where], sharding)


def padded(positions: np.ndarray, rows: int, filler: int = 0) -> np.ndarray:
    """Return positions, int32 `[rows]`, with `filler` after the last."""
    padded = np.full(rows, filler, np.int32)
    padded[: len(positions)] = positions
    return padded
